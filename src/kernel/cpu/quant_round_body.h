/* Activations rounded for products with quantized strips: part of quant_body.h. */

enum { GROUP_VECTORS = QUANT_GROUP / VL };

static void round_group(const float *x, int g, struct quant_x *out) {
  vi most = vi_set(0), sum = vi_set(0);
  int32_t lanes[VL], bits = 0, total = 0;
  for (int i = 0; i < GROUP_VECTORS; i++)
    most = vi_max_bits(most, vi_and(vi_of_bits(vf_load(x + i * VL)), vi_set(0x7fffffff)));
  vi_store(lanes, most);
  for (int l = 0; l < VL; l++) bits = lanes[l] > bits ? lanes[l] : bits;
  float largest;
  memcpy(&largest, &bits, 4);
  /* compared as bits, a NaN is larger than infinity */
  const bool small = bits < 0x0d800000 /* 2^-100 */, finite = bits < 0x7f800000;
  const vf inverse = vf_set(small || !finite ? 0.0f : 127.0f / largest);
  for (int i = 0; i < GROUP_VECTORS; i++) {
    const vf scaled = finite ? vf_mul(vf_load(x + i * VL), inverse) : vf_zero();
    const vi near = vi_of_float(scaled);
    vi_store_bytes(out->near + g * QUANT_GROUP + i * VL, near);
    sum = vi_add(sum, near);
  }
  vi_store(lanes, sum);
  for (int l = 0; l < VL; l++) total += lanes[l];
  out->scale[g] = small ? 0.0f : largest / 127.0f;
  out->scale_16th[g] = out->scale[g] * 0.0625f;
  out->total[g] = out->scale[g] * (float)total;
  out->raise[g] = -128 * total;
  out->take_zero[g] = -8 * total;
}

static void quant_round(const float *x, int64_t ldx, int64_t cols, int64_t tokens,
                        struct quant_x *out) {
  for (int64_t t = 0; t < tokens; t++, x += ldx, out++) {
    float padded[QUANT_CHUNK_COLS] = {0};
    if (cols < QUANT_CHUNK_COLS) memcpy(padded, x, (size_t)cols * sizeof *x);
    for (int g = 0; g < QUANT_CHUNK_GROUPS; g++)
      round_group((cols < QUANT_CHUNK_COLS ? padded : x) + g * QUANT_GROUP, g, out);
    for (int c = 0; c < QUANT_CHUNK_COLS; c++) out->raised[c] = (uint8_t)(out->near[c] ^ 0x80);
  }
}
