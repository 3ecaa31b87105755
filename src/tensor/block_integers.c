/* See block_integers.h; the layouts of the blocks stand in blocks.c. */
#include "tensor/block_integers.h"

#include "base/error.h"

enum { GROUP = BLOCK_INTEGERS_GROUP, K_GROUPS = 8 };

enum block_integers_kind block_integers_kind(enum dtype dtype) {
  switch (dtype) {
    case DTYPE_Q8_0:
    case DTYPE_Q5_0:
      return BLOCK_INTEGERS_I8;
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q4_K:
      return BLOCK_INTEGERS_I4;
    default:
      return BLOCK_INTEGERS_NONE;
  }
}

bool block_integers_mins(enum dtype dtype) { return dtype == DTYPE_Q4_1 || dtype == DTYPE_Q4_K; }

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

/* Low nibbles are weights 0 .. 15, high ones 16 .. 31. */
static void split_nibbles(const uint8_t *nibbles, uint8_t *out) {
  for (int i = 0; i < GROUP / 2; i++) {
    out[i] = nibbles[i] & 15;
    out[i + GROUP / 2] = nibbles[i] >> 4;
  }
}

static void take_q5_0(const uint8_t *block, uint8_t *out) {
  split_nibbles(block + 6, out);
  for (int i = 0; i < GROUP; i++) {
    const int fifth = block[2 + i / 8] >> i % 8 & 1;
    out[i] = (uint8_t)((out[i] | fifth << 4) - 16);
  }
}

/* Six bits each: the first four of both lie in bytes of their own, whose upper two bits belong to
 * the other four. */
static void take_q4_k(const uint8_t *block, uint8_t *out, uint16_t *scales, uint16_t *mins) {
  const float d = f16_to_f32(load_u16(block)), dmin = f16_to_f32(load_u16(block + 2));
  const uint8_t *packed = block + 4, *nibbles = block + 16;
  for (int g = 0; g < K_GROUPS; g++, out += GROUP) {
    const int i = g % 4;
    const int scale = g < 4 ? packed[i] & 63 : (packed[i + 8] & 15) | packed[i] >> 6 << 4;
    const int least = g < 4 ? packed[i + 4] & 63 : packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    scales[g] = f16_from_f32(d * (float)scale);
    mins[g] = f16_from_f32(-(dmin * (float)least));
    for (int k = 0; k < GROUP; k++) out[k] = nibbles[g / 2 * GROUP + k] >> g % 2 * 4 & 15;
  }
}

void block_integers(enum dtype dtype, const void *blocks, int64_t count, uint8_t *integers,
                    uint16_t *scales, uint16_t *mins) {
  const struct dtype_traits *t = dtype_traits(dtype);
  const uint8_t *block = blocks;
  INVARIANT(count % t->block_length == 0);
  for (int64_t i = 0; i < count; i += t->block_length, block += t->block_bytes) {
    uint8_t *out = integers + i;
    const int64_t g = i / GROUP;
    if (dtype == DTYPE_Q4_K) {
      take_q4_k(block, out, scales + g, mins + g);
      continue;
    }
    scales[g] = load_u16(block);
    if (dtype == DTYPE_Q8_0)
      memcpy(out, block + 2, GROUP);
    else if (dtype == DTYPE_Q5_0)
      take_q5_0(block, out);
    else
      split_nibbles(block + (dtype == DTYPE_Q4_1 ? 4 : 2), out);
    if (dtype == DTYPE_Q4_1) mins[g] = load_u16(block + 2);
  }
}
