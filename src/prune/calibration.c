/* From a corpus to calibration windows: how many, how long, and which. Owns the copied ids, so that
 * the corpus can go before pruning starts. */
#include "prune/calibration.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

enum { CORPUS_SURPLUS = 32, LENGTH_LEAST = 2 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Windows whose hidden states fit into half of what memory is free now. */
static int64_t windows_in_memory(const struct model_config *config, int64_t length) {
  const long pages = sysconf(_SC_AVPHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) return CALIBRATION_WINDOWS;
  const double free_bytes = (double)pages * (double)page_bytes / 2;
  const double window_bytes = (double)length * (double)config->hidden_size * sizeof(float);
  const double windows = free_bytes / window_bytes;
  return windows < 1 ? 1 : windows > CALIBRATION_WINDOWS ? CALIBRATION_WINDOWS : (int64_t)windows;
}

/* What is asked for, before the corpus is looked at. */
static void plan(struct calibration *c, const struct model_config *config, int64_t tokens) {
  c->length = smaller(CALIBRATION_WINDOW_MAX, config->context_length);
  if (tokens) {
    c->length = smaller(c->length, tokens);
    c->windows = tokens / c->length;
    return;
  }
  c->windows = windows_in_memory(config, c->length);
  if (c->windows < CALIBRATION_WINDOWS)
    log_info("calibration: %lld windows instead of %d, which is what memory allows",
             (long long)c->windows, CALIBRATION_WINDOWS);
}

/* Cuts the corpus; one that is shorter than a window gives a single shorter window. */
static enum status cut(struct windows *windows, const struct corpus *corpus, struct calibration *c,
                       struct error *err) {
  if (corpus->ids.count < (size_t)c->length && corpus->ids.count >= LENGTH_LEAST) {
    log_info("calibration: windows of %zu tokens instead of %lld, which is all the corpus has",
             corpus->ids.count, (long long)c->length);
    c->length = (int64_t)corpus->ids.count;
  }
  enum status status = windows_cut(windows, corpus, c->length, false, err);
  if (status) return status;
  if (windows->count < c->windows) {
    log_info("calibration: %lld windows instead of %lld, which is all the corpus has",
             (long long)windows->count, (long long)c->windows);
    c->windows = windows->count;
  }
  return STATUS_OK;
}

enum status calibration_load(struct calibration *out, const struct model *model,
                             const struct tokenizer *tokenizer, const char *path, int64_t tokens,
                             uint64_t seed, struct error *err) {
  struct corpus corpus = {0};
  struct windows windows = {0};
  *out = (struct calibration){.seed = seed};
  plan(out, model_config(model), tokens);
  enum status status =
      corpus_load(&corpus, path, tokenizer, CORPUS_SURPLUS * out->windows * out->length, err);
  if (status) return status;
  status = cut(&windows, &corpus, out, err);
  if (status) goto out;
  out->ids = mem_alloc((size_t)(out->windows * out->length), sizeof *out->ids, err);
  if (!out->ids) {
    status = STATUS_FAILED;
    goto out;
  }
  for (int64_t i = 0; i < out->windows; i++)
    memcpy(out->ids + i * out->length,
           windows_at(&windows, windows_draw(windows.count, seed, (uint64_t)i)),
           (size_t)out->length * sizeof *out->ids);
out:
  windows_free(&windows);
  corpus_free(&corpus);
  return status;
}

void calibration_free(struct calibration *c) {
  mem_free(c->ids);
  *c = (struct calibration){0};
}
