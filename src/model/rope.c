/* Rotary frequencies and tables: see rope.h. Frequencies are rounded to fp32 before they are
 * multiplied by the position, as transformers does: at position 8000 that rounding is worth 1e-4 in
 * the angle, so doing better would mean disagreeing with what the model was trained on. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"

enum { ROPE_PAIRS_MAX = 1024 };

/* LLaMA 3.1: low frequencies are divided by `factor`, high ones kept, those between blended. */
static float llama3_frequency(const struct rope_config *rope, float frequency) {
  double wavelength = 2 * M_PI / frequency, context = rope->original_context;
  if (wavelength < context / rope->high_freq_factor) return frequency;
  if (wavelength > context / rope->low_freq_factor) return (float)(frequency / rope->factor);
  double smooth = (context / wavelength - rope->low_freq_factor) /
                  (rope->high_freq_factor - rope->low_freq_factor);
  return (float)((1 - smooth) * frequency / rope->factor + smooth * frequency);
}

void rope_frequencies(const struct rope_config *rope, int64_t head_dim, float *out) {
  for (int64_t i = 0; i < head_dim / 2; i++) {
    float power = (float)pow(rope->theta, (double)(2 * i) / (double)head_dim);
    float frequency = 1.0f / power;
    if (rope->scaling == ROPE_LINEAR) frequency = (float)(frequency / rope->factor);
    if (rope->scaling == ROPE_LLAMA3) frequency = llama3_frequency(rope, frequency);
    out[i] = frequency;
  }
}

struct fill {
  struct rope_table *table;
  const float *frequency;
  int64_t half;
};

static void fill_position(void *ctx, int64_t position, int worker) {
  struct fill *f = ctx;
  for (int64_t i = 0; i < f->half; i++) {
    float angle = (float)position * f->frequency[i];
    f->table->cosine[position * f->half + i] = (float)cos((double)angle);
    f->table->sine[position * f->half + i] = (float)sin((double)angle);
  }
}

enum status rope_table_init(struct rope_table *table, const struct rope_config *rope,
                            int64_t head_dim, int64_t positions, struct error *err) {
  int64_t half = head_dim / 2;
  float *frequency = mem_alloc((size_t)half, sizeof *frequency, err);
  table->cosine = mem_alloc((size_t)positions, (size_t)half * sizeof(float), err);
  table->sine = mem_alloc((size_t)positions, (size_t)half * sizeof(float), err);
  bool had_memory = frequency && table->cosine && table->sine;
  if (had_memory) {
    rope_frequencies(rope, head_dim, frequency);
    struct fill fill = {table, frequency, half};
    parallel_for(positions, fill_position, &fill);
  } else {
    rope_table_release(table);
  }
  mem_free(frequency);
  return had_memory ? STATUS_OK : STATUS_FAILED;
}

void rope_table_release(struct rope_table *table) {
  mem_free(table->cosine);
  mem_free(table->sine);
  *table = (struct rope_table){0};
}

/* The factor is the largest divisor. Every released LLaMA 3.1, 3.2 and 3.3 blends between
 * wavelengths of 1/4 and 1 of its original context; any blended frequency then tells that context.
 */
bool rope_recognise_llama3(struct rope_config *rope, const void *divisors, int64_t head_dim) {
  struct rope_config guess = {.theta = rope->theta,
                              .scaling = ROPE_LLAMA3,
                              .factor = 1,
                              .low_freq_factor = 1,
                              .high_freq_factor = 4,
                              .original_context = 8192};
  struct rope_config plain = {.theta = rope->theta};
  float divisor[ROPE_PAIRS_MAX], frequency[ROPE_PAIRS_MAX];
  int64_t pairs = head_dim / 2;
  if (pairs > ROPE_PAIRS_MAX) return false;
  memcpy(divisor, divisors, (size_t)pairs * sizeof *divisor);
  rope_frequencies(&plain, head_dim, frequency);
  for (int64_t i = 0; i < pairs; i++) {
    if (!(divisor[i] >= 1 && divisor[i] <= 1024)) return false;
    if (divisor[i] > guess.factor) guess.factor = divisor[i];
  }
  for (int64_t i = 0; i < pairs; i++) {
    double smooth = (1 / divisor[i] - 1 / guess.factor) / (1 - 1 / guess.factor);
    if (smooth > 0.01 && smooth < 0.99)
      guess.original_context = round((3 * smooth + 1) * 2 * M_PI / frequency[i]);
  }
  for (int64_t i = 0; i < pairs; i++) {
    double expected = frequency[i] / (double)llama3_frequency(&guess, frequency[i]);
    if (fabs(divisor[i] - expected) > 1e-3 * expected) return false;
  }
  *rope = guess;
  return true;
}
