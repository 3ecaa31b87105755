/* Hard masks of any n:m, and the optimizer of their logits: see pattern_ops.h. No state but
 * scratch. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "kernel/pattern_ops.h"
#include "kernel/scratch.h"
#include "kernel/select.h"

enum { STRIP_ROWS = 32 };

/* --- hardening and the optimizer --- */

struct update {
  const struct mask_pattern *pattern;
  int64_t rows, cols;
  const struct mask_adamw *adamw; /* NULL: only hardened */
  const float *gradient;
  float *logits, *first, *second;
  const float *chosen_from;
  uint8_t *bits;
  int64_t *changed; /* (items) */
};

static int best_candidate(const struct mask_pattern *p, const float *logits, int64_t width) {
  int best = -1;
  for (int k = 0; k < p->count; k++)
    if (mask_pattern_fits(p, k, width) && (best < 0 || logits[k] > logits[best])) best = k;
  return best;
}

/* Writes a group's choice into its row's bits; returns whether it was another before. */
static bool put_choice(uint8_t *bits, int64_t first, int64_t width, uint32_t kept) {
  bool changed = false;
  for (int64_t c = 0; c < width; c++) {
    const int64_t at = first + c;
    const uint8_t bit = (uint8_t)(1u << (at % 8)), value = kept >> c & 1 ? bit : 0;
    changed |= (bits[at / 8] & bit) != value;
    bits[at / 8] = (uint8_t)((bits[at / 8] & ~bit) | value);
  }
  return changed;
}

static int64_t harden_row(const struct update *u, int64_t row) {
  const struct mask_pattern *p = u->pattern;
  const int64_t groups = pattern_groups(p, u->cols);
  uint8_t *bits = u->bits + row * ((u->cols + 7) / 8);
  int64_t changed = 0;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t left = u->cols - g * p->of, width = left < p->of ? left : p->of;
    const float *logits = u->chosen_from + (row * groups + g) * p->count;
    changed += put_choice(bits, g * p->of, width, p->kept[best_candidate(p, logits, width)]);
  }
  return changed;
}

static void adamw_row(const struct update *u, int64_t row) {
  const struct mask_adamw *a = u->adamw;
  const int64_t count = pattern_groups(u->pattern, u->cols) * u->pattern->count;
  const float correction1 = (float)(1 - pow(a->beta1, (double)a->step));
  const float correction2 = (float)(1 - pow(a->beta2, (double)a->step));
  for (int64_t i = row * count; i < (row + 1) * count; i++) {
    const float g = u->gradient[i] * a->gradient_scale;
    const float first = a->beta1 * u->first[i] + (1 - a->beta1) * g;
    const float second = a->beta2 * u->second[i] + (1 - a->beta2) * g * g;
    const float step = first / correction1 / (sqrtf(second / correction2) + a->epsilon);
    u->first[i] = first;
    u->second[i] = second;
    u->logits[i] = (1 - a->rate * a->weight_decay) * u->logits[i] - a->rate * step;
  }
}

static void update_item(void *ctx, int64_t item, int worker) {
  const struct update *u = ctx;
  (void)worker;
  u->changed[item] = 0;
  for (int64_t row = item * STRIP_ROWS; row < (item + 1) * STRIP_ROWS && row < u->rows; row++) {
    if (u->adamw) adamw_row(u, row);
    u->changed[item] += harden_row(u, row);
  }
}

static int64_t update_run(struct update *u) {
  const int64_t items = (u->rows + STRIP_ROWS - 1) / STRIP_ROWS;
  int64_t sum = 0;
  u->changed = kernel_scratch(SCRATCH_LINEAR, (size_t)(2 * items));
  parallel_for(items, update_item, u);
  for (int64_t i = 0; i < items; i++) sum += u->changed[i];
  return sum;
}

int64_t pattern_harden(const struct mask_pattern *pattern, const float *logits, int64_t rows,
                       int64_t cols, uint8_t *bits) {
  struct update u = {
      .pattern = pattern, .rows = rows, .cols = cols, .chosen_from = logits, .bits = bits};
  return update_run(&u);
}

int64_t pattern_adamw_step(const struct mask_pattern *pattern, const struct mask_adamw *settings,
                           int64_t rows, int64_t cols, const float *gradient, float *logits,
                           float *first, float *second, uint8_t *bits) {
  struct update u = {.pattern = pattern,
                     .rows = rows,
                     .cols = cols,
                     .adamw = settings,
                     .gradient = gradient,
                     .logits = logits,
                     .first = first,
                     .second = second,
                     .chosen_from = logits,
                     .bits = bits};
  return update_run(&u);
}

/* --- hard masks --- */

struct keeping {
  const struct mask_matrix *mask;
  struct matrix_view w;
  float *out;
};

/* A row of w in fp32: as it lies, or widened into `buffer`. */
static const float *row_weights(const struct matrix_view *w, int64_t row, float *buffer) {
  if (w->dtype == DTYPE_F32) return (const float *)w->data + row * w->cols;
  kernel_table()->widen(w->dtype, (const uint16_t *)w->data + row * w->cols, w->cols, buffer);
  return buffer;
}

static void keep_row(void *ctx, int64_t row, int worker) {
  const struct keeping *k = ctx;
  const int64_t cols = k->mask->cols;
  float *room = kernel_scratch(SCRATCH_MASK, (size_t)(2 * cols)), *kept = room + cols;
  float *out = k->out + row * cols;
  const float *w = row_weights(&k->w, row, room);
  (void)worker;
  mask_row(k->mask, row, kept);
  for (int64_t c = 0; c < cols; c++) out[c] = kept[c] > 0 ? w[c] : 0.0f;
}

void pattern_keep(const struct mask_matrix *mask, struct matrix_view w, float *out) {
  struct keeping k = {mask, w, out};
  parallel_for(mask->rows, keep_row, &k);
}
