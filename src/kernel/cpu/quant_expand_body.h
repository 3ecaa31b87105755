/* Quantized strips back to floats, for the blocked products: part of quant_body.h. */

struct expansion {
  const struct quant_strips *w;
  int64_t strip, width;
  bool add; /* to what is there, the second of two chunks for the same columns */
};

INLINE vf weight_of(vi q, struct scales s) { return vf_add(vf_mul(vf_of_int(q), s.scale), s.min); }

INLINE void put_column(const struct expansion *e, float *out, vf w) {
  vf_store(out, e->add ? vf_add(vf_load(out), w) : w);
}

INLINE struct scales scales_of(const struct expansion *e, const uint8_t *chunk, int g, int h) {
  const struct quant_strips *w = e->w;
  struct scales s = load_scales(form_of(w), w->row_scales != NULL, chunk, g, h);
  if (w->row_scales) s.scale = vf_load(w->row_scales + e->strip * STRIP_ROWS + h * VL);
  return s;
}

/* Up to QUANT_CHUNK_COLS columns of a chunk as rows of `width` floats. */
static void expand_dense(const struct expansion *e, const uint8_t *chunk, int64_t cols,
                         float *out) {
  const enum form form = form_of(e->w);
  const uint8_t *lines = chunk + quant_scale_bytes(e->w);
  const vi zero = vi_set(form == FORM_I8 ? 128 : form == FORM_I4 ? 8 : 0);
  for (int64_t c = 0; c < cols; c += 4)
    for (int h = 0; h < HALVES; h++) {
      const struct scales s = scales_of(e, chunk, (int)(c / QUANT_GROUP), h);
      vi four = dot_load(lines + c / (form == FORM_I8 ? 4 : 8) * STRIP_LINE_BYTES + 4 * h * VL);
      if (form != FORM_I8 && c % 8) four = vi_shr(four, 4);
      for (int64_t i = c; i < c + 4 && i < cols; i++, four = vi_shr(four, 8)) {
        const vi q = vi_sub(vi_and(four, vi_set(form == FORM_I8 ? 255 : 15)), zero);
        put_column(e, out + i * e->width + h * VL, weight_of(q, s));
      }
    }
}

/* The signed integer in byte `b` (0 or 1) of each lane, of four bits in its lower nibble. */
INLINE vi kept_integer(enum form form, vi bytes, int b) {
  if (form == FORM_I8) return b ? vi_sar(vi_shl(bytes, 16), 24) : vi_sar(vi_shl(bytes, 24), 24);
  return b ? vi_sar(vi_shl(bytes, 20), 28) : vi_sar(vi_shl(bytes, 28), 28);
}

/* Up to four columns, of the two kept weights in the low bytes of `kept` at the places in the low
 * bits of the same bytes of `places`. */
INLINE void expand_quad(const struct expansion *e, vi kept, vi places, struct scales s,
                        int64_t cols, float *out) {
  const enum form form = form_of(e->w);
  const vi zero = vi_set(form == FORM_I4_MINS ? 8 : 0); /* taken off what is stored */
  const vi i0 = vi_and(places, vi_set(3)), i1 = vi_and(vi_shr(places, 8), vi_set(3));
  const vf first = weight_of(vi_add(kept_integer(form, kept, 0), zero), s);
  const vf second = weight_of(vi_add(kept_integer(form, kept, 1), zero), s);
  for (int i = 0; i < 4 && i < cols; i++) {
    const vf x = vf_select(vi_equal(i0, vi_set(i)), first, vf_zero());
    put_column(e, out + i * e->width, vf_select(vi_equal(i1, vi_set(i)), second, x));
  }
}

/* One half of a group. */
INLINE void expand_sparse_group(const struct expansion *e, const uint8_t *lines, struct scales s,
                                int64_t cols, float *out) {
  const bool wide = form_of(e->w) == FORM_I8;
  vi places = dot_load(lines);
  for (int64_t c = 0; c < cols; c += 8, places = vi_shr(places, 2)) {
    const int64_t set = c / 8;
    vi kept = dot_load(lines + (1 + (wide ? set : set / 2)) * STRIP_LINE_BYTES);
    if (!wide && set % 2) kept = vi_shr(kept, 4);
    expand_quad(e, kept, places, s, cols - c, out + c * e->width);
    expand_quad(e, vi_shr(kept, 16), vi_shr(places, 16), s, cols - c - 4, out + (c + 4) * e->width);
  }
}

static void expand_sparse(const struct expansion *e, const uint8_t *chunk, int64_t cols,
                          float *out) {
  const int64_t group_bytes = (form_of(e->w) == FORM_I8 ? 5 : 3) * STRIP_LINE_BYTES;
  const uint8_t *lines = chunk + quant_scale_bytes(e->w);
  for (int g = 0; g * QUANT_GROUP < cols; g++, lines += group_bytes)
    for (int h = 0; h < HALVES; h++) {
      const int64_t left = cols - g * QUANT_GROUP;
      expand_sparse_group(e, lines + 4 * h * VL, scales_of(e, chunk, g, h),
                          left < QUANT_GROUP ? left : QUANT_GROUP,
                          out + g * QUANT_GROUP * e->width + h * VL);
    }
}

static void expand_chunk(struct expansion e, int kind, const uint8_t *chunk, int64_t cols,
                         float *out) {
  if (kind == STRIP_EMPTY) {
    for (int64_t c = 0; c < cols; c++) memset(out + c * e.width, 0, STRIP_ROWS * sizeof(float));
  } else if (kind == STRIP_SPARSE) {
    expand_sparse(&e, chunk, cols, out);
  } else {
    expand_dense(&e, chunk, cols, out);
    e.add = true;
    if (kind == QUANT_TWICE)
      expand_dense(&e, chunk + quant_chunk_bytes(e.w, STRIP_DENSE), cols, out);
  }
}

static void quant_expand(const struct quant_strips *w, int64_t strip, int64_t chunk, int64_t cols,
                         int64_t width, float *out) {
  const uint8_t *at = w->data + w->offset[strip];
  for (int64_t r = w->first_run[strip], c = 0; cols > 0; r++) {
    const int kind = w->runs[r].kind;
    for (int64_t end = c + w->runs[r].chunks; c < end && cols > 0;
         c++, at += quant_chunk_bytes(w, kind)) {
      if (c < chunk) continue;
      expand_chunk((struct expansion){w, strip, width, false}, kind, at,
                   cols < QUANT_CHUNK_COLS ? cols : QUANT_CHUNK_COLS, out);
      out += QUANT_CHUNK_COLS * width;
      cols -= QUANT_CHUNK_COLS;
    }
  }
}
