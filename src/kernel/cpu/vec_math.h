/* Exponential, logarithm and hyperbolic tangent in the vector vocabulary: include after vec_*.h.
 * Polynomials are minimax fits in relative error over the reduced ranges. NaN comes out as NaN. The
 * same operations in the same order under every instruction set, so the same bits. */
#ifndef TSR_KERNEL_VEC_MATH_H
#define TSR_KERNEL_VEC_MATH_H

/* e^x within 1 unit in the last place, for x in [-87.3, 88.3]; 0 below -88 and +inf above 88.4,
 * infinities included; between -88 and -87.3, where results are subnormal, within 1e-38. */
INLINE vf vf_exp(vf x) {
  /* The bounds come first: vf_max and vf_min return the second operand when one is NaN. The lower
   * bound gives n = -127, the upper n = 128: both make the exponent field what is wanted. */
  x = vf_min(vf_set(89.0f), vf_max(vf_set(-88.3f), x));
  vf n = vf_round(vf_mul(x, vf_set(0x1.715476p+0f)));
  vf r = vf_fnma(n, vf_set(0x1.62e4p-1f), x); /* ln 2 in two parts; the first has 15 bits */
  r = vf_fnma(n, vf_set(0x1.7f7d1cp-20f), r);
  vf q = vf_fma(vf_set(0x1.6a23f2p-10f), r, vf_set(0x1.123a0ap-7f));
  q = vf_fma(q, r, vf_set(0x1.5558f2p-5f));
  q = vf_fma(q, r, vf_set(0x1.555492p-3f));
  q = vf_fma(q, r, vf_set(0x1.fffffcp-2f));
  vf y = vf_add(vf_fma(vf_mul(r, r), q, r), vf_set(1.0f));
  return vf_mul(y, vf_of_bits(vi_shl(vi_add(vi_of_float(n), vi_set(127)), 23)));
}

/* The natural logarithm within 1 unit in the last place, for positive normal x (not 0, not
 * infinite, not subnormal). */
INLINE vf vf_log(vf x) {
  /* x = 2^e m with m in [2/3, 4/3), so that nothing cancels around 1 */
  vi e = vi_sar(vi_sub(vi_of_bits(x), vi_set(0x3f2aaaab)), 23);
  vf f = vf_sub(vf_of_bits(vi_sub(vi_of_bits(x), vi_shl(e, 23))), vf_set(1.0f));
  vf n = vf_of_int(e);
  vf q = vf_fma(vf_set(-0x1.08058ep-3f), f, vf_set(0x1.1e66bap-3f));
  q = vf_fma(q, f, vf_set(-0x1.f3113ep-4f));
  q = vf_fma(q, f, vf_set(0x1.1ed716p-3f));
  q = vf_fma(q, f, vf_set(-0x1.559dccp-3f));
  q = vf_fma(q, f, vf_set(0x1.99d028p-3f));
  q = vf_fma(q, f, vf_set(-0x1.fffefp-3f));
  q = vf_fma(q, f, vf_set(0x1.555506p-2f));
  q = vf_fma(q, f, vf_set(-0.5f));
  vf low = vf_fma(n, vf_set(0x1.7f7d1cp-20f), vf_mul(vf_mul(f, f), q));
  return vf_fma(n, vf_set(0x1.62e4p-1f), vf_add(f, low));
}

/* tanh within 1.5 units in the last place, for every x. */
INLINE vf vf_tanh(vf x) {
  vf a = vf_abs(x), z = vf_mul(x, x);
  vf q = vf_fma(vf_set(-0x1.722b06p-8f), z, vf_set(0x1.5157fep-6f));
  q = vf_fma(q, z, vf_set(-0x1.b81dc2p-5f));
  q = vf_fma(q, z, vf_set(0x1.110646p-3f));
  q = vf_fma(q, z, vf_set(-0x1.55552ep-2f));
  vf near = vf_fma(vf_mul(q, z), a, a);
  vf far = vf_div(vf_set(2.0f), vf_add(vf_exp(vf_add(a, a)), vf_set(1.0f)));
  vf y = vf_select(vf_less(a, vf_set(0.625f)), near, vf_sub(vf_set(1.0f), far));
  return vf_copysign(y, x);
}

#endif
