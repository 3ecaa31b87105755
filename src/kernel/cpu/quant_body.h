/* The kernels over quantized strips (sparse/quant_strips.h) in the vector vocabularies: included by
 * quant_*.c after a vec_*.h and a dot_*.h. Contracts: kernel/quant_kernels.h.
 *
 * Lanes are output rows, four bytes of each at a time. A dense line meets four activations that all
 * rows share; a 2:4 line meets in each lane those that the row's codes name, picked byte by byte
 * out of the sixteen of four quads. Weights are unpacked, and codes made indices, once for all
 * tokens. At the end of a group its integer sums are scaled and join the fp32 ones, which lie in
 * the first-level cache, so that the registers are left to the integers. */
#include "kernel/select.h"

enum {
  HALVES = STRIP_ROWS / VL,
  TOKENS_MOST = 8, /* of a call */
  PIECE = 4,       /* chunks that stay in the first-level cache for the next tokens */
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

/* n, of which, with more than two tokens, the compiler knows nothing: a loop of so many turns stays
 * one. Unrolled, what one turn loads would be kept for the next in registers that are not there. */
INLINE int turns(const int tokens, int n) {
  if (tokens > 2) __asm__("" : "+r"(n));
  return n;
}

/* Some chunks of one kind, of one strip or of two. */
struct stretch {
  bool by_row;
  int strips;
  const uint8_t *at;
  ptrdiff_t apart; /* bytes from those of the first strip to those of the second */
  int64_t chunks;
  const struct quant_x *x; /* the first chunk's (tokens); the next chunk's are `step` on */
  int64_t step;
  float *sums[2]; /* (tokens, STRIP_ROWS) */
};

/* --- dense groups: both halves of a line meet what is loaded of the activations --- */

/* Four columns, from `near` on, of every token. */
INLINE void meet_four(bool wide, const int tokens, const vi w[HALVES], const int8_t *near,
                      vi sum[TOKENS_MOST][HALVES]) {
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) {
    const vi four = dot_four(near + (size_t)t * sizeof(struct quant_x));
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++)
      sum[t][h] = wide ? wide_dot(sum[t][h], w[h], four) : narrow_dot(sum[t][h], w[h], four);
  }
}

/* The integer sums of a group of 32 columns. */
INLINE void dense_lines(enum form form, const int tokens, const uint8_t *lines,
                        const struct quant_x *x, int g, vi sum[TOKENS_MOST][HALVES]) {
  const bool wide = form == FORM_I8;
  const int8_t *near = x->near + g * QUANT_GROUP;
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++)
      sum[t][h] = wide              ? wide_start(x + t, g)
                  : form == FORM_I4 ? narrow_start(x[t].take_zero[g])
                                    : narrow_start(0);
  for (int p = turns(tokens, wide ? 8 : 4); p > 0;
       p--, lines += STRIP_LINE_BYTES, near += wide ? 4 : 8) {
    vi line[HALVES], w[HALVES];
    __builtin_prefetch(lines + AHEAD_BYTES);
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++) {
      line[h] = dot_load(lines + 4 * h * VL);
      w[h] = wide ? wide_line(line[h]) : vi_and(line[h], dot_bytes(15));
    }
    meet_four(wide, tokens, w, near, sum);
    if (wide) continue;
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++) w[h] = vi_and(vi_shr(line[h], 4), dot_bytes(15));
    meet_four(wide, tokens, w, near + 4, sum);
  }
}

INLINE void dense_group(enum form form, const int tokens, bool by_row, const uint8_t *chunk,
                        const uint8_t *lines, const struct quant_x *x, int g, float *sums) {
  vi sum[TOKENS_MOST][HALVES];
  dense_lines(form, tokens, lines, x, g, sum);
#pragma GCC unroll 2
  for (int h = 0; h < HALVES; h++) {
    const struct scales s = load_scales(form, by_row, chunk, g, h);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
      float *to = sums + t * STRIP_ROWS + h * VL;
      vi total = sum[t][h];
      if (form == FORM_I4) total = narrow_total(total, x[t].take_zero[g]);
      if (form == FORM_I4_MINS) total = narrow_total(total, 0);
      const vf part = vf_mul(vf_of_int(total), vf_set(x[t].scale[g]));
      vf all = vf_fma(part, s.scale, vf_load(to));
      if (form == FORM_I4_MINS) all = vf_fma(s.min, vf_set(x[t].total[g]), all);
      vf_store(to, all);
    }
  }
}

/* --- 2:4 groups, half a line at a time --- */

/* A set of kept weights meets the activations of eight columns, the bytes 8 * (set % 2) of
 * sixteen. */
INLINE vi set_base(int set) { return vi_set(set % 2 ? 0x0c0c0808 : 0x04040000); }

struct sparse_sums {
  vi sum[TOKENS_MOST], kept[TOKENS_MOST]; /* products; activations that are kept */
  vi extra; /* what 128 more in every activation adds to a token's sum: the same for all */
};

INLINE void meet_set(enum form form, vi w, vi index, vi sixteen, int t, struct sparse_sums *s) {
  const vi picked = dot_pick(sixteen, index);
  if (form == FORM_I8) s->sum[t] = wide_kept_dot(s->sum[t], w, picked);
  if (form == FORM_I4) s->sum[t] = narrow_kept_dot(s->sum[t], w, picked);
  if (form != FORM_I4_MINS) return;
  s->sum[t] = narrow_dot(s->sum[t], w, picked);
  s->kept[t] = narrow_dot(s->kept[t], dot_bytes(1), picked);
}

/* Whether activations are taken plus 128. With minimums integers are not signed: the activations
 * are. */
INLINE bool is_raised(enum form form) {
  return form == FORM_I8 ? WIDE_RAISED : form == FORM_I4 ? NARROW_RAISED : false;
}

/* Two sets of kept integers from a line of nibbles. */
INLINE void unpack_sets(enum form form, vi line, vi w[2]) {
  if (form == FORM_I4) {
    w[0] = kept_low(line), w[1] = kept_high(line);
    return;
  }
  line = vi_xor(line, dot_bytes(0x88)); /* 8 more */
  w[0] = vi_and(line, dot_bytes(15)), w[1] = vi_and(vi_shr(line, 4), dot_bytes(15));
}

INLINE void sparse_lines(enum form form, const int tokens, const uint8_t *lines,
                         const struct quant_x *x, int g, struct sparse_sums *s) {
  const uint8_t *from = (is_raised(form) ? x->raised : (const uint8_t *)x->near) + g * QUANT_GROUP;
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) s->sum[t] = s->kept[t] = narrow_start(0);
  s->extra = vi_set(0);
  vi code = dot_load(lines);
  for (int twice = turns(tokens, QUANT_SETS / 2); twice > 0; twice--, from += QUANT_GROUP / 2) {
    vi w[2];
    lines += STRIP_LINE_BYTES;
    if (form == FORM_I8) {
      w[0] = dot_load(lines);
      lines += STRIP_LINE_BYTES;
      w[1] = dot_load(lines);
    } else {
      unpack_sets(form, dot_load(lines), w);
    }
    const vi index[2] = {dot_index(code, set_base(0)), dot_index(vi_shr(code, 2), set_base(1))};
    code = vi_shr(code, 4);
    if (is_raised(form)) s->extra = raised_sum(raised_sum(s->extra, w[0]), w[1]);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
      const vi sixteen = dot_sixteen(from + (size_t)t * sizeof *x);
      meet_set(form, w[0], index[0], sixteen, t, s);
      meet_set(form, w[1], index[1], sixteen, t, s);
    }
  }
}

INLINE void sparse_group(enum form form, const int tokens, bool by_row, const uint8_t *chunk,
                         const uint8_t *lines, const struct quant_x *x, int g, float *sums) {
  const bool times_16 = form == FORM_I4 && KEPT_TIMES_16;
  for (int p = 0; p < (form == FORM_I8 ? 5 : 3); p++)
    __builtin_prefetch(lines + p * STRIP_LINE_BYTES + AHEAD_BYTES);
  const int halves = turns(tokens, HALVES);
  for (int h = 0; h < halves; h++) {
    const struct scales s = load_scales(form, by_row, chunk, g, h);
    struct sparse_sums of;
    sparse_lines(form, tokens, lines + 4 * h * VL, x, g, &of);
    const vi extra = is_raised(form) ? raised_total(of.extra) : vi_set(0);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
      float *to = sums + t * STRIP_ROWS + h * VL;
      const vi sum = form == FORM_I8 ? of.sum[t] : narrow_total(of.sum[t], 0);
      vf all = vf_mul(vf_of_int(is_raised(form) ? vi_sub(sum, extra) : sum), s.scale);
      if (form == FORM_I4_MINS) all = vf_fma(vf_of_int(narrow_total(of.kept[t], 0)), s.min, all);
      const float scale = times_16 ? x[t].scale_16th[g] : x[t].scale[g];
      vf_store(to, vf_fma(all, vf_set(scale), vf_load(to)));
    }
  }
}

/* Two strips are read abreast, a group of each in turn: two streams keep more of memory's answers
 * under way than one. */
INLINE void run_form(enum form form, const bool sparse, const int tokens, struct stretch c) {
  const int64_t dense_lines = form == FORM_I8 ? 8 : 4, sparse_lines = form == FORM_I8 ? 5 : 3;
  const int64_t group_bytes = (sparse ? sparse_lines : dense_lines) * STRIP_LINE_BYTES;
  const int64_t scale_bytes = (c.by_row ? 0 : form == FORM_I4_MINS ? 2 : 1) * STRIP_LINE_BYTES;
  const int groups = turns(tokens, QUANT_CHUNK_GROUPS);
  for (; c.chunks > 0; c.chunks--, c.x += c.step) {
    if (scale_bytes)
      for (int s = 0; s < c.strips; s++) __builtin_prefetch(c.at + s * c.apart + AHEAD_BYTES);
    for (int g = 0; g < groups; g++)
      for (int s = 0; s < c.strips; s++) {
        const uint8_t *chunk = c.at + s * c.apart;
        const uint8_t *lines = chunk + scale_bytes + g * group_bytes;
        if (sparse)
          sparse_group(form, tokens, c.by_row, chunk, lines, c.x, g, c.sums[s]);
        else
          dense_group(form, tokens, c.by_row, chunk, lines, c.x, g, c.sums[s]);
      }
    c.at += scale_bytes + QUANT_CHUNK_GROUPS * group_bytes;
  }
}

typedef void run_fn(struct stretch c);

/* One function for each form, kind and number of tokens that stays in registers. */
#define RUN(form, sparse, n) \
  static void run_##form##_##sparse##_##n(struct stretch c) { run_form(form, sparse, n, c); }
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
#else
RUN(FORM_I4, 1, 8)
static run_fn *const run_eight[FORMS][2] = {[FORM_I4] = {NULL, run_FORM_I4_1_8}};
#endif
static run_fn *const run_few[4][FORMS][2] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};

/* How many of `left` tokens are taken next, and by what. */
static int take_tokens(int64_t left, enum form form, bool sparse, run_fn **run) {
  if (left >= 8 && run_eight[form][sparse]) {
    *run = run_eight[form][sparse];
    return 8;
  }
  const int tokens = left < 4 ? (int)left : 4;
  *run = run_few[tokens - 1][form][sparse];
  return tokens;
}

static void run_chunks(enum form form, bool sparse, int64_t chunk_bytes, struct stretch all,
                       int64_t tokens) {
  run_fn *run;
  const int64_t piece = tokens <= take_tokens(tokens, form, sparse, &run) ? all.chunks : PIECE;
  for (int64_t c = 0; c < all.chunks; c += piece)
    for (int64_t t = 0, taken; t < tokens; t += taken) {
      struct stretch some = all;
      taken = take_tokens(tokens - t, form, sparse, &run);
      some.chunks = all.chunks - c < piece ? all.chunks - c : piece;
      some.at += c * chunk_bytes;
      some.x += c * all.step + t;
      for (int s = 0; s < all.strips; s++) some.sums[s] += t * STRIP_ROWS;
      run(some);
    }
}

static void run_kind(const struct quant_strips *w, int kind, struct stretch c, int64_t tokens) {
  const enum form form = form_of(w);
  if (kind == STRIP_EMPTY) return;
  if (kind != QUANT_TWICE) {
    run_chunks(form, kind == STRIP_SPARSE, quant_chunk_bytes(w, kind), c, tokens);
    return;
  }
  const int64_t bytes = quant_chunk_bytes(w, STRIP_DENSE);
  struct stretch one = c;
  for (one.chunks = 1; c.chunks > 0; c.chunks--, one.x += c.step)
    for (int i = 0; i < 2; i++, one.at += bytes) run_chunks(form, false, bytes, one, tokens);
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

static int64_t left_of_run(struct cursor *c) {
  while (!c->left) c->left = (++c->run)->chunks;
  return c->left;
}

/* The sums of strips `first` and, if there are two, `first` + 1: abreast where their chunks are of
 * one kind. */
static void strip_sums(const struct quant_strips *w, int64_t first, int strips,
                       const struct quant_x *x, int64_t tokens, float *sums) {
  struct cursor cursor[2] = {cursor_of(w, first), cursor_of(w, first + strips - 1)};
  float *other = sums + tokens * STRIP_ROWS;
  memset(sums, 0, (size_t)(strips * tokens * STRIP_ROWS) * sizeof(float));
  for (int64_t done = 0, count; done < w->chunks; done += count) {
    const int64_t one = left_of_run(&cursor[0]), two = left_of_run(&cursor[1]);
    const int kinds[2] = {cursor[0].run->kind, cursor[1].run->kind};
    count = one < two ? one : two;
    struct stretch c = {w->row_scales != NULL,
                        kinds[0] == kinds[1] ? strips : 1,
                        cursor[0].at,
                        cursor[1].at - cursor[0].at,
                        count,
                        x + done * tokens,
                        tokens,
                        {sums, other}};
    run_kind(w, kinds[0], c, tokens);
    if (kinds[0] != kinds[1]) {
      c.at = cursor[1].at, c.sums[0] = other;
      run_kind(w, kinds[1], c, tokens);
    }
    for (int s = 0; s < 2; s++) {
      cursor[s].at += count * quant_chunk_bytes(w, kinds[s]);
      cursor[s].left -= count;
    }
  }
}

static void quant_dot(const struct quant_strips *w, int64_t first, int64_t count,
                      const struct quant_x *x, int64_t tokens, float *y, int64_t ldy, float *sums) {
  for (int64_t strip = first; strip < first + count; strip += 2, y += 2 * STRIP_ROWS) {
    const int strips = strip + 1 < first + count ? 2 : 1;
    strip_sums(w, strip, strips, x, tokens, sums);
    for (int s = 0; s < strips; s++)
      finish(w, strip + s, sums + s * tokens * STRIP_ROWS, tokens, y + s * STRIP_ROWS, ldy);
  }
}

#include "kernel/cpu/quant_expand_body.h"
#include "kernel/cpu/quant_round_body.h"

static void fill_quant(struct kernel_table *table) {
  table->quant.round = quant_round;
  table->quant.dot = quant_dot;
  table->quant.expand = quant_expand;
}
