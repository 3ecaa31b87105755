/* How fast the kernels are on this machine, each beside what bounds it: multiply-adds beside the
 * peak that a loop of nothing else reaches, streams beside a plain read of as many bytes.
 * Usage: bench_kernels [threads [part ...]]; TSR_ISA lowers the instruction set. Parts: gemm
 * skinny hybrid attention rows mask. Every time is the least of several runs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "kernel/linear.h"
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

/* Least time of a run, over half a second and at least five runs. */
static double best_seconds(void (*fn)(void *), void *ctx) {
  double best = INFINITY, begin = clock_seconds();
  for (int run = 0; run < 5 || clock_seconds() - begin < 0.5; run++) {
    double start = clock_seconds();
    fn(ctx);
    double took = clock_seconds() - start;
    if (took < best) best = took;
  }
  return best;
}

/* --- what bounds --- */

struct peak {
  float *a, *b, *c;
};
static void peak_item(void *ctx, int64_t item, int worker) {
  struct peak *p = ctx;
  const struct kernel_table *table = kernel_table();
  (void)item;
  for (int i = 0; i < 2000; i++) /* a tile whose operands stay in the first-level cache */
    table->tile(64, p->a, 1, table->tile_rows, p->b, 1, p->c + worker * 1024, table->tile_cols,
                table->tile_rows, table->tile_cols, false);
}
static void peak_run(void *ctx) { parallel_for(parallel_threads(), peak_item, ctx); }

static double peak_gflops(void) {
  const struct kernel_table *table = kernel_table();
  struct peak p = {random_floats(4096), random_floats(8192), random_floats(1024 * 256)};
  double seconds = best_seconds(peak_run, &p);
  mem_free(p.a), mem_free(p.b), mem_free(p.c);
  return 2e-9 * 64 * 2000 * table->tile_rows * table->tile_cols * parallel_threads() / seconds;
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
};
static void run_forward(void *ctx) {
  struct products *p = ctx;
  linear_forward(&p->w, NULL, p->x, p->tokens, p->y);
}
static void run_input(void *ctx) {
  struct products *p = ctx;
  linear_backward_input(&p->w, p->dy, p->tokens, p->dx, false);
}
static void run_weight(void *ctx) {
  struct products *p = ctx;
  linear_backward_weight(p->dy, p->x, p->tokens, p->w.dense.rows, p->w.dense.cols, p->dw, false);
}

static void bench_gemm(double peak) {
  static const struct shape shapes[] = {{"q/o", 256, 576, 576},       {"k/v", 256, 192, 576},
                                        {"gate/up", 256, 1536, 576},  {"down", 256, 576, 1536},
                                        {"q/o", 1024, 576, 576},      {"k/v", 1024, 192, 576},
                                        {"gate/up", 1024, 1536, 576}, {"down", 1024, 576, 1536},
                                        {"lm_head", 256, 49152, 576}, {"large", 1024, 2048, 2048}};
  printf("%-8s %6s %6s %6s  %22s %22s %22s\n", "product", "tokens", "rows", "cols",
         "forward GFLOP/s", "dx GFLOP/s", "dw GFLOP/s");
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    const struct shape *s = &shapes[i];
    float *w = random_floats((size_t)(s->rows * s->cols));
    float *x = random_floats((size_t)(s->tokens * s->cols));
    float *dy = random_floats((size_t)(s->tokens * s->rows));
    float *y = must_alloc((size_t)(s->tokens * s->rows), 4);
    float *dx = must_alloc((size_t)(s->tokens * s->cols), 4);
    float *dw = must_alloc((size_t)(s->rows * s->cols), 4);
    struct products p = {{{w, DTYPE_F32, s->rows, s->cols}, NULL}, x, dy, y, dx, dw, s->tokens};
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

static bool wanted(int argc, char **argv, const char *part) {
  if (argc <= 2) return true;
  for (int i = 2; i < argc; i++)
    if (!strcmp(argv[i], part)) return true;
  return false;
}

int main(int argc, char **argv) {
  if (argc > 1) parallel_set_threads(atoi(argv[1]));
  double peak = peak_gflops(), read = read_gbytes();
  printf("%s, %d threads: peak %.1f GFLOP/s, read %.1f GB/s\n", kernel_isa(), parallel_threads(),
         peak, read);
  if (wanted(argc, argv, "gemm")) bench_gemm(peak);
  return 0;
}
