/* Philox: see rng.h. */
#include "base/rng.h"

#include <math.h>

void philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
  uint32_t k0 = key[0], k1 = key[1];
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    uint64_t p0 = (uint64_t)PHILOX_MULTIPLIER[0] * c0;
    uint64_t p1 = (uint64_t)PHILOX_MULTIPLIER[1] * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += PHILOX_STEP[0];
    k1 += PHILOX_STEP[1];
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

struct rng rng_make(uint64_t seed, uint32_t stream) {
  return (struct rng){{(uint32_t)seed, (uint32_t)(seed >> 32)}, 0, stream};
}

uint32_t rng_next(struct rng *rng) {
  uint64_t block = rng->position / 4;
  uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), rng->stream, 0}, out[4];
  philox4x32(rng->key, counter, out);
  return out[rng->position++ % 4];
}

uint64_t rng_below(struct rng *rng, uint64_t bound) {
  uint64_t limit = bound * (UINT64_MAX / bound); /* the largest multiple that fits */
  for (;;) {
    uint64_t high = rng_next(rng);
    uint64_t value = high << 32 | rng_next(rng);
    if (value < limit) return value % bound;
  }
}

double rng_uniform(struct rng *rng) {
  uint64_t high = rng_next(rng);
  uint64_t bits = high << 32 | rng_next(rng);
  return (double)(bits >> 11) * 0x1p-53;
}

double rng_normal(struct rng *rng) {
  double radius = sqrt(-2.0 * log(1.0 - rng_uniform(rng)));
  return radius * cos(6.283185307179586 * rng_uniform(rng));
}
