/* Drawing a token from logits, as generate/sampler.c does it. After a vocabulary.
 *
 * Nothing is sorted. Likelihoods become integers, in units of 2^-44 of the likeliest: sums of them
 * are exact in any order. Candidates are ordered by logit, then id; every filter keeps a beginning
 * of that order, and the draw itself is the first candidate at which a running sum passes a point.
 * Both are found by halving the range of logits' bits: 32 sums over the vocabulary each. */
#ifndef TSR_KERNEL_CUDA_SERVE_SAMPLE_H
#define TSR_KERNEL_CUDA_SERVE_SAMPLE_H

#include "kernel/cuda/common.h"
#include "kernel/cuda/serve.h"

#define SAMPLE_UNIT 17592186044416.0 /* 2^44: sums of 2^19 candidates fit 64 bits */

/* Larger for larger logits; zeros of both signs alike. */
DEVICE uint32_t sample_key(float logit) {
  const uint32_t bits = bits_of_float(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE uint64_t block_sum_long(uint64_t x) {
  const uint32_t at = shared_base();
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const uint32_t low = shuffle_xor((uint32_t)x, step);
    const uint32_t high = shuffle_xor((uint32_t)(x >> 32), step);
    x += (uint64_t)high << 32 | low;
  }
  block_barrier();
  if (thread_index() % 32 == 0) {
    shared_store4(at + thread_index() / 32 * 8, (uint32_t)x);
    shared_store4(at + thread_index() / 32 * 8 + 4, (uint32_t)(x >> 32));
  }
  block_barrier();
  uint64_t sum = 0;
  for (uint32_t w = 0; w < LEARN_WARPS; w++) {
    const uint32_t low = shared_load4(at + 8 * w), high = shared_load4(at + 8 * w + 4);
    sum += (uint64_t)high << 32 | low;
  }
  return sum;
}
DEVICE uint64_t block_max_long(uint64_t x) {
  const uint32_t at = shared_base();
  uint64_t most = 0;
  UNROLL for (uint32_t step = 16; step; step /= 2) {
    const uint32_t low = shuffle_xor((uint32_t)x, step);
    const uint32_t high = shuffle_xor((uint32_t)(x >> 32), step);
    const uint64_t other = (uint64_t)high << 32 | low;
    x = other > x ? other : x;
  }
  block_barrier();
  if (thread_index() % 32 == 0) {
    shared_store4(at + thread_index() / 32 * 8, (uint32_t)x);
    shared_store4(at + thread_index() / 32 * 8 + 4, (uint32_t)(x >> 32));
  }
  block_barrier();
  for (uint32_t w = 0; w < LEARN_WARPS; w++) {
    const uint32_t low = shared_load4(at + 8 * w), high = shared_load4(at + 8 * w + 4);
    const uint64_t other = (uint64_t)high << 32 | low;
    most = other > most ? other : most;
  }
  return most;
}

struct sampling {
  float *logits;
  unsigned long long *mass;
  const struct serve_draw *draw;
  uint32_t vocab;
};

/* The candidates with keys above `key`, and the first `ties` with that key. */
struct beginning {
  uint32_t key;
  uint64_t ties;
  uint64_t count, mass; /* of all of them */
};

/* Of the candidates with keys from `key` on: how many, or their mass. */
DEVICE uint64_t sum_from(const struct sampling *s, uint32_t key, bool masses) {
  uint64_t sum = 0;
  for (uint32_t i = thread_index(); i < s->vocab; i += SERVE_THREADS)
    if (sample_key(global_load_fresh(s->logits + i)) >= key)
      sum += masses ? global_load_fresh(s->mass + i) : 1;
  return block_sum_long(sum);
}

/* The largest key from which on the sum reaches `target`, at least 1 and at most the sum of all. */
DEVICE uint32_t key_reaching(const struct sampling *s, uint64_t target, bool masses) {
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit; bit /= 2)
    if (sum_from(s, key | bit, masses) >= target) key |= bit;
  return key;
}

/* The shortest beginning whose sum reaches `target`. */
DEVICE struct beginning beginning_reaching(const struct sampling *s, uint64_t target, bool masses) {
  struct beginning b;
  b.key = key_reaching(s, target, masses);
  /* no logit that is a number has the largest key */
  const uint64_t above = sum_from(s, b.key + 1, true), count_above = sum_from(s, b.key + 1, false);
  const uint64_t with = sum_from(s, b.key, true), count_with = sum_from(s, b.key, false);
  const uint64_t each = count_with > count_above ? (with - above) / (count_with - count_above) : 0;
  const uint64_t missing = target - (masses ? above : count_above);
  b.ties = masses && each ? (missing + each - 1) / each : missing;
  b.count = count_above + b.ties;
  b.mass = above + b.ties * each;
  return b;
}

/* The n-th, from 1 on, of the ids with this key: the smallest end such that n lie before it. */
DEVICE uint32_t tie_at(const struct sampling *s, uint32_t key, uint64_t n) {
  uint32_t low = 0, high = s->vocab;
  while (low + 1 < high) {
    const uint32_t middle = low + (high - low) / 2;
    uint64_t count = 0;
    for (uint32_t i = thread_index(); i < middle; i += SERVE_THREADS)
      count += sample_key(global_load_fresh(s->logits + i)) == key;
    if (block_sum_long(count) >= n)
      high = middle;
    else
      low = middle;
  }
  return high - 1;
}

/* The first id at which the masses of all ids up to it pass `point`. */
DEVICE uint32_t id_passing(const struct sampling *s, uint64_t point) {
  uint32_t low = 0, high = s->vocab;
  while (low + 1 < high) {
    const uint32_t middle = low + (high - low) / 2;
    uint64_t sum = 0;
    for (uint32_t i = thread_index(); i < middle; i += SERVE_THREADS)
      sum += global_load_fresh(s->mass + i);
    if (block_sum_long(sum) > point)
      high = middle;
    else
      low = middle;
  }
  return high - 1;
}

/* Penalises; returns key << 32 | ~id of the likeliest, 0 where a logit is no number. */
DEVICE uint64_t sample_prepare(const struct serve_sample_args *a, const struct sampling *s) {
  const uint8_t *seen = a->seen + (uint64_t)s->draw->slot * a->vocab;
  const float penalty = global_load(&s->draw->penalty);
  uint64_t best = 0, broken = 0;
  for (uint32_t i = thread_index(); i < s->vocab; i += SERVE_THREADS) {
    float x = global_load_fresh(s->logits + i);
    if (penalty != 1 && global_load_fresh(seen + i)) x = x > 0 ? x / penalty : x * penalty;
    global_store(s->logits + i, x);
    broken |= isnan(x) ? 1u : 0u;
    const uint64_t mine = (uint64_t)sample_key(x) << 32 | (0xffffffffu - i);
    best = mine > best ? mine : best;
  }
  best = block_max_long(best);
  broken = block_max_long(broken);
  const uint32_t infinite = sample_key(INFINITY), least = sample_key(-INFINITY);
  const uint32_t key = (uint32_t)(best >> 32);
  return broken || key >= infinite || key <= least ? 0 : best;
}

DEVICE uint64_t make_masses(const struct sampling *s, float best, double temperature) {
  uint64_t total = 0;
  for (uint32_t i = thread_index(); i < s->vocab; i += SERVE_THREADS) {
    const double share =
        exp(((double)global_load_fresh(s->logits + i) - (double)best) / temperature);
    const uint64_t mass = (uint64_t)(share * SAMPLE_UNIT + 0.5);
    global_store(s->mass + i, mass);
    total += mass;
  }
  return block_sum_long(total);
}

/* Candidates that are worth their place: from min_p of the likeliest on, and more than nothing. */
DEVICE uint64_t count_worthy(const struct sampling *s, double min_p) {
  const double least = min_p * SAMPLE_UNIT;
  uint64_t count = 0;
  for (uint32_t i = thread_index(); i < s->vocab; i += SERVE_THREADS) {
    const uint64_t mass = global_load_fresh(s->mass + i);
    count += mass > 0 && (double)mass >= least;
  }
  count = block_sum_long(count);
  return count ? count : 1;
}

DEVICE uint32_t draw_filtered(const struct sampling *s, const struct serve_draw *d,
                              uint64_t total) {
  const uint64_t worthy = count_worthy(s, d->min_p);
  const uint64_t most = d->top_k && d->top_k < s->vocab ? d->top_k : s->vocab;
  struct beginning kept = {0, 0, s->vocab, total};
  if (most < s->vocab) kept = beginning_reaching(s, most, false);
  if (d->top_p < 1) {
    const double share = d->top_p * (double)kept.mass;
    uint64_t target = (uint64_t)share;
    if ((double)target < share || !target) target++;
    if (target < kept.mass) kept = beginning_reaching(s, target, true);
  }
  if (worthy < kept.count) kept = beginning_reaching(s, worthy, false);
  uint64_t point = (uint64_t)(d->uniform * (double)kept.mass);
  if (point >= kept.mass) point = kept.mass - 1;
  const struct beginning drawn = beginning_reaching(s, point + 1, true);
  return tie_at(s, drawn.key, drawn.ties);
}

DEVICE void serve_sample_body(const struct serve_sample_args *a) {
  const uint32_t row = block_index();
  const struct serve_draw d = global_load(a->draws + row);
  const struct sampling s = {a->logits + (uint64_t)row * a->vocab,
                             a->mass + (uint64_t)row * a->vocab, a->draws + row, a->vocab};
  const uint64_t best = sample_prepare(a, &s);
  uint32_t id = 0xffffffffu - (uint32_t)best;
  if (best && d.temperature > 0) {
    const uint64_t total = make_masses(&s, global_load_fresh(s.logits + id), d.temperature);
    block_barrier();
    if (d.top_k || d.top_p < 1 || d.min_p > 0) {
      id = draw_filtered(&s, &d, total);
    } else {
      uint64_t point = (uint64_t)(d.uniform * (double)total);
      id = id_passing(&s, point < total ? point : total - 1);
    }
  }
  if (thread_index()) return;
  global_store(a->ids + row, best ? (int32_t)id : -1);
  if (best) global_store(a->seen + (uint64_t)d.slot * a->vocab + id, 1);
}
KERNEL(serve_sample, serve_sample_body, SERVE_THREADS, struct serve_sample_args)

#endif
