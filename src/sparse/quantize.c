/* The search for scales: see quantize.h. No state. */
#include "sparse/quantize.h"

#include <math.h>

enum {
  I8_MOST = 127,
  I4_LEAST = -8,
  I4_MOST = 7,
  NIBBLE_MOST = 15,
  STEPS = 5 /* scales tried on either side of the first */
};
/* How far apart the tried scales are, as parts of the range of integers: the error of a nibble
 * falls until the largest weight is cut by about half a step. */
static const float STEP_I8 = 0.3f, STEP_I4 = 0.2f;

/* A group at hand and the best that was found for it. */
struct search {
  const float *w;
  int64_t count;
  float least, most; /* of the integers, as numbers around zero, or 0 .. 15 with mins */
  bool mins, half;   /* scales and mins are stored as f16 */
  double error;
  float scale, min;
};

/* To the nearest whole number, halves to even, by the rounding of the addition; |x| < 2^22. */
static float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

static float integer_of(const struct search *s, float w, float inverse, float min) {
  const float x = (w - min) * inverse;
  const float cut = x < s->least ? s->least : x > s->most ? s->most : x;
  return nearest(cut);
}

static float stored(const struct search *s, float x) {
  return s->half ? f16_to_f32(f16_from_f32(x)) : x;
}

/* The error with this scale and minimum, and the pair kept if it is the least so far. */
static void consider(struct search *s, float scale, float min) {
  scale = stored(s, scale);
  min = stored(s, min);
  const float inverse = scale != 0 ? 1 / scale : 0;
  if (!isfinite(scale) || !isfinite(min) || !isfinite(inverse)) return;
  double error = 0;
  for (int64_t i = 0; i < s->count; i++) {
    const float gap = s->w[i] - (scale * integer_of(s, s->w[i], inverse, min) + min);
    error += (double)gap * gap;
  }
  if (error >= s->error) return;
  s->error = error;
  s->scale = scale;
  s->min = min;
}

/* The best scale, or scale and minimum, for the integers that `inverse` and `min` give. */
static void refine(struct search *s, float inverse, float min) {
  double q_sum = 0, w_sum = 0, qq = 0, qw = 0;
  for (int64_t i = 0; i < s->count; i++) {
    const float q = integer_of(s, s->w[i], inverse, min), w = s->w[i];
    q_sum += (double)q;
    w_sum += (double)w;
    qq += (double)q * q;
    qw += (double)q * w;
  }
  if (!s->mins) {
    if (qq > 0) consider(s, (float)(qw / qq), 0);
    return;
  }
  const double n = (double)s->count, determinant = n * qq - q_sum * q_sum;
  if (determinant <= 0) return;
  const double scale = (n * qw - q_sum * w_sum) / determinant;
  consider(s, (float)scale, (float)((w_sum - scale * q_sum) / n));
}

/* int8, and int4 without mins: the largest weight goes to either end of int4, which reaches
 * further below zero than above. */
static void search_symmetric(struct search *s, bool wide, float step) {
  float largest = 0;
  for (int64_t i = 0; i < s->count; i++) largest = fmaxf(largest, fabsf(s->w[i]));
  const float end = s->most > -s->least ? s->most : -s->least;
  for (int sign = s->least + s->most != 0 ? -1 : 1; sign <= 1; sign += 2) {
    const float reach = (float)sign * end;
    consider(s, largest / reach, 0);
    for (int i = -STEPS; wide && largest > 0 && i <= STEPS; i++)
      refine(s, (reach + (float)sign * step * (float)i) / largest, 0);
  }
}

static void search_range(struct search *s, bool wide, float step) {
  float low = s->w[0], high = s->w[0];
  for (int64_t i = 1; i < s->count; i++) {
    low = fminf(low, s->w[i]);
    high = fmaxf(high, s->w[i]);
  }
  const float range = high - low;
  consider(s, range / NIBBLE_MOST, low);
  for (int i = -STEPS; wide && range > 0 && i <= STEPS; i++)
    refine(s, (NIBBLE_MOST + step * (float)i) / range, low);
}

double quantize_group(const struct quant_form *form, bool search, const float *w, int64_t count,
                      uint8_t *integers, float *scale, float *min) {
  const bool nibbles = form->type == QUANT_I4;
  struct search s = {.w = w,
                     .count = count,
                     .least = form->mins ? 0
                              : nibbles  ? I4_LEAST
                                         : -I8_MOST,
                     .most = form->mins ? NIBBLE_MOST
                             : nibbles  ? I4_MOST
                                        : I8_MOST,
                     .mins = form->mins,
                     .half = form->group != 0,
                     .error = INFINITY};
  *scale = *min = 0;
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(w[i])) return NAN;
  if (!count) return 0;
  const float step = nibbles ? STEP_I4 : STEP_I8;
  if (form->mins)
    search_range(&s, search, step);
  else
    search_symmetric(&s, search, step);
  if (isinf(s.error)) return NAN;
  const float inverse = s.scale != 0 ? 1 / s.scale : 0;
  const int zero = form->mins ? 0 : quant_zero(form->type);
  for (int64_t i = 0; i < count; i++)
    integers[i] = (uint8_t)((int)integer_of(&s, w[i], inverse, s.min) + zero);
  *scale = s.scale;
  *min = s.min;
  return s.error;
}
