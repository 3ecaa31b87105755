/* Exponential, logarithm and hyperbolic tangent in the vector vocabulary: include after vec_*.h.
 * Polynomials are minimax fits in relative error over the reduced ranges. NaN comes out as NaN. The
 * same operations in the same order under every instruction set, so the same bits. */
#ifndef TSR_KERNEL_VEC_MATH_H
#define TSR_KERNEL_VEC_MATH_H

/* q[i] * x[i] + c for each i. */
INLINE void horner_step(int count, vf *q, const vf *x, float c) {
  for (int i = 0; i < count; i++) q[i] = vf_fma(q[i], x[i], vf_set(c));
}

/* x[i] = e^x[i] for each of `count` <= 6, step by step side by side: a polynomial alone waits for
 * its own last step most of the time, and processors look ahead too little to start the next.
 * Within 1 unit in the last place for x in [-87.3, 88.3]; 0 below -88 and +inf above 88.4,
 * infinities included; between -88 and -87.3, where results are subnormal, within 1e-38. */
INLINE void vf_exp_each(int count, vf *x) {
  vf power[6], r[6], q[6];
  /* Added to a small number, this rounds it to an integer n and leaves n + 127 in the low bits. */
  const vf rounder = vf_set(0x1.8p23f + 127);
  for (int i = 0; i < count; i++) {
    /* vf_max and vf_min return the second operand when one is NaN. The lower bound gives n = -127,
     * the upper n = 128: both make the exponent field what is wanted. */
    x[i] = vf_min(vf_set(89.0f), vf_max(vf_set(-88.3f), x[i]));
    vf t = vf_fma(x[i], vf_set(0x1.715476p+0f), rounder), n = vf_sub(t, rounder);
    power[i] = vf_of_bits(vi_shl(vi_of_bits(t), 23));
    r[i] = vf_fnma(n, vf_set(0x1.62e4p-1f), x[i]); /* ln 2 in two parts; the first has 15 bits */
    r[i] = vf_fnma(n, vf_set(0x1.7f7d1cp-20f), r[i]);
    q[i] = vf_fma(vf_set(0x1.6a23f2p-10f), r[i], vf_set(0x1.123a0ap-7f));
  }
  horner_step(count, q, r, 0x1.5558f2p-5f);
  horner_step(count, q, r, 0x1.555492p-3f);
  horner_step(count, q, r, 0x1.fffffcp-2f);
  for (int i = 0; i < count; i++) {
    vf y = vf_add(vf_fma(vf_mul(r[i], r[i]), q[i], r[i]), vf_set(1.0f));
    x[i] = vf_mul(y, power[i]);
  }
}
INLINE vf vf_exp(vf x) {
  vf_exp_each(1, &x);
  return x;
}

/* x[i] = the natural logarithm of x[i] for each of `count` <= 6, side by side as above. Within 1
 * unit in the last place, for positive normal x (not 0, not infinite, not subnormal). */
INLINE void vf_log_each(int count, vf *x) {
  vf f[6], n[6], q[6];
  for (int i = 0; i < count; i++) {
    /* x = 2^e m with m in [2/3, 4/3), so that nothing cancels around 1; e stays where it is in the
     * bits, so n is 2^23 e */
    vi bits = vi_of_bits(x[i]);
    vi exponent = vi_and(vi_sub(bits, vi_set(0x3f2aaaab)), vi_set(-0x800000));
    f[i] = vf_sub(vf_of_bits(vi_sub(bits, exponent)), vf_set(1.0f));
    n[i] = vf_of_int(exponent);
    q[i] = vf_fma(vf_set(-0x1.08058ep-3f), f[i], vf_set(0x1.1e66bap-3f));
  }
  horner_step(count, q, f, -0x1.f3113ep-4f);
  horner_step(count, q, f, 0x1.1ed716p-3f);
  horner_step(count, q, f, -0x1.559dccp-3f);
  horner_step(count, q, f, 0x1.99d028p-3f);
  horner_step(count, q, f, -0x1.fffefp-3f);
  horner_step(count, q, f, 0x1.555506p-2f);
  horner_step(count, q, f, -0.5f);
  for (int i = 0; i < count; i++) {
    vf low = vf_fma(n[i], vf_set(0x1.7f7d1cp-43f), vf_mul(vf_mul(f[i], f[i]), q[i]));
    x[i] = vf_fma(n[i], vf_set(0x1.62e4p-24f), vf_add(f[i], low));
  }
}
INLINE vf vf_log(vf x) {
  vf_log_each(1, &x);
  return x;
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
