/* One command on a card: is every GPU kernel right, and how fast is it? Run by tools/gpu_check.sh.
 * Usage: gpu_check FOLDER COMMIT SECONDS. Writes FOLDER/gpu_checks.csv and FOLDER/gpu_products.csv;
 * no new timing starts after SECONDS. Exit status: 0 all right, 1 something is wrong, 77 no card.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gpu.h"
#include "gpu_ledger.h"
#include "kernel/linear.h"

enum { EXIT_NO_CARD = 77 };

void gpu_must(enum status status, const struct error *err) {
  if (!status) return;
  fprintf(stderr, "gpu_check: %s\n", err->text);
  exit(EXIT_FAILURE);
}

static void *must_alloc(size_t count, size_t size) {
  struct error err = {0};
  void *memory = mem_alloc(count, size, &err);
  gpu_must(memory ? STATUS_OK : STATUS_FAILED, &err);
  return memory;
}

void gpu_row_begin(FILE *ledger, const struct gpu_run *run) {
  fprintf(ledger, "%s,%s,%s,", run->date, run->commit, gpu_facts(run->gpu)->name);
}

/* --- a random hybrid matrix --- */

struct hybrid_sample {
  struct mask_matrix mask;
  struct hybrid_matrix h;
  uint8_t *map, *codes;
  void *dense, *values;
};

static void draw_mask(struct mask_matrix *m, double dense_share, struct rng *rng) {
  for (int64_t t = 0; t < mask_tile_count(m); t++) m->tiles[t] = rng_uniform(rng) < dense_share;
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t g = 0; g < mask_group_count(m); g++) {
      uint8_t code;
      do code = sparse_candidate_code[rng_below(rng, SPARSE_CANDIDATES)];
      while (!sparse_code_fits(code, mask_group_width(m, g)));
      mask_set_code(m, r, g, code);
    }
}

static void sample_make(struct hybrid_sample *s, int64_t rows, int64_t cols, double dense_share,
                        struct rng *rng) {
  struct error err = {0};
  struct hybrid_sizes sizes;
  *s = (struct hybrid_sample){0};
  gpu_must(mask_matrix_init_hybrid(&s->mask, "w", rows, cols, 128, 128, &err), &err);
  draw_mask(&s->mask, dense_share, rng);
  const int64_t tiles = mask_tile_count(&s->mask);
  s->map = must_alloc((size_t)(tiles + 7) / 8, 1);
  for (int64_t t = 0; t < tiles; t++) s->map[t / 8] |= (uint8_t)(s->mask.tiles[t] << (t % 8));
  gpu_must(hybrid_measure(rows, cols, 128, 128, DTYPE_BF16, s->map, &sizes, &err), &err);
  s->dense = must_alloc(sizes.dense_bytes, 1);
  s->values = must_alloc(sizes.values_bytes, 1);
  s->codes = must_alloc(sizes.codes_bytes, 1);
  float *w = must_alloc((size_t)(rows * cols), sizeof *w);
  for (int64_t i = 0; i < rows * cols; i++) w[i] = (float)rng_normal(rng);
  hybrid_pack(&s->mask, w, DTYPE_BF16, s->map, s->dense, s->values, s->codes);
  mem_free(w);
  s->h = (struct hybrid_matrix){rows,     cols,      128,      128,  DTYPE_BF16, s->map,
                                s->dense, s->values, s->codes, NULL, NULL};
  gpu_must(hybrid_index(&s->h, &err), &err);
}

static void sample_free(struct hybrid_sample *s) {
  hybrid_release(&s->h);
  mask_matrix_free(&s->mask);
  mem_free(s->map);
  mem_free(s->dense);
  mem_free(s->values);
  mem_free(s->codes);
}

/* --- one product, on the card and here --- */

struct product_test {
  int64_t rows, cols;
  double dense_share;
  uint32_t tokens;
  struct gpu_variant variant;
};

struct verdict {
  double worst;        /* largest error over what is allowed */
  double cpu_relative; /* |y - y of the CPU| / |y of the CPU| */
  bool same_bits;      /* a second run gave the same */
};

static uint16_t *draw_bf16(size_t count, struct rng *rng) {
  uint16_t *out = must_alloc(count, sizeof *out);
  for (size_t i = 0; i < count; i++) out[i] = bf16_from_f32((float)rng_normal(rng));
  return out;
}

static void *to_card(struct gpu *gpu, const void *from, size_t bytes) {
  struct error err = {0};
  void *memory;
  gpu_must(gpu_alloc(gpu, bytes, &memory, &err), &err);
  gpu_must(gpu_upload(gpu, memory, from, bytes, &err), &err);
  return memory;
}

/* y (tokens, rows) from the card, twice. x_stride: cols rounded up to 8. */
static void run_on_card(struct gpu *gpu, const struct product_test *t,
                        const struct hybrid_matrix *h, const uint16_t *x, uint64_t x_stride,
                        const uint16_t *bias, const uint16_t *residual, uint16_t *y[2]) {
  struct error err = {0};
  struct fragment_matrix f;
  struct gpu_matrix m;
  struct gpu_product p;
  const size_t y_bytes = (size_t)t->rows * t->tokens * 2;
  gpu_must(fragment_pack_hybrid(&f, h, &err), &err);
  gpu_must(gpu_matrix_upload(gpu, &f, &m, &err), &err);
  gpu_must(gpu_product_prepare(gpu, &m, t->tokens, &t->variant, &p, &err), &err);
  void *x_card = to_card(gpu, x, x_stride * t->tokens * 2);
  void *bias_card = to_card(gpu, bias, (size_t)t->rows * 2);
  void *residual_card = to_card(gpu, residual, y_bytes), *y_card;
  gpu_must(gpu_alloc(gpu, y_bytes, &y_card, &err), &err);
  const struct gpu_operands operands = {x_card,    x_stride,      y_card, (uint64_t)t->rows,
                                        bias_card, residual_card, NULL};
  for (int run = 0; run < 2; run++) {
    gpu_must(gpu_zero(gpu, y_card, y_bytes, &err), &err);
    gpu_must(gpu_product_run(gpu, &p, &operands, &err), &err);
    gpu_must(gpu_download(gpu, y[run], y_card, y_bytes, &err), &err);
  }
  gpu_free(gpu, x_card);
  gpu_free(gpu, bias_card);
  gpu_free(gpu, residual_card);
  gpu_free(gpu, y_card);
  gpu_product_free(gpu, &p);
  gpu_matrix_free(gpu, &m);
  fragment_release(&f);
}

/* An element may be off by its rounding to bf16 and by what fp32 sums of its terms lose. */
static double worst_error(const struct product_test *t, const struct hybrid_matrix *h,
                          const uint16_t *x, uint64_t x_stride, const uint16_t *bias,
                          const uint16_t *residual, const uint16_t *y) {
  float *w = must_alloc((size_t)t->cols, sizeof *w);
  double worst = 0;
  for (int64_t row = 0; row < t->rows; row++) {
    hybrid_row(h, row, w);
    for (uint32_t token = 0; token < t->tokens; token++) {
      const size_t at = token * (size_t)t->rows + (size_t)row;
      double sum = (double)bf16_to_f32(bias[row]) + bf16_to_f32(residual[at]), size = 1;
      for (int64_t k = 0; k < t->cols; k++) {
        const double term = (double)w[k] * bf16_to_f32(x[token * x_stride + (uint64_t)k]);
        sum += term;
        size += fabs(term);
      }
      const double allowed = fabs(sum) / 256 + 1e-5 * size;
      const double off = fabs(bf16_to_f32(y[at]) - sum) / allowed;
      if (!(off <= worst)) worst = off; /* a NaN stays */
    }
  }
  mem_free(w);
  return worst;
}

static double cpu_difference(const struct product_test *t, const struct hybrid_matrix *h,
                             const uint16_t *x, uint64_t x_stride, const uint16_t *bias,
                             const uint16_t *residual, const uint16_t *y) {
  const size_t count = (size_t)t->rows * t->tokens;
  float *wide_x = must_alloc((size_t)t->cols * t->tokens, sizeof *wide_x);
  float *wide_bias = must_alloc((size_t)t->rows, sizeof *wide_bias);
  float *cpu = must_alloc(count, sizeof *cpu);
  for (uint32_t token = 0; token < t->tokens; token++)
    dtype_to_f32(DTYPE_BF16, x + token * x_stride, t->cols, wide_x + token * t->cols);
  dtype_to_f32(DTYPE_BF16, bias, t->rows, wide_bias);
  linear_forward(&(struct linear_weight){.hybrid = h}, wide_bias, wide_x, t->tokens, PRECISION_FP32,
                 cpu);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; i++) {
    const double expected = (double)cpu[i] + bf16_to_f32(residual[i]);
    difference += pow(bf16_to_f32(y[i]) - expected, 2);
    norm += expected * expected;
  }
  mem_free(wide_x);
  mem_free(wide_bias);
  mem_free(cpu);
  return sqrt(difference / norm);
}

static struct verdict check_product(struct gpu *gpu, const struct product_test *t, uint64_t seed) {
  struct rng rng = rng_make(seed, 3);
  struct hybrid_sample s;
  const uint64_t x_stride = (uint64_t)(t->cols + 7) / 8 * 8;
  const size_t count = (size_t)t->rows * t->tokens;
  sample_make(&s, t->rows, t->cols, t->dense_share, &rng);
  uint16_t *x = draw_bf16(x_stride * t->tokens, &rng), *bias = draw_bf16((size_t)t->rows, &rng);
  uint16_t *residual = draw_bf16(count, &rng);
  /* What lies behind a row's last column must not count. */
  for (uint32_t token = 0; token < t->tokens; token++)
    for (uint64_t k = (uint64_t)t->cols; k < x_stride; k++) x[token * x_stride + k] = 0x7fc0;
  uint16_t *y[2] = {must_alloc(count, 2), must_alloc(count, 2)};
  run_on_card(gpu, t, &s.h, x, x_stride, bias, residual, y);
  const struct verdict verdict = {
      worst_error(t, &s.h, x, x_stride, bias, residual, y[0]),
      cpu_difference(t, &s.h, x, x_stride, bias, residual, y[0]),
      !memcmp(y[0], y[1], count * 2),
  };
  sample_free(&s);
  mem_free(x);
  mem_free(bias);
  mem_free(residual);
  mem_free(y[0]);
  mem_free(y[1]);
  return verdict;
}

int gpu_check_products(const struct gpu_run *run, FILE *ledger) {
  static const struct {
    int64_t rows, cols;
    double dense_share;
  } matrices[] = {{128, 128, 0}, {128, 128, 1}, {1, 7, 1}, {700, 1000, 0.5}, {896, 1300, 0.1}};
  int failures = 0;
  fprintf(ledger,
          "date,commit,card,kernel,rows,cols,dense_tiles,tokens,error_over_allowed,"
          "relative_to_cpu,same_bits,right\n");
#define CHECK_KERNEL(panel, threads) {panel, 0, false},
  static const struct gpu_variant variants[] = {PRODUCT_KERNELS(CHECK_KERNEL){128, 1, false},
                                                {128, 2, false},
                                                {128, 4, false},
                                                {256, 1, false},
                                                {256, 2, false},
                                                {256, 4, false},
                                                {128, 0, true}};
  for (size_t k = 0; k < sizeof variants / sizeof *variants; k++)
    for (size_t m = 0; m < sizeof matrices / sizeof *matrices; m++) {
      if (!gpu_variant_runs(run->gpu, (struct fragment_form){FRAGMENT_BF16, false, false},
                            variants[k]))
        continue;
      const uint32_t panel = variants[k].panel_tokens;
      const uint32_t tokens_of[] = {1, panel, panel / 2 + 1, panel + 1, 2 * panel - 1};
      const uint32_t tokens = tokens_of[m];
      const struct product_test t = {matrices[m].rows, matrices[m].cols, matrices[m].dense_share,
                                     tokens, variants[k]};
      const struct verdict v = check_product(run->gpu, &t, 10 * k + m);
      const bool right = v.worst <= 1 && v.cpu_relative < 5e-3 && v.same_bits;
      gpu_row_begin(ledger, run);
      char name[32];
      gpu_variant_name(t.variant, name);
      fprintf(ledger, "%s,%lld,%lld,%g,%u,%.3g,%.3g,%d,%d\n", name, (long long)t.rows,
              (long long)t.cols, t.dense_share, tokens, v.worst, v.cpu_relative, v.same_bits,
              right);
      failures += !right;
    }
  return failures;
}

/* --- the command --- */

int main(int argc, char **argv) {
  struct error err = {0};
  struct gpu_run run = {.commit = argc > 2 ? argv[2] : "unknown"};
  char date[16];
  const time_t now = time(NULL);
  if (argc < 4) {
    fprintf(stderr, "usage: gpu_check FOLDER COMMIT SECONDS\n");
    return STATUS_USAGE;
  }
  if (gpu_open(&run.gpu, 0, &err)) {
    fprintf(stderr, "gpu_check: %s\n", err.text);
    return err.status == STATUS_REFUSED ? EXIT_NO_CARD : EXIT_FAILURE;
  }
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
  run.date = date;
  snprintf(run.choice_path, sizeof run.choice_path, "%s/gpu_choice.json", argv[1]);
  run.deadline_s = clock_seconds() + atof(argv[3]);
  FILE *checks = gpu_open_ledger("gpu_check", argv[1], "gpu_checks.csv");
  const int failures = gpu_check_products(&run, checks) + gpu_check_forms(&run, checks);
  fclose(checks);
  printf("correctness: %s\n", failures ? "WRONG, see gpu_checks.csv" : "every kernel is right");
  if (!failures) {
    FILE *times = gpu_open_ledger("gpu_check", argv[1], "gpu_products.csv");
    gpu_time_products(&run, times);
    fclose(times);
  }
  gpu_close(run.gpu);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
