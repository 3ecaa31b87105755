/* The vector vocabulary in AVX2 + FMA + F16C: eight floats. The same names as vec_avx512.h, so that
 * one body serves both. A `part` is the first n of the VL lanes, 0 <= n <= VL. */
#ifndef TSR_KERNEL_VEC_H
#define TSR_KERNEL_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "tensor/dtype.h"

enum { VL = 8, TILE_VECTORS = 2 };
#define TILE_ROWS 6
#define INLINE static inline __attribute__((always_inline, unused))

typedef __m256 vf;  /* floats */
typedef __m256i vi; /* 32-bit integers */
typedef __m256 vm;  /* a lane is chosen when all its bits are set */
typedef __m256d vd; /* half as many doubles */

/* Between the two calls subnormal operands count as zero and subnormal results become zero: each
 * would cost some hundred cycles, and saturated softmaxes make many. */
INLINE unsigned flush_begin(void) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040); /* flush to zero, subnormals are zero */
  return before;
}
INLINE void flush_end(unsigned before) { _mm_setcsr(before); }

INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }   /* a * b + c */
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a * b */
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_round(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
/* The magnitude of a with the sign of s. */
INLINE vf vf_copysign(vf a, vf s) {
  const vf sign = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, s));
}

INLINE vm vf_less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE vf vf_select(vm m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }

INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const void *)p); }
INLINE void vi_store(int32_t *p, vi x) { _mm256_storeu_si256((void *)p, x); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
INLINE vi vi_select(vm m, vi yes, vi no) {
  return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m));
}
#define vi_shl(a, n) _mm256_slli_epi32(a, n)
#define vi_shr(a, n) _mm256_srli_epi32(a, n)
#define vi_sar(a, n) _mm256_srai_epi32(a, n)
INLINE vi vi_shrv(vi a, vi n) { return _mm256_srlv_epi32(a, n); }
INLINE vm vi_equal(vi a, vi b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)); }
INLINE vi vi_of_bits(vf a) { return _mm256_castps_si256(a); }
INLINE vf vf_of_bits(vi a) { return _mm256_castsi256_ps(a); }
INLINE vf vf_of_int(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vi_of_float(vf a) { return _mm256_cvtps_epi32(a); } /* rounds to nearest */

/* For 32 x 32 -> 64 bit products: those of the even lanes, over pairs of lanes; odd lanes moved to
 * even ones, zeros into the odd; and the even lanes of two vectors dealt out in turn. */
INLINE vi vi_mul_even(vi a, vi b) { return _mm256_mul_epu32(a, b); }
INLINE vi vi_odd(vi a) { return _mm256_srli_epi64(a, 32); }
INLINE vi vi_interleave(vi even, vi odd) {
  return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

INLINE vi part_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vm vm_part(int64_t n) { return _mm256_castsi256_ps(part_mask(n)); }
/* Lanes past the part are zero. */
INLINE vf vf_load_part(const float *p, int64_t n) { return _mm256_maskload_ps(p, part_mask(n)); }
INLINE void vf_store_part(float *p, int64_t n, vf x) { _mm256_maskstore_ps(p, part_mask(n), x); }

/* Reductions, in a fixed tree. */
INLINE float vf_sum(vf x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float vf_largest(vf x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

INLINE vd vd_zero(void) { return _mm256_setzero_pd(); }
INLINE vd vd_low(vf x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
INLINE vd vd_high(vf x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
INLINE vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
INLINE double vd_sum(vd x) {
  __m128d s = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

/* VL elements of a native dtype, widened. */
INLINE vf vf_load_as(enum dtype dtype, const void *p) {
  if (dtype == DTYPE_F32) return _mm256_loadu_ps(p);
  __m128i half = _mm_loadu_si128(p);
  if (dtype == DTYPE_F16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* VL signed bytes as floats, and VL integers as bytes, saturated. */
INLINE vf vf_load_bytes(const int8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE void vi_store_bytes(int8_t *p, vi x) {
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
}
/* The nearest fp16 of each lane. */
INLINE void vf_store_halves(uint16_t *p, vf x) {
  _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* For the 4 x 4 transposes inside 128-bit lanes: four floats of each of VL / 4 rows that lie
 * 4 * ld apart, one row a lane. */
INLINE vf vf_load_quads(const float *p, int64_t ld) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * ld), 1);
}
INLINE void vf_store_quads(float *p, int64_t ld, vf x) {
  _mm_storeu_ps(p, _mm256_castps256_ps128(x));
  _mm_storeu_ps(p + 4 * ld, _mm256_extractf128_ps(x, 1));
}
INLINE void vf_transpose_quads(vf x[4]) {
  vf a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
  vf c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
  x[0] = _mm256_shuffle_ps(a, c, 0x44);
  x[1] = _mm256_shuffle_ps(a, c, 0xEE);
  x[2] = _mm256_shuffle_ps(b, d, 0x44);
  x[3] = _mm256_shuffle_ps(b, d, 0xEE);
}

/* The high half of each lane. */
INLINE void vi_store_high_halves(uint16_t *p, vi x) {
  __m256i high = _mm256_srli_epi32(x, 16);
  high = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128((void *)p, _mm256_castsi256_si128(high));
}

/* VL nibbles, the low one of each byte first. */
INLINE vi vi_nibbles(const uint8_t *p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  vi shifted = _mm256_srlv_epi32(_mm256_set1_epi32((int)word),
                                 _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  return _mm256_and_si256(shifted, _mm256_set1_epi32(15));
}

/* The activations that VL kept weights of a 2:4 row meet: x (2 * VL), `codes` the 2 * VL bits of
 * their VL / 2 nibbles. Kept weight l has bits 2l and 2l + 1: its position in group l / 2. */
INLINE vi pick_index(uint32_t codes) {
  return _mm256_srlv_epi32(_mm256_set1_epi32((int)codes),
                           _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
}
INLINE vf pick(const float *x, vi index) {
  /* vpermilps looks at the two low bits only, and picks inside a group of four */
  vf even = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(x + 8), 1);
  vf odd =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4)), _mm_loadu_ps(x + 12), 1);
  return _mm256_blend_ps(_mm256_permutevar_ps(even, index), _mm256_permutevar_ps(odd, index), 0xCC);
}

/* The other way: VL kept weights spread over 2 * VL columns with their zeros. */
INLINE void spread(vf values, uint32_t codes, float *out) {
  const vi position = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3), three = _mm256_set1_epi32(3);
  for (int i = 0; i < 2; i++) {
    vi word = _mm256_set1_epi32((int)(codes >> 8 * i));
    vi first =
        _mm256_and_si256(_mm256_srlv_epi32(word, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)), three);
    vi second =
        _mm256_and_si256(_mm256_srlv_epi32(word, _mm256_setr_epi32(2, 2, 2, 2, 6, 6, 6, 6)), three);
    vi at = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2), _mm256_set1_epi32(4 * i));
    vf v0 = _mm256_permutevar8x32_ps(values, at);
    vf v1 = _mm256_permutevar8x32_ps(values, _mm256_add_epi32(at, _mm256_set1_epi32(1)));
    v0 = _mm256_and_ps(v0, _mm256_castsi256_ps(_mm256_cmpeq_epi32(first, position)));
    v1 = _mm256_and_ps(v1, _mm256_castsi256_ps(_mm256_cmpeq_epi32(second, position)));
    _mm256_storeu_ps(out + VL * i, _mm256_or_ps(v0, v1));
  }
}

/* --- strips (sparse/strips.h): lines of u32 that hold two 16-bit weights each --- */

/* VL of them widened: the low halves and the high ones. */
INLINE void vf_load_pairs(enum dtype dtype, const void *p, vf *low, vf *high) {
  vi both = _mm256_load_si256(p);
  if (dtype == DTYPE_BF16) {
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *high = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
    return;
  }
  const vi apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4,
                                    5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  both = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(both, apart), 0xD8);
  *low = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
  *high = _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1));
}
/* Four floats again and again, and the one of each lane's four that the low two bits name. */
INLINE vf vf_broadcast4(const float *p) {
  return _mm256_broadcast_ps((const __m128 *)(const void *)p);
}
INLINE vf vf_pick4(vf fours, vi index) { return _mm256_permutevar_ps(fours, index); }
/* The same in two steps, for an index that is used again and again: Zen's multiply-adds get on
 * better with byte shuffles than with vpermilps. */
INLINE vi vi_pick_index(vi code) {
  const vi four = _mm256_mullo_epi32(vi_and(code, vi_set(3)), vi_set(0x04040404));
  return vi_or(four, vi_set(0x03020100));
}
/* Loaded once, rather than by each operation that uses it. */
INLINE vi vi_held(vi x) {
  __asm__("" : "+x"(x));
  return x;
}
INLINE vf vf_pick_at(vf fours, vi index) {
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_castps_si256(fours), index));
}

#endif
