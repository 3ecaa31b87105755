/* Peers of `tessera bench`: bench/peers.py stands for each of them, in a process of its own, on the
 * dense weights of this run. A model that a peer cannot open as it is (packed, or of another
 * format) is exported for it to a folder that is gone once all have loaded. */
#include <errno.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/parallel.h"
#include "base/strbuf.h"
#include "cli/bench.h"
#include "convert/convert.h"
#include "io/file.h"

enum peer_kind { PEER_LLAMA_CPP, PEER_PYTORCH, PEER_KINDS };
static const char *const peer_names[PEER_KINDS] = {"llama.cpp", "pytorch"};

/* --- where things are --- */

static const char *interpreter(void) {
  const char *python = getenv("PYTHON");
  return python && *python ? python : "python3";
}

/* TSR_PEERS, or beside the program: in its source tree, or as `make install` puts it. */
static enum status find_script(char out[PATH_MAX], struct error *err) {
  static const char *const places[] = {"bench/peers.py", "../bench/peers.py",
                                       "../share/tessera/peers.py"};
  const char *given = getenv("TSR_PEERS");
  char program[PATH_MAX];
  if (given && *given) {
    snprintf(out, PATH_MAX, "%s", given);
    return STATUS_OK;
  }
  ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  program[length > 0 ? length : 0] = 0;
  const char *folder = dirname(program);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    int n = snprintf(out, PATH_MAX, "%s/%s", folder, places[i]);
    if (n > 0 && n < PATH_MAX && file_exists(out)) return STATUS_OK;
  }
  return error_set(err, STATUS_FAILED,
                   "peers.py, which runs the peers, is not beside the program; TSR_PEERS=FILE says "
                   "where it is");
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *where) {
  return remove(path);
}

static enum status make_folder(char out[PATH_MAX], struct error *err) {
  const char *base = getenv("TMPDIR");
  snprintf(out, PATH_MAX, "%s/tessera-peers-XXXXXX", base && *base ? base : "/tmp");
  if (mkdtemp(out)) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "no folder for exported weights can be made (%s): %s", out,
                   strerror(errno));
}

/* --- weights --- */

/* The peer's nearest type: llama.cpp has blocks of integers with a scale for 32, PyTorch none. */
static enum dtype export_dtype(const struct model *model, enum peer_kind kind) {
  const char *name = bench_dtype(model);
  if (kind == PEER_LLAMA_CPP && !strcmp(name, "int8")) return DTYPE_Q8_0;
  if (kind == PEER_LLAMA_CPP && !strcmp(name, "int4")) return DTYPE_Q4_0;
  return !strcmp(name, "f32") ? DTYPE_F32 : !strcmp(name, "f16") ? DTYPE_F16 : DTYPE_BF16;
}

/* A dense model that was given in the peer's own format is loaded from where it is. */
static bool opens_as_it_is(const struct bench_entry *e, enum peer_kind kind) {
  if (e->made || (kind == PEER_PYTORCH && model_site(e->model, 0)->weight.quant)) return false;
  return kind == PEER_LLAMA_CPP ? model_gguf(e->model) != NULL : model_json(e->model) != NULL;
}

static enum status weights_for(const struct bench_entry *e, int index, enum peer_kind kind,
                               const char *folder, struct strbuf *path, struct error *err) {
  struct model *source;
  strbuf_clear(path);
  if (opens_as_it_is(e, kind)) {
    strbuf_puts(path, model_path(e->model));
    return STATUS_OK;
  }
  strbuf_printf(path, "%s/%d%s", folder, index, kind == PEER_LLAMA_CPP ? ".gguf" : "");
  if (file_exists(strbuf_text(path))) return STATUS_OK;
  log_info("exporting %s for %s", model_path(e->model), peer_names[kind]);
  enum status status = model_open_headers(&source, model_path(e->model), err);
  if (status) return status;
  enum dtype dtype = export_dtype(e->model, kind);
  status = kind == PEER_LLAMA_CPP
               ? convert_to_gguf(source, NULL, strbuf_text(path), dtype, true, err)
               : convert_to_hf(source, NULL, strbuf_text(path), dtype, true, err);
  model_close(source);
  return status;
}

/* --- starting --- */

static void longest(const struct bench_job *job, int64_t *batch, int64_t *length) {
  *batch = *length = 1;
  for (int i = 0; i < job->case_count; i++) {
    int64_t *most = job->cases[i].phase == SPEED_DECODE ? batch : length;
    if (job->cases[i].batch > *most) *most = job->cases[i].batch;
  }
}

static enum status start(struct bench_job *job, int dense, enum peer_kind kind, const char *script,
                         const char *folder, struct error *err) {
  const char *const argv[] = {interpreter(), script, peer_names[kind], NULL};
  struct bench_entry entry = {.model = job->entries[dense].model, .dense_entry = dense};
  struct strbuf path = {0};
  int64_t batch, length;
  longest(job, &batch, &length);
  enum status status = peer_start(&entry.peer, peer_names[kind], argv, err);
  if (!status) status = weights_for(&job->entries[dense], dense, kind, folder, &path, err);
  if (!status)
    status = peer_load(entry.peer, strbuf_text(&path),
                       dtype_traits(export_dtype(entry.model, kind))->name, parallel_threads(),
                       batch, length, err);
  if (!status) status = bench_add(job, &entry, err);
  if (status) peer_stop(entry.peer);
  strbuf_free(&path);
  return status;
}

static enum status choose(const struct bench_settings *s, bool wanted[PEER_KINDS],
                          struct error *err) {
  for (int k = 0; k < PEER_KINDS; k++) wanted[k] = s->peers;
  for (int i = 0; i < s->peer.count; i++) {
    int k = 0;
    while (k < PEER_KINDS && strcmp(s->peer.items[i], peer_names[k]) != 0) k++;
    if (k == PEER_KINDS)
      return error_set(err, STATUS_USAGE, "--peer is llama.cpp or pytorch, not \"%s\"",
                       s->peer.items[i]);
    wanted[k] = true;
  }
  return STATUS_OK;
}

enum status bench_start_peers(struct bench_job *job, struct error *err) {
  char script[PATH_MAX], folder[PATH_MAX];
  bool wanted[PEER_KINDS];
  int own = job->entry_count; /* peers are added behind these */
  enum status status = choose(job->settings, wanted, err);
  if (!status) status = find_script(script, err);
  if (!status) status = make_folder(folder, err);
  if (status) return status;
  for (int i = 0; i < own && !status; i++)
    for (int k = 0; k < PEER_KINDS && !status; k++)
      if (wanted[k] && !job->entries[i].hybrid)
        status = start(job, i, (enum peer_kind)k, script, folder, err);
  nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  return status;
}
