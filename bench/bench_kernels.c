/* How fast the kernels are on this machine, each beside what bounds it: multiply-adds beside the
 * peak that a loop of nothing else reaches, streams beside a plain read of as many bytes.
 * Usage: bench_kernels [threads [part ...]]; TSR_ISA lowers the instruction set. Parts: gemm
 * bf16 attention cache mask rows; rate alone gives the best products of a learning step, the
 * precision's name, GFLOP/s and the peak, a line each. Every time is the least of several runs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/distill.h"
#include "kernel/linear.h"
#include "kernel/mask_ops.h"
#include "kernel/ops.h"
#include "kernel/select.h"

static void *must_alloc(size_t count, size_t size) {
  struct error err;
  void *p = mem_alloc(count, size, &err);
  if (!p) {
    fprintf(stderr, "bench_kernels: %s\n", err.text);
    exit(1);
  }
  return p;
}

static float *random_floats(size_t count) {
  float *p = must_alloc(count, 4);
  uint32_t x = 12345;
  for (size_t i = 0; i < count; i++) {
    x = x * 1664525u + 1013904223u;
    p[i] = (float)(int32_t)x * (1.0f / 2147483648.0f);
  }
  return p;
}

/* One thread is timed by the processor time it gets, so that a busy machine disturbs little. */
static double now_seconds(void) {
  if (parallel_threads() > 1) return clock_seconds();
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Least time of a run, over half a second and at least five runs. */
static double best_seconds(void (*fn)(void *), void *ctx) {
  double best = INFINITY, begin = now_seconds();
  for (int run = 0; run < 5 || now_seconds() - begin < 0.5; run++) {
    double start = now_seconds();
    fn(ctx);
    double took = now_seconds() - start;
    if (took < best) best = took;
  }
  return best;
}

/* --- what bounds --- */

/* A run is milliseconds long, beside which starting the threads is nothing, and a tile's sums are
 * so long that loading and storing it is little. Operands stay in the first-level cache. */
enum { PEAK_K = 192, PEAK_TURNS = 8000, BF16_PEAK_K = 256, BF16_PEAK_TURNS = 4000 };

struct peak {
  float *a, *b, *c;
};
static void peak_item(void *ctx, int64_t item, int worker) {
  struct peak *p = ctx;
  const struct kernel_table *table = kernel_table();
  (void)item;
  for (int i = 0; i < PEAK_TURNS; i++)
    table->tile(PEAK_K, p->a, 1, table->tile_rows, p->b, 1, p->c + worker * 1024, table->tile_cols,
                table->tile_rows, table->tile_cols, false);
}
static void peak_run(void *ctx) { parallel_for(parallel_threads(), peak_item, ctx); }

static double peak_gflops(void) {
  const struct kernel_table *table = kernel_table();
  struct peak p = {random_floats((size_t)(PEAK_K * table->tile_rows)),
                   random_floats((size_t)(PEAK_K * table->tile_cols)),
                   random_floats(1024 * PARALLEL_THREADS_MAX)};
  double seconds = best_seconds(peak_run, &p);
  mem_free(p.a), mem_free(p.b), mem_free(p.c);
  return 2e-9 * PEAK_K * PEAK_TURNS * table->tile_rows * table->tile_cols * parallel_threads() /
         seconds;
}

struct bf16_peak {
  uint16_t *a;
  uint32_t *b;
  float *c;
};
static void bf16_peak_item(void *ctx, int64_t item, int worker) {
  struct bf16_peak *p = ctx;
  (void)item;
  struct bf16_block block = {.rows = 32,
                             .cols = 32,
                             .k = BF16_PEAK_K,
                             .a = p->a,
                             .panel_step = BF16_SIDE * BF16_PEAK_K,
                             .b = p->b,
                             .strip_step = BF16_SIDE / 2 * BF16_PEAK_K,
                             .alpha = 1,
                             .c = p->c + worker * 1024,
                             .ldc = 32};
  for (int i = 0; i < BF16_PEAK_TURNS; i++) kernel_table()->bf16.block(&block);
}
static void bf16_peak_run(void *ctx) { parallel_for(parallel_threads(), bf16_peak_item, ctx); }

static double bf16_peak_gflops(void) {
  struct bf16_peak p = {must_alloc(32 * BF16_PEAK_K, 2), must_alloc(32 * BF16_PEAK_K, 2),
                        must_alloc(1024 * PARALLEL_THREADS_MAX, 4)};
  double seconds = best_seconds(bf16_peak_run, &p);
  mem_free(p.a), mem_free(p.b), mem_free(p.c);
  return 2e-9 * 32 * 32 * BF16_PEAK_K * BF16_PEAK_TURNS * parallel_threads() / seconds;
}

struct stream {
  const float *x;
  int64_t count, per_item;
  double sum[4096];
};
static void stream_item(void *ctx, int64_t item, int worker) {
  struct stream *s = ctx;
  (void)worker;
  s->sum[item] =
      kernel_table()->dot(s->x + item * s->per_item, s->x + item * s->per_item, s->per_item);
}
static void stream_run(void *ctx) {
  struct stream *s = ctx;
  parallel_for(s->count / s->per_item, stream_item, s);
}
static double read_gbytes(void) {
  struct stream *s = must_alloc(1, sizeof *s);
  s->count = 64 << 20;
  s->per_item = 1 << 15;
  s->x = random_floats((size_t)s->count);
  double seconds = best_seconds(stream_run, s);
  double rate = 4e-9 * (double)s->count / seconds;
  mem_free((void *)s->x);
  mem_free(s);
  return rate;
}

/* --- products --- */

struct shape {
  const char *what;
  int64_t tokens, rows, cols;
};
struct products {
  struct linear_weight w;
  const float *x, *dy;
  float *y, *dx, *dw;
  int64_t tokens;
  enum precision precision;
};
static void run_forward(void *ctx) {
  struct products *p = ctx;
  linear_forward(&p->w, NULL, p->x, p->tokens, p->precision, p->y);
}
static void run_input(void *ctx) {
  struct products *p = ctx;
  linear_backward_input(&p->w, p->dy, p->tokens, p->precision, p->dx, false);
}
static void run_weight(void *ctx) {
  struct products *p = ctx;
  linear_backward_weight(p->dy, p->x, p->tokens, p->w.dense.rows, p->w.dense.cols, p->precision,
                         p->dw, false);
}

static void bench_gemm(enum precision precision, double peak) {
  static const struct shape shapes[] = {{"q/o", 256, 576, 576},       {"k/v", 256, 192, 576},
                                        {"gate/up", 256, 1536, 576},  {"down", 256, 576, 1536},
                                        {"q/o", 1024, 576, 576},      {"k/v", 1024, 192, 576},
                                        {"gate/up", 1024, 1536, 576}, {"down", 1024, 576, 1536},
                                        {"lm_head", 256, 49152, 576}, {"large", 1024, 2048, 2048}};
  printf("%s, peak %.1f GFLOP/s\n%-8s %6s %6s %6s  %22s %22s %22s\n", precision_name[precision],
         peak, "product", "tokens", "rows", "cols", "forward GFLOP/s", "dx GFLOP/s", "dw GFLOP/s");
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    const struct shape *s = &shapes[i];
    float *w = random_floats((size_t)(s->rows * s->cols));
    float *x = random_floats((size_t)(s->tokens * s->cols));
    float *dy = random_floats((size_t)(s->tokens * s->rows));
    float *y = must_alloc((size_t)(s->tokens * s->rows), 4);
    float *dx = must_alloc((size_t)(s->tokens * s->cols), 4);
    float *dw = must_alloc((size_t)(s->rows * s->cols), 4);
    struct products p = {
        {.dense = {w, DTYPE_F32, s->rows, s->cols}}, x, dy, y, dx, dw, s->tokens, precision};
    double work = 2e-9 * (double)(s->tokens * s->rows * s->cols);
    double rate[3] = {work / best_seconds(run_forward, &p), work / best_seconds(run_input, &p),
                      work / best_seconds(run_weight, &p)};
    printf("%-8s %6ld %6ld %6ld ", s->what, (long)s->tokens, (long)s->rows, (long)s->cols);
    for (int j = 0; j < 3; j++) printf("  %10.1f (%4.1f %%)  ", rate[j], 100 * rate[j] / peak);
    printf("\n");
    void *all[] = {w, x, dy, y, dx, dw};
    for (int j = 0; j < 6; j++) mem_free(all[j]);
  }
}

/* Forward products of a learning step, the best of three shapes: for bench/learn_speed.py. */
static void bench_rate(enum precision precision, double peak) {
  static const int64_t shapes[][2] = {{1536, 576}, {576, 1536}, {2048, 2048}};
  enum { TOKENS = 1024 };
  double best = 0;
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    const int64_t rows = shapes[i][0], cols = shapes[i][1];
    float *w = random_floats((size_t)(rows * cols)), *x = random_floats((size_t)(TOKENS * cols));
    float *y = must_alloc((size_t)(TOKENS * rows), 4);
    struct products p = {
        {.dense = {w, DTYPE_F32, rows, cols}}, x, NULL, y, NULL, NULL, TOKENS, precision};
    double rate = 2e-9 * (double)(TOKENS * rows * cols) / best_seconds(run_forward, &p);
    if (rate > best) best = rate;
    mem_free(w), mem_free(x), mem_free(y);
  }
  printf("rate %s %.1f %.1f\n", precision_name[precision], best, peak);
}

/* More elements than caches hold, as rows of SmolLM2-135M's. */
enum { ROWS = 8192, COLS = 1536, VOCAB = 49152, LOGIT_ROWS = ROWS / (VOCAB / COLS) };

/* --- soft masks --- */

struct masks {
  struct mask_source s;
  struct matrix_view w;
  struct mask_adamw adamw;
  float *logits, *first, *second, *gradient, *out, *tile_soft;
  const float *dw;
  double *dtile;
  uint8_t *codes;
};
static void run_sample(void *ctx) {
  struct masks *m = ctx;
  mask_sample(&m->s, m->w, DTYPE_F32, m->out);
}
static void run_mask_backward(void *ctx) {
  struct masks *m = ctx;
  mask_backward(&m->s, m->w, m->dw, 0.1f, false, m->gradient, m->dtile, DTYPE_F32, NULL);
}
static void run_squares(void *ctx) {
  struct masks *m = ctx;
  mask_gradient_squares(m->gradient, m->s.rows, m->s.cols);
}
static void run_adamw(void *ctx) {
  struct masks *m = ctx;
  mask_adamw_step(&m->adamw, m->s.rows, m->s.cols, m->gradient, m->logits, m->first, m->second,
                  m->codes);
}
static void run_harden(void *ctx) {
  struct masks *m = ctx;
  mask_harden(m->logits, m->s.rows, m->s.cols, m->codes);
}

/* Linears of SmolLM2-135M, more of them in one matrix than caches hold. `bytes` is what a pass
 * moves per weight, bf16 weights and fp32 everything else. */
static void bench_mask(double read) {
  enum { TILE = 128 };
  static const struct {
    const char *what;
    void (*run)(void *);
    double bytes;
    bool noise;
  } passes[] = {{"sample", run_sample, 2 + 5 + 4, true},
                {"sample, no noise", run_sample, 2 + 5 + 4, false},
                {"backward", run_mask_backward, 2 + 5 + 4 + 5, true},
                {"gradient squares", run_squares, 5, true},
                {"AdamW, harden", run_adamw, 5 + 2 * (5 + 5 + 6), true},
                {"harden", run_harden, 5 + 0.125, true}};
  size_t count = (size_t)mask_logit_count(ROWS, COLS), weights = (size_t)ROWS * COLS;
  struct masks m = {.adamw = {1e-3f, 0.9f, 0.95f, 1e-8f, 0, 1, 10}};
  uint16_t *w = must_alloc(weights, 2);
  float *dw = random_floats(weights);
  dtype_from_f32(DTYPE_BF16, dw, (int64_t)weights, w);
  m.w = (struct matrix_view){w, DTYPE_BF16, ROWS, COLS};
  m.dw = dw;
  m.out = must_alloc(weights, 4);
  m.logits = random_floats(count);
  m.first = must_alloc(count, 4);
  m.second = must_alloc((size_t)mask_second_count(ROWS, COLS), 4);
  m.gradient = must_alloc(count, 4);
  m.tile_soft = must_alloc(weights / TILE / TILE, 4);
  m.dtile = must_alloc(weights / TILE / TILE, 8);
  m.codes = must_alloc(weights / 8, 1);
  m.s = (struct mask_source){.rows = ROWS,
                             .cols = COLS,
                             .tile_rows = TILE,
                             .tile_cols = TILE,
                             .logits = m.logits,
                             .logit_dtype = DTYPE_F32,
                             .tile_soft = m.tile_soft,
                             .kappa = 100,
                             .tau = 4,
                             .noise = true,
                             .key = {1, 2},
                             .tensor = 3,
                             .draw = 4};
  printf("%-18s %10s %8s %14s\n", "masks", "ns/weight", "GB/s", "of a read");
  for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++) {
    m.s.noise = passes[i].noise;
    double each = best_seconds(passes[i].run, &m) * 1e9 / (double)weights;
    double rate = passes[i].bytes / each;
    printf("%-18s %10.3f %8.1f %12.1f %%\n", passes[i].what, each, rate, 100 * rate / read);
  }
  void *all[] = {w,        dw,         m.out,       m.logits, m.first,
                 m.second, m.gradient, m.tile_soft, m.dtile,  m.codes};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
}

/* --- attention --- */

struct attending {
  struct attention_shape s;
  const float *q, *k, *v, *dout;
  float *out, *lse, *dq, *dk, *dv;
};
static void run_attention(void *ctx) {
  struct attending *a = ctx;
  attention_forward(&a->s, a->q, a->k, a->v, a->out, a->lse);
}
static void run_attention_backward(void *ctx) {
  struct attending *a = ctx;
  attention_backward(&a->s, a->q, a->k, a->v, a->out, a->lse, a->dout, a->dq, a->dk, a->dv);
}

/* What is counted are the pairs that a query sees: 4 operations forward and 10 backward for each
 * element of a head. */
static void bench_attention(enum precision precision, double peak) {
  static const struct attention_shape shapes[] = {
      {.sequences = 2, .q_length = 512, .heads = 9, .kv_heads = 3, .head_dim = 64},
      {.sequences = 1, .q_length = 2048, .heads = 9, .kv_heads = 3, .head_dim = 64},
      {.sequences = 1, .q_length = 1024, .heads = 32, .kv_heads = 8, .head_dim = 128},
      {.sequences = 1, .q_length = 1024, .heads = 32, .kv_heads = 32, .head_dim = 128}};
  printf("%s, peak %.1f GFLOP/s\n%-12s %8s %6s %6s %6s  %22s %22s\n", precision_name[precision],
         peak, "attention", "windows", "tokens", "heads", "dim", "forward GFLOP/s",
         "backward GFLOP/s");
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    struct attending a = {.s = shapes[i]};
    struct attention_shape *s = &a.s;
    s->kv_length = s->q_length, s->scale = 0.125f, s->precision = precision;
    size_t tokens = (size_t)(s->sequences * s->q_length);
    size_t q = tokens * (size_t)(s->heads * s->head_dim);
    size_t kv = tokens * (size_t)(s->kv_heads * s->head_dim);
    a.q = random_floats(q), a.dout = random_floats(q);
    a.k = random_floats(kv), a.v = random_floats(kv);
    a.out = must_alloc(q, 4), a.dq = must_alloc(q, 4);
    a.dk = must_alloc(kv, 4), a.dv = must_alloc(kv, 4);
    a.lse = must_alloc(tokens * (size_t)s->heads, 4);
    double pairs = 0.5 * (double)(s->sequences * s->heads * s->q_length * (s->q_length + 1));
    double forward = 4e-9 * pairs * (double)s->head_dim / best_seconds(run_attention, &a);
    double backward =
        10e-9 * pairs * (double)s->head_dim / best_seconds(run_attention_backward, &a);
    printf("%-12s %8ld %6ld %3ld/%-3ld %5ld  %10.1f (%4.1f %%)   %10.1f (%4.1f %%)\n", "",
           (long)s->sequences, (long)s->q_length, (long)s->heads, (long)s->kv_heads,
           (long)s->head_dim, forward, 100 * forward / peak, backward, 100 * backward / peak);
    const void *all[] = {a.q, a.dout, a.k, a.v, a.out, a.dq, a.dk, a.dv, a.lse};
    for (int j = 0; j < 9; j++) mem_free((void *)all[j]);
  }
}

/* A decoded token's attention in `layers` layers: more of them than caches hold. */
struct decoding {
  struct attention_shape s;
  struct kv_cache *caches; /* (layers, sequences) */
  int64_t layers, *starts;
  const float *q;
  float *out, *partials;
};
static void run_decoding(void *ctx) {
  struct decoding *d = ctx;
  for (int64_t i = 0; i < d->layers; i++)
    attention_cached(&d->s, d->caches + i * d->s.sequences, d->starts, d->q, d->out, d->partials);
}

static void bench_cache(double read) {
  static const struct {
    int64_t sequences, length, heads, kv_heads, head_dim;
  } cases[] = {
      {1, 2048, 9, 3, 64}, {16, 512, 9, 3, 64}, {1, 4096, 32, 8, 128}, {1, 4096, 32, 32, 128}};
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8};
  enum { BYTES = 1 << 28 };
  printf("%-6s %6s %9s %8s %4s %10s %12s\n", "cache", "texts", "positions", "heads", "dim", "GB/s",
         "of a read");
  char *memory = must_alloc(BYTES + (BYTES >> 1), 1);
  memset(memory, 0x3c, BYTES + (BYTES >> 1)); /* numbers of common size */
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (int t = 0; t < 4; t++) {
      struct kv_cache shape;
      size_t bytes;
      int64_t sequences = cases[i].sequences, length = cases[i].length;
      kv_cache_shape(&shape, dtypes[t], cases[i].kv_heads, cases[i].head_dim, length, &bytes);
      struct decoding d = {.s = {.sequences = sequences,
                                 .q_length = 1,
                                 .heads = cases[i].heads,
                                 .kv_heads = cases[i].kv_heads,
                                 .head_dim = cases[i].head_dim,
                                 .scale = 0.125f}};
      d.layers = (int64_t)(BYTES / bytes) / sequences;
      d.caches = must_alloc((size_t)(d.layers * sequences), sizeof *d.caches);
      d.starts = must_alloc((size_t)sequences, sizeof *d.starts);
      for (int64_t j = 0; j < d.layers * sequences; j++)
        d.caches[j] = kv_cache_at(&shape, memory + (size_t)j * bytes);
      for (int64_t j = 0; j < sequences; j++) d.starts[j] = length - 1;
      d.q = random_floats((size_t)(sequences * d.s.heads * d.s.head_dim));
      d.out = must_alloc((size_t)(sequences * d.s.heads * d.s.head_dim), 4);
      d.partials = must_alloc(attention_cached_floats(&d.s, length), 4);
      double total = (double)(kv_cache_position_bytes(&shape) * length * d.layers * sequences);
      double rate = 1e-9 * total / best_seconds(run_decoding, &d);
      printf("%-6s %6ld %9ld %4ld/%-3ld %4ld %10.1f %10.1f %%\n", dtype_traits(dtypes[t])->name,
             (long)sequences, (long)length, (long)d.s.heads, (long)d.s.kv_heads, (long)d.s.head_dim,
             rate, 100 * rate / read);
      const void *all[] = {d.caches, d.starts, d.q, d.out, d.partials};
      for (int j = 0; j < 5; j++) mem_free((void *)all[j]);
    }
  mem_free(memory);
}

/* --- what works row by row --- */

struct rowwise {
  float *a, *b, *c, *d, *e; /* (ROWS, COLS), or (LOGIT_ROWS, VOCAB) */
  int32_t *targets;
};

static void run_rmsnorm(void *ctx) {
  struct rowwise *r = ctx;
  rmsnorm_forward(r->a, r->e, false, 1e-5, ROWS, COLS, r->b, NULL);
}
static void run_glu(void *ctx) {
  struct rowwise *r = ctx;
  glu_forward(false, r->a, r->b, (int64_t)ROWS * COLS, r->c);
}
static void run_glu_backward(void *ctx) {
  struct rowwise *r = ctx;
  glu_backward(false, r->a, r->b, r->c, (int64_t)ROWS * COLS, r->d, r->e);
}
static void run_add(void *ctx) {
  struct rowwise *r = ctx;
  add_inplace(r->c, r->d, (int64_t)ROWS * COLS);
}
static void run_cross_entropy(void *ctx) {
  struct rowwise *r = ctx;
  cross_entropy(r->a, r->targets, LOGIT_ROWS, VOCAB, 1, r->e, r->c);
}
static void run_distill(void *ctx) {
  struct rowwise *r = ctx;
  distill_loss(r->a, r->b, r->targets, LOGIT_ROWS, VOCAB, (struct distill_rule){.weight = 0.5}, 1,
               r->e, r->d, r->c);
}

/* `floats` is how many a pass reads and writes of each element, once. */
static void bench_rows(double read) {
  static const struct {
    const char *what;
    void (*run)(void *);
    int floats;
  } passes[] = {{"rmsnorm", run_rmsnorm, 2},
                {"glu", run_glu, 3},
                {"glu, backward", run_glu_backward, 5},
                {"add", run_add, 3},
                {"cross-entropy", run_cross_entropy, 2},
                {"distillation", run_distill, 3}};
  const size_t count = (size_t)ROWS * COLS;
  struct rowwise r = {random_floats(count), random_floats(count),
                      random_floats(count), random_floats(count),
                      random_floats(count), must_alloc(LOGIT_ROWS, sizeof *r.targets)};
  printf("%-18s %10s %8s %14s\n", "rows", "ns/element", "GB/s", "of a read");
  for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++) {
    double each = best_seconds(passes[i].run, &r) * 1e9 / (double)count;
    double rate = 4.0 * passes[i].floats / each;
    printf("%-18s %10.3f %8.1f %12.1f %%\n", passes[i].what, each, rate, 100 * rate / read);
  }
  void *all[] = {r.a, r.b, r.c, r.d, r.e, r.targets};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
}

static bool wanted(int argc, char **argv, const char *part) {
  if (argc <= 2) return true;
  for (int i = 2; i < argc; i++)
    if (!strcmp(argv[i], part)) return true;
  return false;
}

int main(int argc, char **argv) {
  if (argc > 1) parallel_set_threads(atoi(argv[1]));
  if (argc == 3 && !strcmp(argv[2], "rate")) {
    bench_rate(PRECISION_FP32, peak_gflops());
    if (precision_fastest() == PRECISION_BF16) bench_rate(PRECISION_BF16, bf16_peak_gflops());
    return 0;
  }
  double peak = peak_gflops(), read = read_gbytes();
  printf("%s, %d threads: peak %.1f GFLOP/s, read %.1f GB/s\n", kernel_isa(), parallel_threads(),
         peak, read);
  if (wanted(argc, argv, "gemm")) bench_gemm(PRECISION_FP32, peak);
  if (wanted(argc, argv, "bf16")) bench_gemm(PRECISION_BF16, bf16_peak_gflops());
  if (wanted(argc, argv, "attention")) {
    bench_attention(PRECISION_FP32, peak);
    bench_attention(PRECISION_BF16, bf16_peak_gflops());
  }
  if (wanted(argc, argv, "cache")) bench_cache(read);
  if (wanted(argc, argv, "mask")) bench_mask(read);
  if (wanted(argc, argv, "rows")) bench_rows(read);
  return 0;
}
