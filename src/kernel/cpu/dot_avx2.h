/* The vocabulary of integer dot products in AVX2: included after vec_avx2.h; dot_avx512vnni.h and
 * dot_neon.h have the same names. A `vi` holds four bytes a lane here; each dot adds to a lane the
 * four products of its bytes.
 *
 * vpmaddubsw multiplies unsigned bytes with signed ones and adds up two products in 16 bits,
 * saturated. Integers of four bits stay far below that, and all of a group fit 16 bits, which are
 * widened once at its end. With eight bits the sign of one side moves to the other: a magnitude of
 * at most 128 times at most 127, twice, is 32512. */
#ifndef TSR_KERNEL_DOT_H
#define TSR_KERNEL_DOT_H

#include "kernel/quant_x.h"

/* Whether 2:4 kernels take activations plus 128 rather than as they are. */
enum { WIDE_RAISED = 0, NARROW_RAISED = 1, KEPT_TIMES_16 = 0 };

INLINE vi dot_load(const uint8_t *p) { return _mm256_load_si256((const void *)p); }
INLINE vi dot_bytes(int b) { return _mm256_set1_epi8((char)b); }
/* Four bytes in all lanes; sixteen in all quarters (here halves). */
INLINE vi dot_four(const void *p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}
INLINE vi dot_sixteen(const void *p) { return _mm256_broadcastsi128_si256(_mm_load_si128(p)); }
/* The two low bits of each byte of code, in front of those of base; bytes so chosen out of x. */
INLINE vi dot_index(vi code, vi base) { return vi_or(vi_and(code, dot_bytes(3)), base); }
INLINE vi dot_pick(vi x, vi index) { return _mm256_shuffle_epi8(x, index); }
INLINE vi vi_max_bits(vi a, vi b) { return _mm256_max_epu32(a, b); }

/* Sums are made one product after the other: GCC would add up products first, in pairs, and keep
 * them until then in registers that are not there. */
INLINE vi in_order(vi sum) {
  __asm__("" : "+x"(sum));
  return sum;
}

/* --- eight bits --- */

/* A line of a dense chunk as wide_dot takes it, and what its sums begin with. */
INLINE vi wide_line(vi line) { return vi_xor(line, dot_bytes(0x80)); }
INLINE vi wide_start(const struct quant_x *x, int g) { return _mm256_setzero_si256(); }
INLINE vi wide_dot(vi sum, vi w, vi x) {
  const vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return in_order(vi_add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}
INLINE vi wide_kept_dot(vi sum, vi w, vi picked) { return wide_dot(sum, w, picked); }

/* --- four bits: sums of one group, widened by narrow_total --- */

INLINE vi narrow_start(int32_t total) { return _mm256_setzero_si256(); }
INLINE vi narrow_dot(vi sum, vi w, vi x) { /* w unsigned */
  return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)));
}
INLINE vi narrow_kept_dot(vi sum, vi w, vi picked) {
  return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(picked, w)));
}
INLINE vi narrow_total(vi sum, int32_t start) {
  return vi_add(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), vi_set(start));
}
/* Kept integers, signed: those of the low nibbles and of the high ones. */
INLINE vi signed_nibbles(vi low) {
  const vi table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1));
  return _mm256_shuffle_epi8(table, vi_and(low, dot_bytes(15)));
}
INLINE vi kept_low(vi line) { return signed_nibbles(line); }
INLINE vi kept_high(vi line) { return signed_nibbles(vi_shr(line, 4)); }

/* --- what raised activations add: 128 times the kept integers --- */

INLINE vi raised_sum(vi sum, vi w) { return _mm256_add_epi8(sum, w); } /* four times -8 .. 7 */
INLINE vi raised_total(vi sum) {
  const vi pairs = _mm256_maddubs_epi16(dot_bytes(0x80), sum);
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#endif
