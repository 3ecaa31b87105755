/* Part of gpu_check: products of integers, and pairs with an activation, on the card against fp64.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "gpu.h"
#include "sparse/quantize.h"

enum { ROWS = 700, COLS = 1300, X_STRIDE = 1304 };

static void *must_alloc(size_t count, size_t size) {
  struct error err = {0};
  void *memory = mem_alloc(count, size, &err);
  gpu_must(memory ? STATUS_OK : STATUS_FAILED, &err);
  return memory;
}

static void random_row(void *ctx, int64_t row, float *out) {
  struct rng rng = rng_make(*(const uint64_t *)ctx, (uint64_t)row);
  for (int64_t c = 0; c < COLS; c++) out[c] = (float)rng_normal(&rng);
}

/* Half of the tiles dense, any codes. */
static void draw_mask(struct mask_matrix *mask, uint64_t seed) {
  struct error err = {0};
  struct rng rng = rng_make(seed, 1);
  gpu_must(mask_matrix_init_hybrid(mask, "w", ROWS, COLS, 128, 128, &err), &err);
  for (int64_t t = 0; t < mask_tile_count(mask); t++) mask->tiles[t] = rng_uniform(&rng) < 0.5;
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t g = 0; g < mask_group_count(mask); g++) {
      uint8_t code;
      do code = sparse_candidate_code[rng_below(&rng, SPARSE_CANDIDATES)];
      while (!sparse_code_fits(code, mask_group_width(mask, g)));
      mask_set_code(mask, r, g, code);
    }
}

static void make_fragments(struct fragment_matrix *f, const struct quant_form *form,
                           uint64_t seed) {
  struct error err = {0};
  struct mask_matrix mask;
  struct quant_owned owned;
  const struct quant_source source = {.ctx = &seed, .row = random_row};
  draw_mask(&mask, seed);
  gpu_must(quant_make(&owned, form, &mask, ROWS, COLS, &source, "w", &err), &err);
  gpu_must(fragment_pack_quant(f, &owned.matrix, &err), &err);
  quant_owned_free(&owned);
  mask_matrix_free(&mask);
}

/* `rounded`: prefill multiplies the weights of integers rounded to bf16. */
static double dot(const struct fragment_matrix *f, bool rounded, int64_t row, const uint16_t *x,
                  double *size) {
  float w[COLS];
  double sum = 0;
  *size = 1;
  fragment_row(f, row, w);
  for (int64_t k = 0; k < COLS && rounded; k++) w[k] = bf16_to_f32(bf16_from_f32(w[k]));
  for (int64_t k = 0; k < COLS; k++) {
    const double term = (double)w[k] * bf16_to_f32(x[k]);
    sum += term;
    *size += fabs(term);
  }
  return sum;
}

/* The largest error over what is allowed: the rounding to bf16, and what fp32 sums lose. `up` NULL:
 * no pair; else SiLU. */
static double worst_error(const struct fragment_matrix *gate, const struct fragment_matrix *up,
                          bool rounded, const uint16_t *x, uint32_t tokens, const uint16_t *y) {
  double worst = 0;
  for (int64_t row = 0; row < ROWS; row++)
    for (uint32_t t = 0; t < tokens; t++) {
      double size, up_size, sum = dot(gate, rounded, row, x + t * X_STRIDE, &size),
                            allowed = 1e-5 * size;
      if (up) {
        const double other = dot(up, rounded, row, x + t * X_STRIDE, &up_size),
                     f = sum / (1 + exp(-sum));
        allowed = 1e-5 * (1 + 1.2 * size * fabs(other) + fabs(f) * up_size);
        sum = f * other;
      }
      const double off = fabs(bf16_to_f32(y[t * ROWS + row]) - sum) / (fabs(sum) / 256 + allowed);
      if (!(off <= worst)) worst = off; /* a NaN stays */
    }
  return worst;
}

/* Twice on the card; returns the worst error, or infinity when the two differ. */
static double check(struct gpu *gpu, const struct fragment_matrix *gate,
                    const struct fragment_matrix *up, uint32_t tokens, struct gpu_variant variant) {
  struct error err = {0};
  struct gpu_matrix m;
  struct gpu_product p;
  struct rng rng = rng_make(tokens, variant.panel_tokens);
  const bool rounded = gate->form.scales && (variant.cluster || variant.tall);
  const size_t x_count = (size_t)tokens * X_STRIDE, y_bytes = (size_t)tokens * ROWS * 2;
  uint16_t *x = must_alloc(x_count, 2), *y[2] = {must_alloc(y_bytes, 1), must_alloc(y_bytes, 1)};
  void *x_card, *y_card;
  for (size_t i = 0; i < x_count; i++) x[i] = bf16_from_f32(0.1f * (float)rng_normal(&rng));
  gpu_must(up ? gpu_matrix_upload_pair(gpu, gate, up, PAIR_SILU, &m, &err)
              : gpu_matrix_upload(gpu, gate, &m, &err),
           &err);
  gpu_must(gpu_product_prepare(gpu, &m, tokens, &variant, &p, &err), &err);
  gpu_must(gpu_alloc(gpu, x_count * 2, &x_card, &err), &err);
  gpu_must(gpu_upload(gpu, x_card, x, x_count * 2, &err), &err);
  gpu_must(gpu_alloc(gpu, y_bytes, &y_card, &err), &err);
  const struct gpu_operands operands = {x_card, X_STRIDE, y_card, ROWS, NULL, NULL, NULL};
  for (int run = 0; run < 2; run++) {
    gpu_must(gpu_zero(gpu, y_card, y_bytes, &err), &err);
    gpu_must(gpu_product_run(gpu, &p, &operands, &err), &err);
    gpu_must(gpu_download(gpu, y[run], y_card, y_bytes, &err), &err);
  }
  const double worst = memcmp(y[0], y[1], y_bytes)
                           ? (double)INFINITY
                           : worst_error(gate, up, rounded, x, tokens, y[0]);
  gpu_free(gpu, x_card);
  gpu_free(gpu, y_card);
  gpu_product_free(gpu, &p);
  gpu_matrix_free(gpu, &m);
  mem_free(x);
  mem_free(y[0]);
  mem_free(y[1]);
  return worst;
}

struct forms_check {
  const struct gpu_run *run;
  FILE *ledger;
  const struct quant_form *form;
  const struct fragment_matrix *gate, *up;
};

/* One row of the ledger; returns how many failed. */
static int check_row(const struct forms_check *c, bool pair, uint32_t tokens,
                     struct gpu_variant variant) {
  char name[32];
  const double worst = check(c->run->gpu, c->gate, pair ? c->up : NULL, tokens, variant);
  gpu_variant_name(variant, name);
  gpu_row_begin(c->ledger, c->run);
  fprintf(c->ledger, "%s%s_%s_g%lld%s,%d,%d,0.5,%u,%.3g,,%d,%d\n", pair ? "pair_" : "", name,
          quant_type_name(c->form->type), (long long)c->form->group, c->form->mins ? "_mins" : "",
          ROWS, COLS, tokens, worst, !isinf(worst), worst <= 1);
  return !(worst <= 1);
}

int gpu_check_forms(const struct gpu_run *run, FILE *ledger) {
  static const struct quant_form forms[] = {
      {QUANT_I8, 0, false}, {QUANT_I8, 32, false}, {QUANT_I4, 32, false}, {QUANT_I4, 32, true}};
  static const uint32_t panels[] = {8, 16, 32, 64};
  int failures = 0;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
    struct fragment_matrix gate, up;
    struct gpu_variant prefill[GPU_VARIANTS_MAX];
    make_fragments(&gate, &forms[i], 1);
    make_fragments(&up, &forms[i], 2);
    const struct forms_check c = {run, ledger, &forms[i], &gate, &up};
    for (size_t k = 0; k < 8; k++) {
      const uint32_t panel = panels[k % 4], tokens = panel + (k % 2 ? 3 : 0) - (k == 0 ? 7 : 0);
      failures += check_row(&c, k / 4, tokens, (struct gpu_variant){panel, 0, false});
    }
    const int count = gpu_variants(run->gpu, gate.form, gate.strips, 300, prefill);
    for (int k = 0; k < count; k++)
      for (int pair = 0; pair < 2; pair++)
        if (prefill[k].tall || prefill[k].cluster > (pair ? 1 : 0))
          failures += check_row(&c, pair, k % 2 ? 300 : 77, prefill[k]);
    fragment_release(&gate);
    fragment_release(&up);
  }
  return failures;
}
