/* Sampling: see sampler.h.
 *
 * All three filters keep a prefix of the candidates sorted by likelihood, so none needs the whole
 * vocabulary sorted: a heap is built in linear time and popped until the filters are satisfied. */
#include "generate/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"

struct sampler_settings sampler_settings_default(void) {
  return (struct sampler_settings){.top_p = 1, .repetition_penalty = 1};
}

static enum status check_settings(const struct sampler_settings *s, struct error *err) {
  if (!(s->temperature >= 0) || isinf(s->temperature))
    return error_set(err, STATUS_USAGE, "temperature %g is not a number from 0 up", s->temperature);
  if (s->top_k < 0)
    return error_set(err, STATUS_USAGE, "top-k %lld is negative; 0 means all tokens",
                     (long long)s->top_k);
  if (!(s->top_p > 0 && s->top_p <= 1))
    return error_set(err, STATUS_USAGE, "top-p %g is not in (0, 1]; 1 means all tokens", s->top_p);
  if (!(s->min_p >= 0 && s->min_p <= 1))
    return error_set(err, STATUS_USAGE, "min-p %g is not in [0, 1]; 0 means off", s->min_p);
  if (!(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
    return error_set(err, STATUS_USAGE, "repetition penalty %g is not above 0; 1 means off",
                     s->repetition_penalty);
  return STATUS_OK;
}

enum status sampler_init(struct sampler *s, const struct sampler_settings *settings,
                         int64_t vocab_size, struct error *err) {
  INVARIANT(vocab_size > 0 && vocab_size <= INT32_MAX);
  *s = (struct sampler){
      .settings = *settings, .rng = rng_make(settings->seed, 0), .vocab_size = vocab_size};
  enum status status = check_settings(settings, err);
  if (status) return status;
  size_t n = (size_t)vocab_size;
  s->seen = mem_alloc(n, sizeof *s->seen, err);
  s->heap = mem_alloc(n, sizeof *s->heap, err);
  s->mass = mem_alloc(n, sizeof *s->mass, err);
  if (s->seen && s->heap && s->mass) return STATUS_OK;
  sampler_release(s);
  return STATUS_FAILED;
}

void sampler_release(struct sampler *s) {
  mem_free(s->seen);
  mem_free(s->heap);
  mem_free(s->mass);
  *s = (struct sampler){0};
}

void sampler_see(struct sampler *s, int32_t id) {
  if (id >= 0 && id < s->vocab_size) s->seen[id] = 1;
}

void sampler_forget(struct sampler *s) { memset(s->seen, 0, (size_t)s->vocab_size); }

static void penalise(const struct sampler *s, float *logits) {
  float penalty = (float)s->settings.repetition_penalty;
  if (penalty == 1.0f) return;
  for (int64_t i = 0; i < s->vocab_size; i++)
    if (s->seen[i]) logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
}

/* Id of the largest logit, the smallest id among equals; -1 when the logits are no numbers. */
static int32_t largest(const float *logits, int64_t n) {
  int32_t best = 0;
  for (int64_t i = 0; i < n; i++) {
    if (isnan(logits[i])) return -1;
    if (logits[i] > logits[best]) best = (int32_t)i;
  }
  return isinf(logits[best]) ? -1 : best;
}

/* The order of the heap: likelier first, then smaller id. */
static bool before(const double *mass, int32_t a, int32_t b) {
  return mass[a] != mass[b] ? mass[a] > mass[b] : a < b;
}

static void sift_down(const double *mass, int32_t *heap, int64_t n, int64_t i) {
  int32_t moving = heap[i];
  for (int64_t child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(mass, heap[child + 1], heap[child])) child++;
    if (!before(mass, heap[child], moving)) break;
    heap[i] = heap[child];
  }
  heap[i] = moving;
}

/* Moves the likeliest candidate from the heap of size n to heap[n - 1]. */
static int32_t pop(const double *mass, int32_t *heap, int64_t n) {
  int32_t top = heap[0];
  heap[0] = heap[n - 1];
  heap[n - 1] = top;
  sift_down(mass, heap, n - 1, 0);
  return top;
}

/* A uniform point of `total` lands on one of the candidates heap[n - 1], heap[n - 2], ... */
static int32_t draw_from(struct sampler *s, int64_t n, int64_t kept, double total) {
  double point = rng_uniform(&s->rng) * total;
  for (int64_t i = 1; i < kept; i++) {
    point -= s->mass[s->heap[n - i]];
    if (point < 0) return s->heap[n - i];
  }
  return s->heap[n - kept]; /* also when rounding used up the mass */
}

/* Pops the candidates that all filters keep and draws one of them. `total`: mass of everything. */
static int32_t draw_filtered(struct sampler *s, double total) {
  const struct sampler_settings *set = &s->settings;
  int64_t n = s->vocab_size, most = set->top_k > 0 && set->top_k < n ? set->top_k : n;
  for (int64_t i = 0; i < n; i++) s->heap[i] = (int32_t)i;
  for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(s->mass, s->heap, n, i);
  int64_t popped = 0;
  if (most < n) { /* top-p is a share of what top-k keeps: that mass must be known first */
    total = 0;
    for (; popped < most; popped++) total += s->mass[pop(s->mass, s->heap, n - popped)];
  }
  double kept_mass = 0, needed = set->top_p * total;
  int64_t kept = 0;
  while (kept < most) {
    if (kept == popped) {
      pop(s->mass, s->heap, n - popped);
      popped++;
    }
    double mass = s->mass[s->heap[n - 1 - kept]];
    /* mass is relative to the likeliest, so min-p is compared as it is; the likeliest always stays
     */
    if (kept > 0 && (mass < set->min_p || mass == 0)) break;
    kept_mass += mass;
    kept++;
    if (set->top_p < 1 && kept_mass >= needed) break;
  }
  return draw_from(s, n, kept, kept_mass);
}

/* Without filters nothing need be sorted: candidates in order of their ids. */
static int32_t draw_unfiltered(struct sampler *s, double total, int32_t likeliest) {
  double point = rng_uniform(&s->rng) * total;
  for (int64_t i = 0; i < s->vocab_size; i++) {
    point -= s->mass[i];
    if (point < 0) return (int32_t)i;
  }
  return likeliest; /* rounding used up the mass */
}

double sampler_uniform(struct sampler *s) {
  return s->settings.temperature > 0 ? rng_uniform(&s->rng) : 0;
}

int32_t sampler_draw(struct sampler *s, float *logits) {
  const struct sampler_settings *set = &s->settings;
  penalise(s, logits);
  int32_t best = largest(logits, s->vocab_size);
  if (best < 0) return -1;
  int32_t id = best;
  if (set->temperature > 0) {
    double total = 0;
    for (int64_t i = 0; i < s->vocab_size; i++) {
      s->mass[i] = exp(((double)logits[i] - (double)logits[best]) / set->temperature);
      total += s->mass[i];
    }
    bool filtered = set->top_k > 0 || set->top_p < 1 || set->min_p > 0;
    id = filtered ? draw_filtered(s, total) : draw_unfiltered(s, total, best);
  }
  sampler_see(s, id);
  return id;
}
