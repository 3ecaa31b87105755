/* Logits of any n:m: see pattern.h. */
#include "learn/pattern.h"

#include <math.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"

enum { STREAM_PATTERN_INIT = 0x494e4902 }; /* far from the numbers of the noise's draws */

enum status pattern_logits_init(struct pattern_logits *p, const struct learn_settings *settings,
                                int64_t rows, int64_t cols, struct error *err) {
  *p = (struct pattern_logits){.rows = rows, .cols = cols};
  if (!mask_pattern_make(&p->table, settings->keep, settings->of))
    return error_set(err, STATUS_USAGE, "--pattern %d:%d has no table of candidates",
                     settings->keep, settings->of);
  p->count = pattern_logit_count(&p->table, rows, cols);
  float **const arrays[] = {&p->logit, &p->gradient, &p->moment1, &p->moment2};
  for (int i = 0; i < 4; i++)
    if (!(*arrays[i] = mem_alloc((size_t)p->count, sizeof(float), err))) {
      pattern_logits_free(p);
      return STATUS_FAILED;
    }
  return STATUS_OK;
}

void pattern_logits_free(struct pattern_logits *p) {
  mem_free(p->logit);
  mem_free(p->gradient);
  mem_free(p->moment1);
  mem_free(p->moment2);
  *p = (struct pattern_logits){0};
}

int64_t pattern_logits_count(const struct learn_settings *settings, int64_t rows, int64_t cols) {
  struct mask_pattern table;
  if (!mask_pattern_make(&table, settings->keep, settings->of)) return 0;
  return pattern_logit_count(&table, rows, cols);
}

/* --- where they start --- */

struct start_job {
  struct pattern_logits *p;
  const struct mask_matrix *prior;
  const struct learn_settings *settings;
  int tensor;
};

/* Two normals of (seed, tensor, logit), by Box and Muller's method. */
static void two_normals(const struct start_job *job, uint64_t logit, float out[2]) {
  const uint64_t seed = job->settings->seed;
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const uint32_t counter[4] = {(uint32_t)logit, (uint32_t)(logit >> 32), (uint32_t)job->tensor,
                               STREAM_PATTERN_INIT};
  uint32_t bits[4];
  philox4x32(key, counter, bits);
  const float radius = sqrtf(-2 * logf(rng_uniform_open(bits[0])));
  const float angle = 6.2831853f * rng_uniform_open(bits[1]);
  out[0] = radius * cosf(angle);
  out[1] = radius * sinf(angle);
}

static void add_normals(const struct start_job *job, int64_t first, int count, float *logits) {
  for (int k = 0; k < count; k += 2) {
    float normals[2];
    two_normals(job, (uint64_t)(first + k), normals);
    for (int i = 0; i < 2 && k + i < count; i++)
      logits[k + i] += (float)job->settings->init_std * normals[i];
  }
}

/* The prior's choice in a group: bit c is column c. */
static uint32_t prior_group(const struct mask_matrix *prior, int64_t row, int64_t group, int of) {
  uint32_t kept = 0;
  for (int c = 0; c < of && group * of + c < prior->cols; c++)
    kept |= (uint32_t)mask_bit(prior, row, group * of + c) << c;
  return kept;
}

static void start_row(void *ctx, int64_t row, int worker) {
  const struct start_job *job = ctx;
  const struct mask_pattern *t = &job->p->table;
  const struct learn_settings *set = job->settings;
  const double size = set->init_std * set->prior_strength_24;
  const double mean = (double)t->keep * t->keep / t->of;
  const bool random = set->mode == LEARN_MASKLLM || set->prior_strength_24 == 0;
  const int64_t groups = pattern_groups(t, job->p->cols);
  (void)worker;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t first = (row * groups + g) * t->count;
    const uint32_t kept = prior_group(job->prior, row, g, t->of);
    float *logits = job->p->logit + first;
    for (int k = 0; k < t->count; k++)
      logits[k] = (float)(size * (__builtin_popcount(t->kept[k] & kept) - mean));
    if (random) add_normals(job, first, t->count, logits);
  }
}

void pattern_logits_start(struct pattern_logits *p, const struct mask_matrix *prior,
                          const struct learn_settings *settings, int tensor) {
  struct start_job job = {p, prior, settings, tensor};
  parallel_for(p->rows, start_row, &job);
}
