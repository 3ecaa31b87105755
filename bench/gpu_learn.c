/* Learning and evaluation on a card: is every operation right, and how fast is a step? Run by
 * tools/gpu_check.sh from the top of the repository. Usage: gpu_learn FOLDER COMMIT SECONDS [cpu].
 * Writes FOLDER/gpu_learn_checks.csv and FOLDER/gpu_learn_times.csv; no new timing starts after
 * SECONDS. With `cpu`, a rehearsal: the CPU stands for the card, and nothing is timed. Exit status:
 * 0 all right, 1 something is wrong, 77 no card or a build without CUDA. */
#include "gpu_learn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gpu_ledger.h"
#include "learn/learner.h"

enum { EXIT_NO_CARD = 77, WINDOW = 16, TEXT_TOKENS = 512 };

static struct error err;

void learn_must(enum status status, const struct error *e) {
  if (!status) return;
  fprintf(stderr, "gpu_learn: %s\n", e->text);
  exit(EXIT_FAILURE);
}

static void *must_alloc(size_t count, size_t size) {
  void *memory = mem_alloc(count, size, &err);
  learn_must(memory ? STATUS_OK : STATUS_FAILED, &err);
  return memory;
}

float *learn_normals(const struct backend *on, int64_t count, uint64_t seed, float scale) {
  float *host = must_alloc((size_t)count, sizeof *host), *out;
  struct rng rng = rng_make(seed, 7);
  for (int64_t i = 0; i < count; i++) host[i] = scale * (float)rng_normal(&rng);
  learn_must(on->alloc((size_t)count * sizeof *host, (void **)&out, &err), &err);
  learn_must(on->upload(out, host, (size_t)count * sizeof *host, &err), &err);
  mem_free(host);
  return out;
}

/* |a - b| / |b|; a NaN stays. */
double learn_relative(const float *a, const float *b, int64_t count) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; i++) {
    difference += pow((double)a[i] - b[i], 2);
    norm += (double)b[i] * b[i];
  }
  return sqrt(difference) / (sqrt(norm) + 1e-30);
}

int learn_report(const struct gpu_learn *run, FILE *ledger, const char *what, const char *where,
                 double error, double most) {
  const bool right = error <= most;
  fprintf(ledger, "%s,%s,%s,%s,%.3g,%.3g,%d\n", run->date, run->commit, what, where, error, most,
          right);
  if (!right)
    fprintf(stderr, "gpu_learn: %s, %s: error %g, at most %g\n", what, where, error, most);
  return !right;
}

/* --- operations at sizes that fill a card, against the CPU's --- */

enum { OUTPUTS = 3 };
struct outcome {
  float *at[OUTPUTS];
  int64_t count[OUTPUTS];
};

/* Runs `operation` on a backend and brings its outputs. */
static struct outcome run_on(const struct backend *on,
                             struct outcome (*operation)(const struct backend *on)) {
  struct outcome far = operation(on), here = far;
  for (int i = 0; i < OUTPUTS; i++) {
    const size_t bytes = (size_t)far.count[i] * sizeof(float);
    here.at[i] = NULL;
    if (!far.at[i]) continue;
    here.at[i] = must_alloc((size_t)far.count[i], sizeof(float));
    learn_must(on->download(here.at[i], far.at[i], bytes, &err), &err);
    on->free(far.at[i]);
  }
  return here;
}

static struct outcome attention(const struct backend *on, int64_t window, float softcap,
                                int64_t head_dim, enum precision precision) {
  const struct attention_shape s = {1,        1000,   1000,  0,       8,        2,
                                    head_dim, window, 0.09f, softcap, precision};
  const int64_t q = 1000 * 8 * head_dim, kv = 1000 * 2 * head_dim;
  float *in[4] = {learn_normals(on, q, 1, 1), learn_normals(on, kv, 2, 1),
                  learn_normals(on, kv, 3, 1), learn_normals(on, q, 4, 1)};
  float *out = learn_normals(on, q, 5, 0), *lse = learn_normals(on, 8000, 5, 0);
  struct outcome o = {
      {learn_normals(on, q, 5, 0), learn_normals(on, kv, 5, 0), learn_normals(on, kv, 5, 0)},
      {q, kv, kv}};
  on->attention_forward(&s, in[0], in[1], in[2], out, lse);
  on->attention_backward(&s, in[0], in[1], in[2], out, lse, in[3], o.at[0], o.at[1], o.at[2]);
  learn_must(on->wait(&err), &err);
  for (int i = 0; i < 4; i++) on->free(in[i]);
  on->free(out);
  on->free(lse);
  return o;
}
static struct outcome plain_attention(const struct backend *on) {
  return attention(on, 0, 0, 128, PRECISION_FP32);
}
static struct outcome windowed_attention(const struct backend *on) {
  return attention(on, 300, 30, 64, PRECISION_FP32);
}
static struct outcome wide_attention(const struct backend *on) {
  return attention(on, 0, 0, 256, PRECISION_FP32);
}
/* One for each width of the tensor cores' kernels. */
static struct outcome bf16_attention_64(const struct backend *on) {
  return attention(on, 300, 30, 64, PRECISION_BF16);
}
static struct outcome bf16_attention_80(const struct backend *on) {
  return attention(on, 0, 0, 80, PRECISION_BF16);
}
static struct outcome bf16_attention_128(const struct backend *on) {
  return attention(on, 0, 0, 128, PRECISION_BF16);
}
static struct outcome bf16_attention_256(const struct backend *on) {
  return attention(on, 512, 0, 256, PRECISION_BF16);
}

static struct outcome masks(const struct backend *on) {
  enum { ROWS = 1536, COLS = 576 };
  const int64_t count = ROWS * COLS, logits = mask_logit_count(ROWS, COLS);
  float *w = learn_normals(on, count, 1, 1), *dw = learn_normals(on, count, 2, 1);
  float *p = learn_normals(on, logits, 3, 0.05f), *soft = learn_normals(on, 12 * 5, 4, 0.1f);
  double *squares, *dtile;
  learn_must(on->alloc(8, (void **)&squares, &err), &err);
  learn_must(on->alloc(60 * 8, (void **)&dtile, &err), &err);
  struct outcome o = {{learn_normals(on, count, 5, 0), learn_normals(on, logits, 5, 0), NULL},
                      {count, logits, 0}};
  const struct mask_source s = {.rows = ROWS,
                                .cols = COLS,
                                .tile_rows = 128,
                                .tile_cols = 128,
                                .logits = p,
                                .tile_soft = soft,
                                .kappa = 60,
                                .tau = 1.5f,
                                .noise = true,
                                .key = {1, 2},
                                .draw = 3};
  const struct matrix_view view = {w, DTYPE_F32, ROWS, COLS};
  on->mask_sample(&s, view, DTYPE_F32, o.at[0], squares);
  on->mask_backward(&s, view, dw, (struct mask_decay){-0.5, squares}, false, o.at[1], dtile,
                    DTYPE_F32, o.at[0]);
  learn_must(on->wait(&err), &err);
  on->free(w);
  on->free(dw);
  on->free(p);
  on->free(soft);
  on->free(squares);
  on->free(dtile);
  return o;
}

static struct outcome entropy(const struct backend *on) {
  enum { ROWS = 64, VOCAB = 49152 };
  int32_t targets[ROWS];
  for (int i = 0; i < ROWS; i++) targets[i] = i == 5 ? -1 : i * 700;
  float *logits = learn_normals(on, (int64_t)ROWS * VOCAB, 1, 3);
  struct outcome o = {{learn_normals(on, ROWS, 2, 0), logits, NULL}, {ROWS, (int64_t)ROWS * VOCAB}};
  on->cross_entropy(logits, targets, ROWS, VOCAB, 0.5f, o.at[0], logits);
  learn_must(on->wait(&err), &err);
  return o;
}

static struct outcome products(const struct backend *on, enum precision precision) {
  const int64_t tokens = 500, rows = 1536, cols = 576;
  float *w = learn_normals(on, rows * cols, 1, 1), *x = learn_normals(on, tokens * cols, 2, 1);
  struct outcome o = {
      {learn_normals(on, tokens * rows, 3, 0), learn_normals(on, tokens * cols, 3, 0),
       learn_normals(on, rows * cols, 3, 0)},
      {tokens * rows, tokens * cols, rows * cols}};
  const struct linear_weight linear = {.dense = {w, DTYPE_F32, rows, cols}};
  on->linear_forward(&linear, NULL, x, tokens, precision, o.at[0]);
  on->linear_backward_input(&linear, o.at[0], tokens, precision, o.at[1], true);
  on->linear_backward_weight(o.at[0], x, tokens, rows, cols, precision, o.at[2], false);
  learn_must(on->wait(&err), &err);
  on->free(w);
  on->free(x);
  return o;
}
static struct outcome fp32_products(const struct backend *on) {
  return products(on, PRECISION_FP32);
}
static struct outcome bf16_products(const struct backend *on) {
  return products(on, PRECISION_BF16);
}

static int check_operations(const struct gpu_learn *run, FILE *ledger) {
  static const struct {
    const char *name;
    struct outcome (*run)(const struct backend *on);
    double most;
  } all[] = {{"attention head 128", plain_attention, 1e-4},
             {"attention window and softcap", windowed_attention, 1e-4},
             {"attention head 256", wide_attention, 1e-4},
             {"attention bf16 head 64", bf16_attention_64, 1e-2},
             {"attention bf16 head 80", bf16_attention_80, 1e-2},
             {"attention bf16 head 128", bf16_attention_128, 1e-2},
             {"attention bf16 head 256", bf16_attention_256, 1e-2},
             {"masks", masks, 1e-4},
             {"cross-entropy", entropy, 1e-4},
             {"products fp32", fp32_products, 1e-4},
             {"products bf16", bf16_products, 1e-2}};
  int failures = 0;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    struct outcome cpu = run_on(backend_cpu(), all[i].run), card = run_on(run->card, all[i].run);
    struct outcome again = run_on(run->card, all[i].run);
    for (int o = 0; o < OUTPUTS && cpu.at[o]; o++) {
      char where[32];
      snprintf(where, sizeof where, "output %d", o);
      failures += learn_report(run, ledger, all[i].name, where,
                               learn_relative(card.at[o], cpu.at[o], cpu.count[o]), all[i].most);
      const bool same = !memcmp(card.at[o], again.at[o], (size_t)card.count[o] * sizeof(float));
      failures += learn_report(run, ledger, all[i].name, "the same bits again", !same, 0);
      mem_free(cpu.at[o]);
      mem_free(card.at[o]);
      mem_free(again.at[o]);
    }
  }
  return failures;
}

/* --- whole steps on the small models of the tests --- */

struct text {
  struct corpus corpus;
  struct windows windows;
  int32_t ids[TEXT_TOKENS];
  int64_t starts[TEXT_TOKENS / WINDOW], train[TEXT_TOKENS / WINDOW];
};

static void make_text(struct text *t, int64_t vocab) {
  t->corpus = (struct corpus){.ids = {.items = t->ids, .count = TEXT_TOKENS}};
  for (int i = 0; i < TEXT_TOKENS; i++) t->ids[i] = (int32_t)((i * i + 3 * i) % vocab);
  for (int i = 0; i < TEXT_TOKENS / WINDOW; i++) t->train[i] = i, t->starts[i] = i * WINDOW;
  t->windows = (struct windows){&t->corpus, WINDOW, TEXT_TOKENS / WINDOW, t->starts};
}

static struct learn_settings step_settings(enum learn_mode mode, const struct backend *on) {
  struct learn_settings s;
  learn_settings_unset(&s, mode);
  s.sparsity = mode == LEARN_MASKLLM ? 0.5 : 0.35;
  s.tokens = 64 * WINDOW;
  s.window = WINDOW;
  s.batch = 4;
  s.micro = 2;
  s.tile_rows = s.tile_cols = 16;
  s.two_four = (struct learn_anneal){100, 500, 4, 0.05};
  s.precision = PRECISION_FP32;
  s.backend = on;
  learn_must(learn_settings_resolve(&s, WINDOW, &err), &err);
  return s;
}

static void fill_logits(struct learner *l) {
  for (int64_t i = 0; i < l->tiles.count; i++) l->tiles.logit[i] = 0.01f * (float)(i % 7 - 3);
  for (int i = 0; i < l->site_count; i++) {
    struct group_logits *g = &l->sites[i].groups;
    const int64_t count = mask_logit_count(g->rows, g->cols);
    float *host = must_alloc((size_t)count + 1, sizeof *host);
    const float logits[SPARSE_CANDIDATES] = {0.01f, -0.02f, 0.005f, 0, 0.015f, -0.01f};
    for (int64_t r = 0; r < g->rows; r++)
      for (int64_t k = 0; k < mask_row_groups(g->cols); k++)
        groups_set(host, g->cols, r, k, logits);
    if (g->logit) learn_must(groups_load(g, host, &err), &err);
    mem_free(host);
  }
}

/* The largest error over the linears' logit gradients, or that of the tiles' in tile mode. */
static double gradient_error(const struct learner *cpu, const struct learner *card) {
  double worst = 0;
  if (cpu->tiles.count)
    worst = learn_relative(card->tiles.gradient, cpu->tiles.gradient, cpu->tiles.count);
  for (int i = 0; i < cpu->site_count && cpu->sites[i].groups.gradient; i++) {
    const struct group_logits *a = &card->sites[i].groups, *b = &cpu->sites[i].groups;
    const int64_t count = mask_logit_count(a->rows, a->cols);
    float *here = must_alloc((size_t)count, sizeof *here);
    learn_must(card->ops->download(here, a->gradient, (size_t)count * sizeof *here, &err), &err);
    worst = fmax(worst, learn_relative(here, b->gradient, count));
    mem_free(here);
  }
  return worst;
}

static int check_step(const struct gpu_learn *run, FILE *ledger, const char *name,
                      enum learn_mode mode) {
  char path[128], where[64];
  struct model *model;
  struct learner l[2];
  struct step_result r[2];
  static struct text text;
  snprintf(path, sizeof path, "tests/golden/models/%s", name);
  snprintf(where, sizeof where, "%s %s", name, learn_mode_name[mode]);
  learn_must(model_open(&model, path, &err), &err);
  make_text(&text, model_config(model)->vocab_size);
  bool *skip = must_alloc((size_t)model_site_count(model), sizeof *skip);
  for (int i = 0; i < 2; i++) {
    const struct learn_settings s = step_settings(mode, i ? run->card : NULL);
    learn_must(learner_init(&l[i], model, &s, skip, &err), &err);
    fill_logits(&l[i]);
    learn_must(
        learner_gradient(&l[i], &text.windows, text.train, TEXT_TOKENS / WINDOW, &r[i], &err),
        &err);
  }
  int failures = learn_report(run, ledger, "step's loss", where,
                              fabs(r[1].loss - r[0].loss) / r[0].loss, 1e-3);
  failures +=
      learn_report(run, ledger, "step's gradients", where, gradient_error(&l[0], &l[1]), 1e-3);
  for (int i = 0; i < 2; i++) learner_free(&l[i]);
  mem_free(skip);
  model_close(model);
  return failures;
}

/* --- the same bits by other ways: moments that pass by, graphs --- */

/* All logits of the llama of the tests after some steps, as they lie. */
static uint8_t *logits_after(const struct gpu_learn *run, bool compact, bool offload, bool graphs,
                             size_t *bytes) {
  enum { WAY_STEPS = 5 };
  struct model *model;
  struct learner l;
  struct step_result r;
  static struct text text;
  struct learn_settings s = step_settings(LEARN_JOINT, run->card);
  s.compact = compact;
  s.offload = offload;
  s.graphs = graphs;
  learn_must(model_open(&model, "tests/golden/models/llama", &err), &err);
  make_text(&text, model_config(model)->vocab_size);
  bool *skip = must_alloc((size_t)model_site_count(model), sizeof *skip);
  learn_must(learner_init(&l, model, &s, skip, &err), &err);
  fill_logits(&l);
  for (int i = 0; i < WAY_STEPS; i++)
    learn_must(learner_step(&l, &text.windows, text.train, TEXT_TOKENS / WINDOW, &r, &err), &err);
  *bytes = 0;
  for (int i = 0; i < l.site_count; i++)
    *bytes += groups_bytes(l.sites[i].mask.rows, l.sites[i].mask.cols, compact).logits;
  uint8_t *all = must_alloc(*bytes, 1), *at = all;
  for (int i = 0; i < l.site_count; i++) {
    const size_t here = groups_bytes(l.sites[i].mask.rows, l.sites[i].mask.cols, compact).logits;
    learn_must(run->card->download(at, l.sites[i].groups.logit, here, &err), &err);
    at += here;
  }
  learner_free(&l);
  mem_free(skip);
  model_close(model);
  return all;
}

static int check_ways(const struct gpu_learn *run, FILE *ledger) {
  static const struct {
    const char *name;
    bool compact, offload, graphs;
  } ways[] = {{"offload", false, true, false},
              {"graphs", false, false, true},
              {"compact again", true, false, false},
              {"compact, offload, graphs", true, true, true}};
  int failures = 0;
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    size_t bytes, same_bytes;
    uint8_t *plain = logits_after(run, ways[i].compact, false, false, &bytes);
    uint8_t *other =
        logits_after(run, ways[i].compact, ways[i].offload, ways[i].graphs, &same_bytes);
    const bool differ = bytes != same_bytes || memcmp(plain, other, bytes) != 0;
    failures += learn_report(run, ledger, "the plain way's bits", ways[i].name, differ, 0);
    mem_free(plain);
    mem_free(other);
  }
  return failures;
}

static int check_steps(const struct gpu_learn *run, FILE *ledger) {
  static const char *const names[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};
  int failures = 0;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    for (int mode = 0; mode < LEARN_MODES; mode++)
      failures += check_step(run, ledger, names[i], (enum learn_mode)mode);
  return failures;
}

/* --- the command --- */

int main(int argc, char **argv) {
  struct gpu_learn run = {.commit = argc > 2 ? argv[2] : "unknown"};
  char date[16];
  const time_t now = time(NULL);
  if (argc < 4) {
    fprintf(stderr, "usage: gpu_learn FOLDER COMMIT SECONDS [cpu]\n");
    return STATUS_USAGE;
  }
  if (backend_open(&run.card, argc > 4 ? argv[4] : "cuda", &err)) {
    fprintf(stderr, "gpu_learn: %s\n", err.text);
    return err.status == STATUS_REFUSED ? EXIT_NO_CARD : EXIT_FAILURE;
  }
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
  run.date = date;
  run.deadline_s = clock_seconds() + atof(argv[3]);
  FILE *checks = gpu_open_ledger("gpu_learn", argv[1], "gpu_learn_checks.csv");
  fprintf(checks, "date,commit,what,where,error,most,right\n");
  int failures = check_operations(&run, checks) + check_steps(&run, checks);
  if (!run.card->is_host) /* the CPU has one way */
    failures += check_ways(&run, checks) + gpu_learn_check_prune(&run, checks);
  fclose(checks);
  printf("learning: %s\n",
         failures ? "WRONG, see gpu_learn_checks.csv" : "every operation and step is right");
  if (!failures && !run.card->is_host) {
    FILE *times = gpu_open_ledger("gpu_learn", argv[1], "gpu_learn_times.csv");
    gpu_learn_time(&run, times);
    fclose(times);
  }
  backend_close(run.card);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
