/* The timing half of gpu_learn: kernels at the shapes of LLaMA-3.1 8B, with the bytes that
 * docs/GPU.md counts for them, and steps of models of random weights. */
#include <math.h>

#include "base/clock.h"
#include "base/mem.h"
#include "gpu_learn.h"
#include "learn/learner.h"
#include "model/synthetic.h"

enum { ROWS = 14336, COLS = 4096, TOKENS = 4096, REPEATS = 5, STEPS = 4 };

static struct error err;

/* What a kernel works on: gate of an 8B block, and its tokens. */
struct bench {
  const struct backend *card;
  float *w, *dw, *logits, *gradient, *first, *second, *soft;
  uint16_t *masked;
  double *squares, *dtile;
  uint8_t *codes;
  uint64_t *flips;
  float *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv;
};

static void *room(const struct backend *card, size_t bytes) {
  void *memory;
  learn_must(card->alloc(bytes, &memory, &err), &err);
  return memory;
}

static struct mask_source source(const struct bench *b) {
  return (struct mask_source){.rows = ROWS,
                              .cols = COLS,
                              .tile_rows = 128,
                              .tile_cols = 128,
                              .logits = b->logits,
                              .tile_soft = b->soft,
                              .kappa = 100,
                              .tau = 1,
                              .noise = true};
}

static const struct attention_shape heads = {1,     TOKENS, TOKENS,        0, 32, 8, 128, 0,
                                             0.09f, 0,      PRECISION_BF16};

static void sample(const struct bench *b) {
  const struct mask_source s = source(b);
  b->card->mask_sample(&s, (struct matrix_view){b->w, DTYPE_BF16, ROWS, COLS}, DTYPE_BF16,
                       b->masked, b->squares);
}
static void backward(const struct bench *b) {
  const struct mask_source s = source(b);
  b->card->mask_backward(&s, (struct matrix_view){b->w, DTYPE_BF16, ROWS, COLS}, b->dw,
                         (struct mask_decay){0, NULL}, false, b->gradient, b->dtile, DTYPE_BF16,
                         b->masked);
}
static void squares(const struct bench *b) {
  b->card->mask_gradient_squares(b->gradient, DTYPE_F32, ROWS, COLS, b->squares);
}
static void update(const struct bench *b) {
  const struct mask_adamw a = {1e-3f, 0.9f, 0.95f, 1e-8f, 0, 1, 10};
  b->card->mask_adamw_step(&a, ROWS, COLS, b->gradient, b->logits, b->first, b->second, b->codes,
                           b->flips);
}
static void attend(const struct bench *b) {
  b->card->attention_forward(&heads, b->q, b->k, b->v, b->out, b->lse);
}
static void attend_back(const struct bench *b) {
  b->card->attention_backward(&heads, b->q, b->k, b->v, b->out, b->lse, b->dout, b->dq, b->dk,
                              b->dv);
}
static void norm(const struct bench *b) {
  b->card->rmsnorm_forward(b->q, b->soft, false, 1e-5, TOKENS, COLS, b->out, NULL);
}

/* Bytes a weight of masks: docs/GPU.md; flops of attention count the visible half. */
static const struct {
  const char *name;
  void (*run)(const struct bench *b);
  double bytes, flops;
} kernels[] = {
    {"mask_sample", sample, (5.0 + 2 + 2) * ROWS *COLS, 0},
    {"mask_backward", backward, (5.0 + 2 + 4 + 2 + 5) * ROWS *COLS, 0},
    {"mask_gradient_squares", squares, 5.0 * ROWS *COLS, 0},
    {"mask_adamw", update, (5.0 + 10 + 10 + 12 + 0.25) * ROWS *COLS, 0},
    {"rmsnorm", norm, 8.0 * TOKENS *COLS, 0},
    {"attention", attend, 0, 2.0 * TOKENS *TOKENS * 4096},
    {"attention_backward", attend_back, 0, 7.0 * TOKENS *TOKENS * 4096},
};

static struct bench make(const struct backend *card) {
  const int64_t q = (int64_t)TOKENS * 4096, kv = (int64_t)TOKENS * 1024;
  const size_t five = (size_t)mask_logit_count(ROWS, COLS) * 4;
  return (struct bench){.card = card,
                        .w = learn_normals(card, (int64_t)ROWS * COLS / 2, 1, 1),
                        .dw = room(card, (size_t)ROWS * COLS * 4),
                        .logits = room(card, five),
                        .gradient = room(card, five),
                        .first = room(card, five),
                        .second = room(card, (size_t)mask_second_count(ROWS, COLS) * 4),
                        .soft = learn_normals(card, COLS, 2, 0.1f),
                        .masked = room(card, (size_t)ROWS * COLS * 2),
                        .squares = room(card, 8),
                        .dtile = room(card, 8 * 112 * 32),
                        .codes = room(card, (size_t)ROWS * COLS / 8),
                        .flips = room(card, 8),
                        .q = learn_normals(card, q, 3, 1),
                        .k = learn_normals(card, kv, 4, 1),
                        .v = learn_normals(card, kv, 5, 1),
                        .out = room(card, (size_t)q * 4),
                        .lse = room(card, (size_t)TOKENS * 32 * 4),
                        .dout = learn_normals(card, q, 6, 1),
                        .dq = room(card, (size_t)q * 4),
                        .dk = room(card, (size_t)kv * 4),
                        .dv = room(card, (size_t)kv * 4)};
}

static void release(const struct bench *b) {
  void *const all[] = {b->w,      b->dw,      b->logits, b->gradient, b->first, b->second, b->soft,
                       b->masked, b->squares, b->dtile,  b->codes,    b->flips, b->q,      b->k,
                       b->v,      b->out,     b->lse,    b->dout,     b->dq,    b->dk,     b->dv};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) b->card->free(all[i]);
}

static void time_kernels(const struct gpu_learn *run, FILE *ledger) {
  const struct bench b = make(run->card);
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    double best_s = INFINITY;
    for (int repeat = 0; repeat < REPEATS + 1; repeat++) {
      learn_must(run->card->wait(&err), &err);
      const double start = clock_seconds();
      kernels[i].run(&b);
      learn_must(run->card->wait(&err), &err);
      const double spent = clock_seconds() - start;
      if (repeat && spent < best_s) best_s = spent; /* the first loads the kernel */
    }
    fprintf(ledger, "%s,%s,kernel,%s,8B gate or 4096 tokens,,%.4f,%.1f,%.2f,\n", run->date,
            run->commit, kernels[i].name, best_s * 1e3, kernels[i].bytes / best_s / 1e9,
            kernels[i].flops / best_s / 1e12);
    fflush(ledger);
  }
  release(&b);
}

/* --- steps --- */

static const struct {
  const char *shape;
  int layers;
  int64_t vocabulary, window, batch;
} models[] = {{"smollm2-135m", 30, 49152, 512, 8},
              {"qwen2.5-0.5b", 24, 151936, 1024, 4},
              {"llama3.2-1b", 16, 128256, 2048, 2}};

/* Seconds of a step, the first left out; 0 when the model does not fit. */
static double time_steps(const struct gpu_learn *run, const struct model *model,
                         const struct learn_settings *s, struct error *why) {
  struct learner l;
  struct corpus corpus = {.ids = {.count = (size_t)(s->batch * s->window)}};
  int64_t starts[16], train[16];
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  corpus.ids.items = mem_alloc(corpus.ids.count, sizeof *corpus.ids.items, &err);
  learn_must(skip && corpus.ids.items ? STATUS_OK : STATUS_FAILED, &err);
  for (size_t i = 0; i < corpus.ids.count; i++)
    corpus.ids.items[i] =
        (int32_t)((i * 7919 + i / 64) % (uint64_t)model_config(model)->vocab_size);
  for (int i = 0; i < s->batch; i++) train[i] = i, starts[i] = i * s->window;
  const struct windows windows = {&corpus, s->window, s->batch, starts};
  enum status status = learner_init(&l, model, s, skip, why);
  double best_s = INFINITY;
  for (int i = 0; !status && i < STEPS; i++) {
    struct step_result r;
    const double start = clock_seconds();
    status = learner_step(&l, &windows, train, s->batch, &r, why);
    if (i && clock_seconds() - start < best_s) best_s = clock_seconds() - start;
  }
  if (!status) learner_free(&l);
  mem_free(skip);
  mem_free(corpus.ids.items);
  return status ? 0 : best_s;
}

/* What is timed of each model. */
static const struct {
  const char *name;
  enum learn_mode mode;
  enum precision precision;
  bool compact, offload, graphs;
} ways[] = {{"joint", LEARN_JOINT, PRECISION_FP32, false, false, false},
            {"joint", LEARN_JOINT, PRECISION_BF16, false, false, false},
            {"joint graphs", LEARN_JOINT, PRECISION_BF16, false, false, true},
            {"joint compact", LEARN_JOINT, PRECISION_BF16, true, false, false},
            {"joint offload", LEARN_JOINT, PRECISION_BF16, false, true, false},
            {"tile", LEARN_TILE, PRECISION_FP32, false, false, false},
            {"tile", LEARN_TILE, PRECISION_BF16, false, false, false},
            {"tile graphs", LEARN_TILE, PRECISION_BF16, false, false, true}};

static void time_way(const struct gpu_learn *run, const struct model *model, size_t index,
                     size_t way, FILE *ledger) {
  struct learn_settings s;
  struct error why = {0};
  learn_settings_unset(&s, ways[way].mode);
  s.sparsity = 0.45;
  s.window = models[index].window;
  s.batch = s.micro = models[index].batch;
  s.tokens = 100 * s.window * s.batch;
  s.tile_rows = s.tile_cols = 128;
  s.precision = ways[way].precision;
  s.compact = ways[way].compact;
  s.offload = ways[way].offload;
  s.graphs = ways[way].graphs;
  s.backend = run->card;
  learn_must(learn_settings_resolve(&s, 8192, &err), &err);
  const double seconds = time_steps(run, model, &s, &why);
  fprintf(ledger, "%s,%s,step,%s,%s %s,%lld,%.4f,,,%.1f\n", run->date, run->commit, ways[way].name,
          model_path(model), precision_name[s.precision], (long long)(s.window * s.batch),
          seconds * 1e3, seconds > 0 ? (double)(s.window * s.batch) / seconds : 0);
  if (seconds == 0) printf("not timed: %s\n", why.text);
  fflush(ledger);
}

static void time_model(const struct gpu_learn *run, size_t index, FILE *ledger) {
  struct synthetic_model request = {.shape = models[index].shape,
                                    .layers = models[index].layers,
                                    .dtype = DTYPE_BF16,
                                    .density = 1,
                                    .seed = 1,
                                    .vocabulary = models[index].vocabulary};
  struct model *model;
  learn_must(synthetic_settle(&request, &err), &err);
  learn_must(synthetic_open(&model, &request, &err), &err);
  for (size_t way = 0; way < sizeof ways / sizeof *ways; way++)
    if (clock_seconds() <= run->deadline_s) time_way(run, model, index, way, ledger);
  model_close(model);
  printf("timed: steps of %s\n", models[index].shape);
}

void gpu_learn_time(const struct gpu_learn *run, FILE *ledger) {
  fprintf(ledger, "date,commit,kind,what,where,tokens,ms,gb_s,tflop_s,tokens_per_s\n");
  time_kernels(run, ledger);
  gpu_learn_time_prune(run, ledger);
  for (size_t i = 0; i < sizeof models / sizeof *models; i++)
    if (clock_seconds() < run->deadline_s) time_model(run, i, ledger);
}
