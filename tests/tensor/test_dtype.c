/* Element types: halves against their definition over all 65536 values, blocks against the values
 * that the gguf package gives them, bit by bit. */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "io/safetensors.h"
#include "support/support.h"
#include "tensor/dtype.h"

static uint32_t bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

/* The definition: sign, exponent, mantissa. */
static double half_by_definition(uint32_t h, int exponent_bits, int mantissa_bits) {
  uint32_t mantissa = h & ((1u << mantissa_bits) - 1);
  uint32_t exponent = h >> mantissa_bits & ((1u << exponent_bits) - 1);
  int bias = (1 << (exponent_bits - 1)) - 1;
  double sign = h >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  if (exponent == (1u << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * ldexp(1u << mantissa_bits | mantissa, (int)exponent - bias - mantissa_bits);
}

static void halves_expand_exactly(void **state) {
  (void)state;
  for (uint32_t h = 0; h < 0x10000; h++) {
    double f16 = half_by_definition(h, 5, 10), bf16 = half_by_definition(h, 8, 7);
    float got = f16_to_f32((uint16_t)h), brain = bf16_to_f32((uint16_t)h);
    if (isnan(f16) ? !isnan(got) : bits_of(got) != bits_of((float)f16))
      fail_msg("f16 %04x gives %g, not %g", h, (double)got, f16);
    if (isnan(bf16) ? !isnan(brain) : bits_of(brain) != bits_of((float)bf16))
      fail_msg("bf16 %04x gives %g, not %g", h, (double)brain, bf16);
  }
}

/* Nearest half by search among the neighbours, ties to the even code: the definition of rounding.
 * `code` is a magnitude near the answer. */
static uint16_t nearest(double x, uint32_t code, int exponent_bits, int mantissa_bits) {
  uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits, best = 0;
  double least = INFINITY;
  for (uint32_t c = code > 2 ? code - 2 : 0; c <= code + 2 && c <= infinity; c++) {
    double value = half_by_definition(c, exponent_bits, mantissa_bits);
    /* for rounding, infinity sits where the next finite value would be */
    if (c == infinity) value = ldexp(1, 1 << (exponent_bits - 1));
    double distance = fabs(value - x);
    if (distance < least || (distance == least && c % 2 == 0)) best = c, least = distance;
  }
  return (uint16_t)best;
}

static void check_rounding(float x) {
  uint16_t sign = signbit(x) ? 0x8000 : 0;
  uint16_t f16 = f16_from_f32(x), bf16 = bf16_from_f32(x);
  uint16_t f16_right = sign | nearest(fabs((double)x), f16 & 0x7fff, 5, 10);
  uint16_t bf16_right = sign | nearest(fabs((double)x), bf16 & 0x7fff, 8, 7);
  if (f16 != f16_right) fail_msg("%a to f16 gives %04x, not %04x", (double)x, f16, f16_right);
  if (bf16 != bf16_right) fail_msg("%a to bf16 gives %04x, not %04x", (double)x, bf16, bf16_right);
}

static void halves_round_to_nearest_even(void **state) {
  (void)state;
  /* every half, the midpoint to its neighbour, and one float step to both sides of it */
  for (uint32_t h = 0; h < 0x7c00; h++) {
    float low = f16_to_f32((uint16_t)h);
    float high = h == 0x7bff ? 65536.0f : f16_to_f32((uint16_t)(h + 1));
    float middle = (low + high) / 2;
    float points[] = {low, middle, nextafterf(middle, 0), nextafterf(middle, INFINITY)};
    for (int i = 0; i < 4; i++) check_rounding(points[i]), check_rounding(-points[i]);
  }
  struct rng rng = rng_make(5, 0);
  for (int i = 0; i < 200000; i++) {
    uint32_t bits = rng_next(&rng);
    float x;
    memcpy(&x, &bits, 4);
    if (isfinite(x) && fabsf(x) < 65520.0f) check_rounding(x);
  }
}

static void halves_keep_what_is_special(void **state) {
  (void)state;
  assert_int_equal(f16_from_f32(INFINITY), 0x7c00);
  assert_int_equal(f16_from_f32(-1e30f), 0xfc00);
  assert_int_equal(f16_from_f32(65519.996f), 0x7bff);
  assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
  assert_int_equal(f16_from_f32(-0.0f), 0x8000);
  assert_int_equal(bf16_from_f32(3.4028235e38f), 0x7f80);
  assert_int_equal(bf16_from_f32(-INFINITY), 0xff80);
  for (uint32_t payload = 1; payload < 0x800000; payload = payload * 3 + 1) {
    uint32_t bits = 0x7f800000u | payload;
    float x;
    memcpy(&x, &bits, 4);
    assert_true(isnan(f16_to_f32(f16_from_f32(x))));
    assert_true(isnan(bf16_to_f32(bf16_from_f32(x))));
  }
}

static void bytes_of_eight_bit_floats(void **state) {
  (void)state;
  for (int q = 0; q < 256; q++) {
    uint8_t byte = (uint8_t)q;
    float e4m3, e5m2;
    dtype_to_f32(DTYPE_F8_E4M3, &byte, 1, &e4m3);
    dtype_to_f32(DTYPE_F8_E5M2, &byte, 1, &e5m2);
    /* e4m3 has no infinities: its top exponent is an ordinary one but for all ones */
    double wide = half_by_definition((uint32_t)q, 5, 2);
    double narrow = (q & 0x78) == 0x78
                        ? ((q & 7) == 7 ? NAN : (q & 0x80 ? -1 : 1) * ldexp(8 + (q & 7), 5))
                        : half_by_definition((uint32_t)q, 4, 3);
    assert_true(isnan(wide) ? isnan(e5m2) : bits_of(e5m2) == bits_of((float)wide));
    assert_true(isnan(narrow) ? isnan(e4m3) : bits_of(e4m3) == bits_of((float)narrow));
  }
}

static void blocks_expand_to_golden_bits(void **state) {
  (void)state;
  struct error err = {0};
  struct safetensors *file;
  must(safetensors_open(&file, golden("io/blocks.safetensors"), &err), err);
  for (int type = DTYPE_Q4_0; type < DTYPE_COUNT; type++) {
    const struct dtype_traits *traits = dtype_traits((enum dtype)type);
    char name[32];
    snprintf(name, sizeof name, "%s.blocks", traits->name);
    const struct stored_tensor *blocks = safetensors_find(file, name);
    snprintf(name, sizeof name, "%s.values", traits->name);
    const struct stored_tensor *values = safetensors_find(file, name);
    assert_non_null(blocks);
    assert_non_null(values);
    int64_t count = values->shape[0];
    assert_int_equal(blocks->shape[1], traits->block_bytes);
    assert_int_equal(count, blocks->shape[0] * traits->block_length);
    float *out = calloc((size_t)count, sizeof *out);
    dtype_to_f32((enum dtype)type, blocks->data, count, out);
    for (int64_t i = 0; i < count; i++) {
      float right;
      memcpy(&right, values->data + 4 * i, 4);
      if (bits_of(out[i]) != bits_of(right) && !(out[i] == 0 && right == 0))
        fail_msg("%s element %d is %a, not %a", traits->name, (int)i, (double)out[i],
                 (double)right);
    }
    free(out);
  }
  safetensors_close(file);
}

static void q8_0_encodes_as_the_reference(void **state) {
  (void)state;
  struct error err = {0};
  struct safetensors *file;
  must(safetensors_open(&file, golden("io/blocks.safetensors"), &err), err);
  const struct stored_tensor *input = safetensors_find(file, "encode.input");
  const struct stored_tensor *right = safetensors_find(file, "encode.q8_0");
  uint8_t out[8 * 34];
  float x[256];
  memcpy(x, input->data, sizeof x);
  dtype_from_f32(DTYPE_Q8_0, x, 256, out);
  assert_int_equal(right->size_bytes, sizeof out);
  assert_memory_equal(out, right->data, sizeof out);
  safetensors_close(file);
}

/* Zeros are what a mask makes: they must survive every type that is written. */
static void zeros_stay_zeros(void **state) {
  (void)state;
  static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};
  float x[64], back[64];
  uint8_t bytes[256];
  fill_normal(x, 64, 3, 0.05f);
  for (int i = 0; i < 64; i += 2) x[i] = 0;
  for (int i = 0; i < 4; i++) {
    dtype_from_f32(types[i], x, 64, bytes);
    dtype_to_f32(types[i], bytes, 64, back);
    for (int j = 0; j < 64; j += 2) assert_true(back[j] == 0);
    assert_true(relative_error(back, x, 64) < 0.01);
  }
}

static void q8_0_survives_what_is_not_finite(void **state) {
  (void)state;
  float x[32] = {NAN, INFINITY, -INFINITY, 1e38f, 1e-45f};
  uint8_t block[34];
  dtype_from_f32(DTYPE_Q8_0, x, 32, block);
  x[1] = x[2] = x[3] = 0;
  dtype_from_f32(DTYPE_Q8_0, x, 32, block);
}

static void sizes_are_checked(void **state) {
  (void)state;
  size_t bytes;
  assert_true(dtype_bytes(DTYPE_Q4_K, 512, &bytes));
  assert_int_equal(bytes, 288);
  assert_false(dtype_bytes(DTYPE_Q4_K, 100, &bytes));
  assert_false(dtype_bytes(DTYPE_F64, UINT64_MAX / 4, &bytes));
}

/* The block that the gguf package (gguf.quants) makes of these numbers; zeros stay zeros. */
static void q4_0_encodes_as_the_reference(void **state) {
  (void)state;
  static const uint8_t expected[18] = {104, 49,  128, 247, 93,  196, 42,  128, 247,
                                       94,  196, 43,  145, 248, 110, 196, 59,  145};
  float w[32], zeros[32] = {0}, back[32];
  uint8_t block[18];
  for (int i = 0; i < 32; i++) w[i] = (float)(i * 7919 % 101 - 50) / 37;
  dtype_from_f32(DTYPE_Q4_0, w, 32, block);
  assert_memory_equal(block, expected, sizeof block);
  dtype_from_f32(DTYPE_Q4_0, zeros, 32, block);
  dtype_to_f32(DTYPE_Q4_0, block, 32, back);
  for (int i = 0; i < 32; i++) assert_true(back[i] == 0);
  w[3] = NAN;
  dtype_from_f32(DTYPE_Q4_0, w, 32, block);
  dtype_to_f32(DTYPE_Q4_0, block, 32, back);
  assert_true(back[3] == 0 && isfinite(back[4]));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(halves_expand_exactly),
      cmocka_unit_test(halves_round_to_nearest_even),
      cmocka_unit_test(halves_keep_what_is_special),
      cmocka_unit_test(bytes_of_eight_bit_floats),
      cmocka_unit_test(blocks_expand_to_golden_bits),
      cmocka_unit_test(q8_0_encodes_as_the_reference),
      cmocka_unit_test(q8_0_survives_what_is_not_finite),
      cmocka_unit_test(q4_0_encodes_as_the_reference),
      cmocka_unit_test(zeros_stay_zeros),
      cmocka_unit_test(sizes_are_checked),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
