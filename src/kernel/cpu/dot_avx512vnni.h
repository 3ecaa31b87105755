/* The vocabulary of integer dot products in AVX-512 with VNNI: included after vec_avx512.h; see
 * dot_avx2.h. vpdpbusd multiplies unsigned bytes with signed ones and adds four products to a
 * 32-bit lane, so nothing saturates. Signed bytes become unsigned ones by adding 128, which the sum
 * of the other side takes off again. */
#ifndef TSR_KERNEL_DOT_H
#define TSR_KERNEL_DOT_H

#include "kernel/quant_x.h"

enum { WIDE_RAISED = 1, NARROW_RAISED = 1, KEPT_TIMES_16 = 1 };

INLINE vi dot_load(const uint8_t *p) { return _mm512_load_si512(p); }
INLINE vi dot_bytes(int b) { return _mm512_set1_epi8((char)b); }
INLINE vi dot_four(const void *p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}
INLINE vi dot_sixteen(const void *p) { return _mm512_broadcast_i32x4(_mm_load_si128(p)); }
INLINE vi dot_index(vi code, vi base) {
  return _mm512_ternarylogic_epi32(base, code, dot_bytes(3), 0xF8); /* a | b & c */
}
INLINE vi dot_pick(vi x, vi index) { return _mm512_shuffle_epi8(x, index); }
INLINE vi vi_max_bits(vi a, vi b) { return _mm512_max_epu32(a, b); }

INLINE vi wide_line(vi line) { return line; }
INLINE vi wide_start(const struct quant_x *x, int g) { return vi_set(x->raise[g]); }
INLINE vi wide_dot(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi wide_kept_dot(vi sum, vi w, vi picked) { return _mm512_dpbusd_epi32(sum, picked, w); }

INLINE vi narrow_start(int32_t total) { return vi_set(total); }
INLINE vi narrow_dot(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi narrow_kept_dot(vi sum, vi w, vi picked) { return _mm512_dpbusd_epi32(sum, picked, w); }
INLINE vi narrow_total(vi sum, int32_t start) { return sum; }
/* Left where a nibble is the upper half of a byte, two's complement is that of 16 times as much. */
INLINE vi kept_low(vi line) { return vi_and(vi_shl(line, 4), dot_bytes(0xf0)); }
INLINE vi kept_high(vi line) { return vi_and(line, dot_bytes(0xf0)); }

INLINE vi raised_sum(vi sum, vi w) { return _mm512_dpbusd_epi32(sum, dot_bytes(0x80), w); }
INLINE vi raised_total(vi sum) { return sum; }

#endif
