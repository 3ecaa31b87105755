/* How fast few tokens meet large matrices: dense and hybrid strips of several densities, at batch 1
 * to 64, in fp32 and, where that is faster, with activations rounded to bf16, each beside a plain
 * read of as many bytes as it stores. Everything is run in turn, round
 * after round, and the median over rounds is taken.
 *
 * Usage: bench_decode [types] [threads [rows cols matrices [batch ...]]]; types is a list like
 * int8,int4m of those below, bf16 unless given; TSR_ISA lowers the instruction set. By default 16
 * matrices of 2048 x 5632, 369 MB in bf16: the machine's memory, not its caches, should answer. */
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

/* What weights are. Groups are of 32 columns, the others have a scale for each row. */
static const struct type {
  const char *name;
  bool quantized;
  enum quant_type integers;
  int64_t group;
  bool mins;
} types[] = {
    {"bf16", false, QUANT_I8, 0, false},  {"int8", true, QUANT_I8, 0, false},
    {"int8g", true, QUANT_I8, 32, false}, {"int4", true, QUANT_I4, 0, false},
    {"int4g", true, QUANT_I4, 32, false}, {"int4m", true, QUANT_I4, 32, true},
};
enum { TYPES = sizeof types / sizeof types[0] };

/* One of the two. */
struct matrix {
  struct strip_matrix strips;
  struct quant_strips quant;
};

/* Dense tiles, evenly spread so that every matrix has its share, then shuffled. */
static uint8_t *make_map(int64_t tiles, int percent, struct rng *rng) {
  uint8_t *map = must_alloc((size_t)(tiles + 7) / 8, 1);
  for (int64_t t = 0; t < tiles; t++)
    if (t * percent / 100 == (t + 1) * percent / 100) map[t / 8] |= (uint8_t)(1 << t % 8);
  for (int64_t t = tiles - 1; t > 0; t--) {
    int64_t other = (int64_t)rng_below(rng, (uint64_t)t + 1);
    bool a = map[t / 8] >> t % 8 & 1, b = map[other / 8] >> other % 8 & 1;
    if (a == b) continue;
    map[t / 8] ^= (uint8_t)(1 << t % 8);
    map[other / 8] ^= (uint8_t)(1 << other % 8);
  }
  return map;
}

static uint8_t *make_codes(size_t bytes, struct rng *rng) {
  uint8_t *codes = must_alloc(bytes, 1);
  for (size_t i = 0; i < bytes; i++)
    codes[i] = (uint8_t)(sparse_candidate_code[rng_below(rng, 6)] |
                         sparse_candidate_code[rng_below(rng, 6)] << 4);
  return codes;
}

static uint16_t *make_halves(int64_t count, uint16_t base, uint16_t spread, struct rng *rng) {
  uint16_t *out = must_alloc((size_t)count, sizeof *out);
  for (int64_t i = 0; i < count; i++) out[i] = base ^ (uint16_t)rng_next(rng) % spread;
  return out;
}

static void make_bf16(struct matrix *out, struct hybrid_matrix h, struct rng *rng) {
  struct error err;
  struct hybrid_sizes sizes;
  if (hybrid_measure(h.rows, h.cols, TILE, TILE, DTYPE_BF16, h.tile_map, &sizes, &err)) exit(1);
  uint16_t *dense = make_halves(sizes.dense_count, 0x3c00, 4096, rng);
  uint16_t *values = make_halves(sizes.values_count, 0x3c00, 4096, rng);
  uint8_t *codes = make_codes(sizes.codes_bytes, rng);
  h.dense = dense, h.values = values, h.codes = codes;
  if (hybrid_index(&h, &err) || strips_from_hybrid(&out->strips, &h, &err)) exit(1);
  hybrid_release(&h);
  mem_free(dense), mem_free(values), mem_free(codes);
}

static uint8_t *make_bytes(size_t count, struct rng *rng) {
  uint8_t *out = must_alloc(count, 1);
  for (size_t i = 0; i < count; i++) out[i] = (uint8_t)rng_next(rng);
  return out;
}

static void make_quant(struct matrix *out, const struct type *type, struct quant_matrix q,
                       struct rng *rng) {
  struct error err;
  struct quant_sizes sizes;
  q.type = type->integers;
  q.group = type->group;
  if (quant_measure(&q, &sizes, &err)) exit(1);
  uint8_t *dense = make_bytes(sizes.dense_bytes, rng),
          *values = make_bytes(sizes.values_bytes, rng);
  uint8_t *codes = make_codes(sizes.codes_bytes, rng);
  float *row_scales = must_alloc((size_t)q.rows, sizeof *row_scales);
  uint16_t *scales = make_halves(sizes.scales, 0x2400, 256, rng);
  uint16_t *mins = make_halves(sizes.scales, 0xa800, 256, rng);
  for (int64_t r = 0; r < q.rows; r++) row_scales[r] = 1.0f / 64;
  q.dense = dense, q.values = values, q.codes = codes;
  if (type->group) q.scales = scales;
  if (!type->group) q.row_scales = row_scales;
  if (type->mins) q.mins = mins;
  if (quant_index(&q, &err) || quant_strips_from_quant(&out->quant, &q, &err)) exit(1);
  quant_release(&q);
  mem_free(dense), mem_free(values), mem_free(codes);
  mem_free(row_scales), mem_free(scales), mem_free(mins);
}

/* A hybrid matrix of random weights, random codes and randomly placed dense tiles. */
static struct matrix make_matrix(const struct type *type, int64_t rows, int64_t cols, int percent,
                                 uint64_t seed) {
  struct rng rng = rng_make(seed, (uint64_t)percent);
  struct hybrid_matrix h = {
      .rows = rows, .cols = cols, .tile_rows = TILE, .tile_cols = TILE, .dtype = DTYPE_BF16};
  uint8_t *map = make_map(hybrid_tile_rows(&h) * hybrid_tile_cols(&h), percent, &rng);
  const struct quant_matrix q = {
      .rows = rows, .cols = cols, .tile_rows = TILE, .tile_cols = TILE, .tile_map = map};
  struct matrix out = {.strips = {.rows = 0}};
  h.tile_map = map;
  if (type->quantized)
    make_quant(&out, type, q, &rng);
  else
    make_bf16(&out, h, &rng);
  mem_free(map);
  return out;
}

static const uint8_t *matrix_data(const struct matrix *m) {
  return m->quant.data ? m->quant.data : m->strips.data;
}
static size_t matrix_bytes(const struct matrix *m) {
  return m->quant.data ? m->quant.stored_bytes : m->strips.stored_bytes;
}

struct form {
  struct matrix *matrices;
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
    s.items[i] =
        (struct weight_span){matrix_data(&form->matrices[i]), matrix_bytes(&form->matrices[i])};
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
        struct linear_weight w = {.dense = {.rows = 0}};
        if (form->matrices[i].quant.data)
          w.quant = &form->matrices[i].quant;
        else
          w.strips = &form->matrices[i].strips;
        linear_forward(&w, NULL, x, batch, precision, y);
      }
      seconds = clock_seconds() - start;
      if (step < FORMS) seconds = weight_spans_time_read(&form->spans);
      if (round >= 0) (step < FORMS ? form->read_s : form->seconds)[round] = seconds;
    }
}

static void report(const struct type *type, struct form *forms, int64_t batch,
                   enum precision precision) {
  double dense = 0;
  for (int f = 0; f < FORMS; f++) {
    double seconds = median(forms[f].seconds), read = median(forms[f].read_s);
    double bytes = (double)forms[f].bytes;
    if (!f) dense = seconds;
    printf(
        "%-5s  %5lld  %s  %8.1f %%  %8.2f ms  %6.1f GB/s  read %6.1f GB/s  %5.1f %%  %6.3fx of "
        "%5.3fx\n",
        type->name, (long long)batch,
        type->quantized && batch <= 64 ? "int8" : precision_name[precision],
        sparse_percent[f] / 2.0, 1e3 * seconds, 1e-9 * bytes / seconds, 1e-9 * bytes / read,
        100 * read / seconds, dense / seconds, (double)forms[0].bytes / bytes);
  }
}

struct run {
  int64_t rows, cols;
  int matrices, batches;
  int64_t batch[BATCHES_MAX];
};

static void run_type(const struct type *type, const struct run *run) {
  struct form forms[FORMS] = {{0}};
  int64_t most = 0;
  for (int b = 0; b < run->batches; b++)
    if (run->batch[b] > most) most = run->batch[b];
  for (int f = 0; f < FORMS; f++) {
    forms[f].matrices = must_alloc((size_t)run->matrices, sizeof *forms[f].matrices);
    for (int i = 0; i < run->matrices; i++) {
      forms[f].matrices[i] =
          make_matrix(type, run->rows, run->cols, sparse_percent[f], (uint64_t)i);
      forms[f].bytes += matrix_bytes(&forms[f].matrices[i]);
    }
    forms[f].spans = spans_of(&forms[f], run->matrices);
  }
  float *x = must_alloc((size_t)(most * run->cols), 4),
        *y = must_alloc((size_t)(most * run->rows), 4);
  for (int64_t i = 0; i < most * run->cols; i++) x[i] = (float)(i % 97 - 48) / 97;
  printf("%s, %d threads, %d matrices of %lld x %lld %s: %.0f MB dense\n", kernel_isa(),
         parallel_threads(), run->matrices, (long long)run->rows, (long long)run->cols, type->name,
         1e-6 * (double)forms[0].bytes);
  printf(
      "type   batch  x      sparsity        time     reached        plain read   of it    over "
      "dense\n");
  for (int b = 0; b < run->batches; b++)
    for (int p = PRECISION_FP32;
         p <= (type->quantized && run->batch[b] <= 64 ? 0 : (int)precision_fastest()); p++) {
      time_batch(forms, run->matrices, run->batch[b], (enum precision)p, x, y);
      report(type, forms, run->batch[b], (enum precision)p);
    }
  for (int f = 0; f < FORMS; f++) {
    for (int i = 0; i < run->matrices; i++) {
      strips_release(&forms[f].matrices[i].strips);
      quant_strips_release(&forms[f].matrices[i].quant);
    }
    mem_free(forms[f].matrices);
    weight_spans_free(&forms[f].spans);
  }
  mem_free(x), mem_free(y);
}

/* The types that a list of names separated by commas has. */
static bool wanted(const char *list, const char *name) {
  const size_t length = strlen(name);
  for (const char *at = list; (at = strstr(at, name)); at += length)
    if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ',')) return true;
  return false;
}

int main(int argc, char **argv) {
  struct run run = {2048, 5632, 16, 7, {1, 2, 4, 8, 16, 32, 64}};
  const char *list = "bf16";
  if (argc > 1 && (argv[1][0] < '0' || argv[1][0] > '9')) list = argv[1], argv++, argc--;
  if (argc > 1) parallel_set_threads(atoi(argv[1]));
  if (argc > 4) run.rows = atoll(argv[2]), run.cols = atoll(argv[3]), run.matrices = atoi(argv[4]);
  if (argc > 5) run.batches = argc - 5 < BATCHES_MAX ? argc - 5 : BATCHES_MAX;
  for (int b = 0; b < run.batches && argc > 5; b++) run.batch[b] = atoll(argv[5 + b]);
  for (int t = 0; t < TYPES; t++)
    if (wanted(list, types[t].name)) run_type(&types[t], &run);
  return 0;
}
