/* Strips back to floats, for the blocked products: part of strips_body.h. */

/* Up to STRIP_COLS columns of a chunk as rows of `width` floats. */
INLINE void expand_dense(enum dtype dtype, const uint8_t *at, int64_t cols, int64_t width,
                         float *out) {
  for (int64_t c = 0; c < cols; c += 2, at += STRIP_LINE_BYTES, out += 2 * width)
    for (int h = 0; h < HALVES; h++) {
      vf even, odd;
      vf_load_pairs(dtype, at + 4 * h * VL, &even, &odd);
      vf_store(out + h * VL, even);
      if (c + 1 < cols) vf_store(out + width + h * VL, odd);
    }
}

INLINE void expand_sparse(enum dtype dtype, const uint8_t *at, int64_t cols, int64_t width,
                          float *out) {
  for (int h = 0; h < HALVES; h++) {
    vi code = vi_load((const int32_t *)(const void *)at + h * VL);
    for (int64_t c = 0; c < cols; c += 4) {
      vf first, second;
      vf_load_pairs(dtype, at + STRIP_LINE_BYTES * (1 + c / 4) + 4 * h * VL, &first, &second);
      vi i0 = vi_and(code, vi_set(3)), i1 = vi_and(vi_shr(code, 2), vi_set(3));
      for (int i = 0; i < 4 && c + i < cols; i++) {
        vf x = vf_select(vi_equal(i0, vi_set(i)), first, vf_zero());
        vf_store(out + (c + i) * width + h * VL, vf_select(vi_equal(i1, vi_set(i)), second, x));
      }
      code = vi_shr(code, 4);
    }
  }
}

static void expand_chunk(enum dtype dtype, enum strip_kind kind, const uint8_t *at, int64_t cols,
                         int64_t width, float *out) {
  if (kind == STRIP_EMPTY) {
    for (int64_t c = 0; c < cols; c++) memset(out + c * width, 0, STRIP_ROWS * sizeof(float));
  } else if (kind == STRIP_DENSE) {
    if (dtype == DTYPE_BF16)
      expand_dense(DTYPE_BF16, at, cols, width, out);
    else
      expand_dense(DTYPE_F16, at, cols, width, out);
  } else {
    if (dtype == DTYPE_BF16)
      expand_sparse(DTYPE_BF16, at, cols, width, out);
    else
      expand_sparse(DTYPE_F16, at, cols, width, out);
  }
}

static void strip_expand(const struct strip_matrix *w, int64_t strip, int64_t chunk, int64_t cols,
                         int64_t width, float *out) {
  const uint8_t *at = w->data + w->offset[strip];
  for (int64_t r = w->first_run[strip], c = 0; cols > 0; r++) {
    const enum strip_kind kind = w->runs[r].kind;
    for (int64_t end = c + w->runs[r].chunks; c < end && cols > 0;
         c++, at += strip_kind_bytes(kind)) {
      if (c < chunk) continue;
      expand_chunk(w->dtype, kind, at, cols < STRIP_COLS ? cols : STRIP_COLS, width, out);
      out += STRIP_COLS * width;
      cols -= STRIP_COLS;
    }
  }
}
