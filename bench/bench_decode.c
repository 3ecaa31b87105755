/* How fast few tokens meet large matrices: dense and hybrid strips of several densities, at batch 1
 * to 64, in fp32 and, where that is faster, with activations rounded to bf16, each beside a plain
 * read of as many bytes as it stores. Everything is run in turn, round
 * after round, and the median over rounds is taken.
 *
 * Usage: bench_decode [threads [rows cols matrices [batch ...]]]; TSR_ISA lowers the instruction
 * set. By default 16 matrices of 2048 x 5632, 369 MB in bf16: the machine's memory, not its caches,
 * should answer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "eval/speed_read.h"
#include "kernel/linear.h"
#include "kernel/ops.h"

enum { TILE = 128, ROUNDS = 9, BATCHES_MAX = 8 };

/* Shares of 2:4 tiles, in percent: densities of 100, 75, 65, 55 and 50 %. */
static const int sparse_percent[] = {0, 50, 70, 90, 100};
enum { FORMS = sizeof sparse_percent / sizeof sparse_percent[0] };

static void *must_alloc(size_t count, size_t size) {
  struct error err;
  void *p = mem_alloc(count, size, &err);
  if (!p) {
    fprintf(stderr, "bench_decode: %s\n", err.text);
    exit(1);
  }
  return p;
}

/* A hybrid matrix of random bf16 weights, random codes and randomly placed dense tiles. */
static struct strip_matrix make_matrix(int64_t rows, int64_t cols, int percent, uint64_t seed) {
  struct error err;
  struct rng rng = rng_make(seed, (uint64_t)percent);
  struct hybrid_matrix h = {
      .rows = rows, .cols = cols, .tile_rows = TILE, .tile_cols = TILE, .dtype = DTYPE_BF16};
  int64_t tiles = hybrid_tile_rows(&h) * hybrid_tile_cols(&h);
  uint8_t *map = must_alloc((size_t)(tiles + 7) / 8, 1);
  for (int64_t t = 0; t < tiles; t++) /* evenly spread, so that every matrix has its share */
    if (t * percent / 100 == (t + 1) * percent / 100) map[t / 8] |= (uint8_t)(1 << t % 8);
  for (int64_t t = tiles - 1; t > 0; t--) {
    int64_t other = (int64_t)rng_below(&rng, (uint64_t)t + 1);
    bool a = map[t / 8] >> t % 8 & 1, b = map[other / 8] >> other % 8 & 1;
    if (a == b) continue;
    map[t / 8] ^= (uint8_t)(1 << t % 8);
    map[other / 8] ^= (uint8_t)(1 << other % 8);
  }
  h.tile_map = map;
  struct hybrid_sizes sizes;
  struct strip_matrix out;
  if (hybrid_measure(rows, cols, TILE, TILE, DTYPE_BF16, map, &sizes, &err)) exit(1);
  uint16_t *dense = must_alloc(sizes.dense_bytes, 1), *values = must_alloc(sizes.values_bytes, 1);
  uint8_t *codes = must_alloc(sizes.codes_bytes, 1);
  for (int64_t i = 0; i < sizes.dense_count; i++)
    dense[i] = 0x3c00 ^ (uint16_t)rng_next(&rng) % 4096;
  for (int64_t i = 0; i < sizes.values_count; i++)
    values[i] = 0x3c00 ^ (uint16_t)rng_next(&rng) % 4096;
  for (size_t i = 0; i < sizes.codes_bytes; i++)
    codes[i] = (uint8_t)(sparse_candidate_code[rng_below(&rng, 6)] |
                         sparse_candidate_code[rng_below(&rng, 6)] << 4);
  h.dense = dense, h.values = values, h.codes = codes;
  if (hybrid_index(&h, &err) || strips_from_hybrid(&out, &h, &err)) exit(1);
  hybrid_release(&h);
  mem_free(map), mem_free(dense), mem_free(values), mem_free(codes);
  return out;
}

struct form {
  struct strip_matrix *matrices;
  size_t bytes;
  struct weight_spans spans;
  double seconds[ROUNDS], read_s[ROUNDS];
};

/* --- the plain read --- */

static struct weight_spans spans_of(const struct form *form, int matrices) {
  struct weight_spans s = {.items = must_alloc((size_t)matrices, sizeof *s.items),
                           .count = (size_t)matrices,
                           .bytes = form->bytes,
                           .first_piece = must_alloc((size_t)matrices + 1, sizeof *s.first_piece)};
  for (int i = 0; i < matrices; i++)
    s.items[i] = (struct weight_span){form->matrices[i].data, form->matrices[i].stored_bytes};
  weight_spans_cut(&s);
  return s;
}

/* --- timing --- */

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}
static double median(double values[ROUNDS]) {
  qsort(values, ROUNDS, sizeof *values, ascending);
  return values[ROUNDS / 2];
}

/* One form is read or multiplied right after another was, so that none finds its own matrices in
 * the caches. */
static void time_batch(struct form *forms, int matrices, int64_t batch, enum precision precision,
                       const float *x, float *y) {
  for (int round = -1; round < ROUNDS; round++)
    for (int step = 0; step < 2 * FORMS; step++) {
      struct form *form = &forms[step % FORMS];
      double start = clock_seconds(), seconds;
      for (int i = 0; i < matrices && step >= FORMS; i++) {
        struct linear_weight w = {.strips = &form->matrices[i]};
        linear_forward(&w, NULL, x, batch, precision, y);
      }
      seconds = clock_seconds() - start;
      if (step < FORMS) seconds = weight_spans_time_read(&form->spans);
      if (round >= 0) (step < FORMS ? form->read_s : form->seconds)[round] = seconds;
    }
}

static void report(struct form *forms, int64_t batch, enum precision precision) {
  double dense = 0;
  for (int f = 0; f < FORMS; f++) {
    double seconds = median(forms[f].seconds), read = median(forms[f].read_s);
    double bytes = (double)forms[f].bytes;
    if (!f) dense = seconds;
    printf(
        "%5lld  %s  %8.1f %%  %8.2f ms  %6.1f GB/s  read %6.1f GB/s  %5.1f %%  %6.3fx of %5.3fx\n",
        (long long)batch, precision_name[precision], sparse_percent[f] / 2.0, 1e3 * seconds,
        1e-9 * bytes / seconds, 1e-9 * bytes / read, 100 * read / seconds, dense / seconds,
        (double)forms[0].bytes / bytes);
  }
}

int main(int argc, char **argv) {
  static const int64_t usual[] = {1, 2, 4, 8, 16, 32, 64};
  struct form forms[FORMS] = {{0}};
  int64_t most = 64;
  if (argc > 1) parallel_set_threads(atoi(argv[1]));
  int64_t rows = argc > 4 ? atoll(argv[2]) : 2048, cols = argc > 4 ? atoll(argv[3]) : 5632;
  int matrices = argc > 4 ? atoi(argv[4]) : 16;
  for (int i = 5; i < argc; i++)
    if (atoll(argv[i]) > most) most = atoll(argv[i]);
  for (int f = 0; f < FORMS; f++) {
    forms[f].matrices = must_alloc((size_t)matrices, sizeof *forms[f].matrices);
    for (int i = 0; i < matrices; i++) {
      forms[f].matrices[i] = make_matrix(rows, cols, sparse_percent[f], (uint64_t)i);
      forms[f].bytes += forms[f].matrices[i].stored_bytes;
    }
    forms[f].spans = spans_of(&forms[f], matrices);
  }
  float *x = must_alloc((size_t)(most * cols), 4), *y = must_alloc((size_t)(most * rows), 4);
  for (int64_t i = 0; i < most * cols; i++) x[i] = (float)(i % 97 - 48) / 97;
  printf("%s, %d threads, %d matrices of %lld x %lld bf16: %.0f MB dense\n", kernel_isa(),
         parallel_threads(), matrices, (long long)rows, (long long)cols,
         1e-6 * (double)forms[0].bytes);
  printf(
      "batch  x      sparsity        time     reached        plain read   of it    over dense\n");
  int batches = argc > 5 ? argc - 5 : (int)(sizeof usual / sizeof usual[0]);
  for (int b = 0; b < batches; b++) {
    int64_t batch = argc > 5 ? atoll(argv[5 + b]) : usual[b];
    for (int p = PRECISION_FP32; p <= (int)precision_fastest(); p++) {
      time_batch(forms, matrices, batch, (enum precision)p, x, y);
      report(forms, batch, (enum precision)p);
    }
  }
  for (int f = 0; f < FORMS; f++) {
    for (int i = 0; i < matrices; i++) strips_release(&forms[f].matrices[i]);
    mem_free(forms[f].matrices);
    weight_spans_free(&forms[f].spans);
  }
  mem_free(x), mem_free(y);
  return 0;
}
