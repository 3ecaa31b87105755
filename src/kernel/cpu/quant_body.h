/* The kernels over quantized strips (sparse/quant_strips.h) in the vector vocabularies: included by
 * quant_*.c after a vec_*.h and a dot_*.h. Contracts: kernel/quant_kernels.h.
 *
 * Lanes are output rows, four bytes of each at a time. A dense line meets four activations that all
 * rows share; a 2:4 line meets in each lane those that the row's codes name, picked byte by byte
 * out of the sixteen of four quads. Weights are unpacked, and codes made indices, once for all
 * tokens. At the end of a group its integer sums are scaled and join the fp32 ones. */
#include "kernel/select.h"

enum {
  HALVES = STRIP_ROWS / VL,
  TOKENS_MOST = VL == 16 ? 8 : 4, /* whose sums stay in registers */
  PIECE = 4,   /* chunks that stay in the first-level cache for the next tokens */
  IN_TURN = 2, /* chunks */
  AHEAD_BYTES = 2048,
  FORMS = 3
};
/* What decides how a chunk is computed. */
enum form { FORM_I8, FORM_I4, FORM_I4_MINS };

static enum form form_of(const struct quant_strips *w) {
  return w->type == QUANT_I8 ? FORM_I8 : w->mins ? FORM_I4_MINS : FORM_I4;
}

/* The scales and minimums of one half of a group. */
struct scales {
  vf scale, min;
};

INLINE struct scales load_scales(enum form form, bool by_row, const uint8_t *chunk, int g, int h) {
  struct scales s = {vf_set(1.0f), vf_zero()};
  const uint8_t *at = chunk + 2 * (g * STRIP_ROWS + h * VL);
  if (!by_row) s.scale = vf_load_as(DTYPE_F16, at);
  if (form == FORM_I4_MINS) s.min = vf_load_as(DTYPE_F16, at + STRIP_LINE_BYTES);
  return s;
}

INLINE void ask_ahead(const uint8_t *line, int h) {
  if (h == 0) __builtin_prefetch(line + AHEAD_BYTES);
}

/* sums[t] += one half of a group of 32 columns of a dense chunk. lines: of the group. */
INLINE void dense_group(enum form form, const int tokens, const uint8_t *lines, struct scales s,
                        const struct quant_x *x, int g, int h, vf sums[TOKENS_MOST][HALVES]) {
  vi sum[TOKENS_MOST];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++)
    sum[t] = form == FORM_I8   ? wide_start(x + t, g)
             : form == FORM_I4 ? narrow_start(x[t].take_zero[g])
                               : narrow_start(0);
  const int count = form == FORM_I8 ? 8 : 4;
#pragma GCC unroll 8
  for (int p = 0; p < count; p++, lines += STRIP_LINE_BYTES) {
    const vi line = dot_load(lines + 4 * h * VL);
    ask_ahead(lines, h);
    if (form == FORM_I8) {
      const vi w = wide_line(line);
#pragma GCC unroll 8
      for (int t = 0; t < tokens; t++)
        sum[t] = wide_dot(sum[t], w, dot_four(x[t].near + g * QUANT_GROUP + 4 * p));
      continue;
    }
    const vi low = vi_and(line, dot_bytes(15)), high = vi_and(vi_shr(line, 4), dot_bytes(15));
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
      const int8_t *near = x[t].near + g * QUANT_GROUP + 8 * p;
      sum[t] = narrow_dot(sum[t], low, dot_four(near));
      sum[t] = narrow_dot(sum[t], high, dot_four(near + 4));
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
    if (form == FORM_I4) sum[t] = narrow_total(sum[t], x[t].take_zero[g]);
    if (form == FORM_I4_MINS) sum[t] = narrow_total(sum[t], 0);
    const vf part = vf_mul(vf_of_int(sum[t]), vf_set(x[t].scale[g]));
    sums[t][h] = vf_fma(part, s.scale, sums[t][h]);
    if (form == FORM_I4_MINS) sums[t][h] = vf_fma(s.min, vf_set(x[t].total[g]), sums[t][h]);
  }
}

/* A set of kept weights meets the activations of eight columns, the bytes 8 * (set % 2) of
 * sixteen. */
INLINE vi set_base(int set) { return vi_set(set % 2 ? 0x0c0c0808 : 0x04040000); }

/* The same for a 2:4 chunk. Where activations are raised by 128, what that adds to every token's
 * sum is found once; ones, raised, likewise count as 128 for each of the sixteen kept weights. */
INLINE void sparse_group(enum form form, const int tokens, const uint8_t *lines, struct scales s,
                         const struct quant_x *x, int g, int h, vf sums[TOKENS_MOST][HALVES]) {
  const bool raised = form == FORM_I8 ? WIDE_RAISED : NARROW_RAISED;
  const bool times_16 = form != FORM_I8 && KEPT_TIMES_16;
  const int32_t kept_start = raised ? -128 * QUANT_GROUP / 2 : 0;
  vi sum[TOKENS_MOST], kept[TOKENS_MOST], extra = vi_set(0), line = vi_set(0);
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
    sum[t] = narrow_start(0);
    kept[t] = narrow_start(kept_start);
  }
  ask_ahead(lines, h);
  vi code = dot_load(lines + 4 * h * VL);
#pragma GCC unroll 4
  for (int set = 0; set < QUANT_SETS; set++) {
    vi w;
    if (form == FORM_I8 || set % 2 == 0) {
      lines += STRIP_LINE_BYTES;
      ask_ahead(lines, h);
      line = dot_load(lines + 4 * h * VL);
    }
    if (form == FORM_I8)
      w = line;
    else
      w = set % 2 ? kept_high(line) : kept_low(line);
    const vi index = dot_index(code, set_base(set));
    code = vi_shr(code, 2);
    if (raised) extra = raised_sum(extra, w);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
      const int first = g * QUANT_GROUP + set / 2 * 16;
      const void *from = raised ? (const void *)(x[t].raised + first) : x[t].near + first;
      const vi picked = dot_pick(dot_sixteen(from), index);
      if (form == FORM_I8)
        sum[t] = wide_kept_dot(sum[t], w, picked);
      else
        sum[t] = narrow_kept_dot(sum[t], w, picked);
      if (form == FORM_I4_MINS) kept[t] = narrow_kept_dot(kept[t], dot_bytes(1), picked);
    }
  }
  if (raised) extra = raised_total(extra);
  /* with minimums an integer counts from 0, not from 8 */
  const vf min = vf_fma(vf_set(8.0f), s.scale, s.min);
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
    vi total = form == FORM_I8 ? sum[t] : narrow_total(sum[t], 0);
    if (raised) total = vi_sub(total, extra);
    const float scale = times_16 ? x[t].scale_16th[g] : x[t].scale[g];
    sums[t][h] = vf_fma(vf_mul(vf_of_int(total), vf_set(scale)), s.scale, sums[t][h]);
    if (form != FORM_I4_MINS) continue;
    const vf count = vf_of_int(narrow_total(kept[t], kept_start));
    sums[t][h] = vf_fma(vf_mul(count, vf_set(x[t].scale[g])), min, sums[t][h]);
  }
}

/* Adds `chunks` chunks at `at` to sums (tokens, STRIP_ROWS). x: the first chunk's activations
 * (tokens); the next chunk's are `step` on. */
INLINE void run_form(enum form form, const bool sparse, const int tokens, bool by_row,
                     const uint8_t *at, int64_t chunks, const struct quant_x *x, int64_t step,
                     float *sums) {
  vf all[TOKENS_MOST][HALVES];
  const int64_t dense_lines = form == FORM_I8 ? 8 : 4, sparse_lines = form == FORM_I8 ? 5 : 3;
  const int64_t group_bytes = (sparse ? sparse_lines : dense_lines) * STRIP_LINE_BYTES;
  const int64_t scale_bytes = (by_row ? 0 : form == FORM_I4_MINS ? 2 : 1) * STRIP_LINE_BYTES;
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++) all[t][h] = vf_load(sums + t * STRIP_ROWS + h * VL);
  for (; chunks > 0; chunks--, x += step) {
    const uint8_t *lines = at + scale_bytes;
    if (scale_bytes) ask_ahead(at, 0);
#pragma GCC unroll 2
    for (int g = 0; g < QUANT_CHUNK_GROUPS; g++, lines += group_bytes)
#pragma GCC unroll 2
      for (int h = 0; h < HALVES; h++) {
        const struct scales s = load_scales(form, by_row, at, g, h);
        if (sparse)
          sparse_group(form, tokens, lines, s, x, g, h, all);
        else
          dense_group(form, tokens, lines, s, x, g, h, all);
      }
    at = lines;
  }
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < HALVES; h++) vf_store(sums + t * STRIP_ROWS + h * VL, all[t][h]);
}

typedef void run_fn(bool by_row, const uint8_t *at, int64_t chunks, const struct quant_x *x,
                    int64_t step, float *sums);

/* One function for each form, kind and number of tokens that stays in registers. */
#define RUN(form, sparse, n)                                                                    \
  static void run_##form##_##sparse##_##n(bool by_row, const uint8_t *at, int64_t chunks,       \
                                          const struct quant_x *x, int64_t step, float *sums) { \
    run_form(form, sparse, n, by_row, at, chunks, x, step, sums);                               \
  }
#define RUN_KINDS(form, n) RUN(form, 0, n) RUN(form, 1, n)
#define RUN_FORMS(n) RUN_KINDS(FORM_I8, n) RUN_KINDS(FORM_I4, n) RUN_KINDS(FORM_I4_MINS, n)
RUN_FORMS(1)
RUN_FORMS(2)
RUN_FORMS(3)
RUN_FORMS(4)
#define NAMES(n)                                                                      \
  {                                                                                   \
    {run_FORM_I8_0_##n, run_FORM_I8_1_##n}, {run_FORM_I4_0_##n, run_FORM_I4_1_##n}, { \
      run_FORM_I4_MINS_0_##n, run_FORM_I4_MINS_1_##n                                  \
    }                                                                                 \
  }
#if TILE_ROWS > 6 /* as many registers as AVX-512 has */
RUN_FORMS(8)
static run_fn *const run_eight[FORMS][2] = NAMES(8);
#endif
static run_fn *const run_few[4][FORMS][2] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};

/* How many of `left` tokens are taken next, and by what. */
static int take_tokens(int64_t left, enum form form, bool sparse, run_fn **run) {
#if TILE_ROWS > 6
  if (left >= 8) {
    *run = run_eight[form][sparse];
    return 8;
  }
#endif
  const int tokens = left < 4 ? (int)left : 4;
  *run = run_few[tokens - 1][form][sparse];
  return tokens;
}

static void run_chunks(const struct quant_strips *w, bool sparse, const uint8_t *at, int64_t chunks,
                       const struct quant_x *x, int64_t tokens, float *sums) {
  const enum form form = form_of(w);
  const int64_t piece = tokens <= TOKENS_MOST ? chunks : PIECE;
  const int64_t bytes = quant_chunk_bytes(w, sparse ? STRIP_SPARSE : STRIP_DENSE);
  for (int64_t c = 0; c < chunks; c += piece) {
    const int64_t count = chunks - c < piece ? chunks - c : piece;
    run_fn *run;
    for (int64_t t = 0, taken; t < tokens; t += taken) {
      taken = take_tokens(tokens - t, form, sparse, &run);
      run(w->row_scales != NULL, at + c * bytes, count, x + c * tokens + t, tokens,
          sums + t * STRIP_ROWS);
    }
  }
}

static void run_kind(const struct quant_strips *w, int kind, const uint8_t *at, int64_t chunks,
                     const struct quant_x *x, int64_t tokens, float *sums) {
  if (kind == STRIP_EMPTY) return;
  if (kind != QUANT_TWICE) {
    run_chunks(w, kind == STRIP_SPARSE, at, chunks, x, tokens, sums);
    return;
  }
  const int64_t bytes = quant_chunk_bytes(w, STRIP_DENSE);
  for (; chunks > 0; chunks--, x += tokens)
    for (int i = 0; i < 2; i++, at += bytes) run_chunks(w, false, at, 1, x, tokens, sums);
}

/* y = sums, times the scales of the rows where those have them. */
static void finish(const struct quant_strips *w, int64_t strip, const float *sums, int64_t tokens,
                   float *y, int64_t ldy) {
  const int64_t left = w->rows - strip * STRIP_ROWS, rows = left < STRIP_ROWS ? left : STRIP_ROWS;
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h * VL < rows; h++) {
      vf sum = vf_load(sums + t * STRIP_ROWS + h * VL);
      if (w->row_scales) sum = vf_mul(sum, vf_load(w->row_scales + strip * STRIP_ROWS + h * VL));
      vf_store_part(y + t * ldy + h * VL, rows - h * VL < VL ? rows - h * VL : VL, sum);
    }
}

/* A strip, and how far it has been read. */
struct cursor {
  const uint8_t *at;
  const struct strip_run *run;
  int64_t left; /* chunks of this run */
};

static struct cursor cursor_of(const struct quant_strips *w, int64_t strip) {
  const struct strip_run *run = w->runs + w->first_run[strip];
  return (struct cursor){w->data + w->offset[strip], run, run->chunks};
}

/* Up to `most` chunks of one kind; returns how many. */
static int64_t run_some(const struct quant_strips *w, struct cursor *c, int64_t most,
                        const struct quant_x *x, int64_t tokens, float *sums) {
  while (!c->left) c->left = (++c->run)->chunks;
  const int64_t chunks = c->left < most ? c->left : most;
  run_kind(w, c->run->kind, c->at, chunks, x, tokens, sums);
  c->at += chunks * quant_chunk_bytes(w, c->run->kind);
  c->left -= chunks;
  return chunks;
}

/* Two strips, or one, are read abreast, some chunks of each in turn: two streams keep more of
 * memory's answers under way than one. */
static void quant_dot(const struct quant_strips *w, int64_t first, int64_t count,
                      const struct quant_x *x, int64_t tokens, float *y, int64_t ldy, float *sums) {
  for (int64_t strip = first; strip < first + count; strip += 2, y += 2 * STRIP_ROWS) {
    const int abreast = strip + 1 < first + count ? 2 : 1;
    struct cursor cursors[2];
    memset(sums, 0, (size_t)(abreast * tokens * STRIP_ROWS) * sizeof(float));
    for (int s = 0; s < abreast; s++) cursors[s] = cursor_of(w, strip + s);
    for (int64_t chunk = 0; chunk < w->chunks; chunk += IN_TURN)
      for (int s = 0; s < abreast; s++) {
        const int64_t end = chunk + IN_TURN < w->chunks ? chunk + IN_TURN : w->chunks;
        for (int64_t c = chunk; c < end;)
          c += run_some(w, &cursors[s], end - c, x + c * tokens, tokens,
                        sums + s * tokens * STRIP_ROWS);
      }
    for (int s = 0; s < abreast; s++)
      finish(w, strip + s, sums + s * tokens * STRIP_ROWS, tokens, y + s * STRIP_ROWS, ldy);
  }
}

/* --- rounding activations --- */

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

/* --- expanding --- */

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

static void fill_quant(struct kernel_table *table) {
  table->quant.round = quant_round;
  table->quant.dot = quant_dot;
  table->quant.expand = quant_expand;
}
