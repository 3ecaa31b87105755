/* Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a
 * counter-based generator. A random number is a pure function of (key, counter), so noise is
 * regenerated instead of stored, and does not depend on threads or on order. */
#ifndef TSR_BASE_RNG_H
#define TSR_BASE_RNG_H

#include <stdint.h>

/* The constants of a round: products with two words of the counter, steps of the two of the key. */
enum { PHILOX_ROUNDS = 10 };
static const uint32_t PHILOX_MULTIPLIER[2] = {0xD2511F53u, 0xCD9E8D57u};
static const uint32_t PHILOX_STEP[2] = {0x9E3779B9u, 0xBB67AE85u};

/* The ten rounds. key[2], counter[4] -> out[4]. */
void philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* A uniform in the open interval (0, 1): the upper 23 bits, shifted by half a step, so that
 * neither end occurs and log() is finite. Exactly representable in fp32. */
static inline float rng_uniform_open(uint32_t bits) {
  return ((float)(bits >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

/* Six uniforms in (0, 1) of 21 bits each from the 128 bits of one Philox block, shifted by half a
 * step: the upper 21 bits of each word, then the 11 and 10 that words 0 and 1 leave over, then
 * those of words 2 and 3. */
static inline void rng_six_uniforms(const uint32_t words[4], float u[6]) {
  for (int k = 0; k < 6; k++) {
    const uint32_t *pair = words + (k == 5 ? 2 : 0);
    uint32_t bits = k < 4 ? words[k] >> 11 : (pair[0] & 0x7ff) << 10 | (pair[1] & 0x3ff);
    u[k] = ((float)bits + 0.5f) * (1.0f / 2097152.0f);
  }
}

/* A sequential stream over one Philox key, for samplers and shuffles. */
struct rng {
  uint32_t key[2];
  uint64_t position; /* how many 32-bit words have been drawn: this is the whole state */
  uint32_t stream;
};
struct rng rng_make(uint64_t seed, uint32_t stream);
uint32_t rng_next(struct rng *rng);
/* Unbiased integer in [0, bound), bound >= 1. */
uint64_t rng_below(struct rng *rng, uint64_t bound);
double rng_uniform(struct rng *rng); /* [0, 1), 53 bits */
double rng_normal(struct rng *rng);  /* standard normal, Box-Muller */

#endif
