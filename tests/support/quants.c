#include "support/quants.h"

#include <string.h>

#include "base/mem.h"
#include "support/support.h"

const struct quant_form quant_forms[QUANT_FORMS] = {
    {QUANT_I8, 0, false}, {QUANT_I8, 32, false}, {QUANT_I4, 0, false},  {QUANT_I4, 32, false},
    {QUANT_I4, 32, true}, {QUANT_I8, 64, false}, {QUANT_I4, 128, true},
};

struct plain {
  const float *w;
  int64_t cols;
};
static void plain_row(void *ctx, int64_t row, float *out) {
  const struct plain *p = ctx;
  memcpy(out, p->w + row * p->cols, (size_t)p->cols * sizeof *out);
}

void quant_case_make(struct quant_case *c, const struct quant_form *form, int64_t rows,
                     int64_t cols, int64_t tile, double dense_share, uint64_t seed) {
  struct error err = {0};
  *c = (struct quant_case){.owned = {.memory = NULL}};
  if (tile) hybrid_case_make(&c->hybrid, rows, cols, tile, dense_share, DTYPE_BF16, seed);
  float *w = mem_alloc((size_t)(rows * cols), sizeof *w, &err);
  assert_non_null(w);
  fill_normal(w, (size_t)(rows * cols), seed, 1);
  struct plain plain = {w, cols};
  const struct quant_source source = {.ctx = &plain, .row = plain_row};
  must(quant_make(&c->owned, form, tile ? &c->hybrid.mask : NULL, rows, cols, &source, "w", &err),
       err);
  mem_free(w);
}

void quant_case_free(struct quant_case *c) {
  quant_owned_free(&c->owned);
  if (c->hybrid.map) hybrid_case_free(&c->hybrid);
}
