/* Soft masks over whole matrices: see mask_ops.h. No state but scratch.
 *
 * An item is up to STRIP_ROWS rows of one tile row. Rows are handed to the kernels padded to whole
 * blocks: in place where they are fp32 and fill their blocks, else through scratch. Sums per tile
 * are taken per group over the rows of a strip, then over the strip's groups and the strips in
 * fp64, in order. */
#include "kernel/mask_ops.h"

#include <math.h>

#include "base/error.h"
#include "base/parallel.h"
#include "kernel/scratch.h"
#include "kernel/select.h"
#include "sparse/mask.h"

enum { STRIP_ROWS = 32, GROUP = 4, BLOCK_COLS = GROUP * MASK_BLOCK };
static const float NEVER = -1e30f; /* the exponent of a candidate that takes no part */

struct strips {
  int64_t per_tile_row, count;
};

static struct strips strips_of(const struct mask_source *s) {
  int64_t tile_rows = (s->rows + s->tile_rows - 1) / s->tile_rows;
  int64_t per = (s->tile_rows + STRIP_ROWS - 1) / STRIP_ROWS;
  return (struct strips){per, per * tile_rows};
}

static int64_t tile_cols_of(const struct mask_source *s) {
  return (s->cols + s->tile_cols - 1) / s->tile_cols;
}

struct pass {
  const struct mask_source *s;
  struct matrix_view w;
  struct strips strips;
  float bias[(MASK_STORED + 1) * MASK_BLOCK];
  bool ragged; /* the last group has fewer than four columns */
  enum dtype out_dtype;
  void *out;
  const float *dw;
  float decay;
  bool accumulate;
  void *dlogits;
  double *part; /* sample: (strips); backward: (strips, tile cols) */
};

/* Exponents of the last block: candidates of its last real group whose positions do not exist. */
static void fill_bias(struct pass *p) {
  int64_t width = p->s->cols - (mask_row_groups(p->s->cols) - 1) * GROUP;
  p->ragged = width < GROUP;
  int64_t lane = (mask_row_groups(p->s->cols) - 1) % MASK_BLOCK;
  for (int k = 0; k <= MASK_STORED; k++)
    if (!sparse_code_fits(sparse_candidate_code[k], width)) p->bias[k * MASK_BLOCK + lane] = NEVER;
}

static struct pass pass_make(const struct mask_source *s, struct matrix_view w) {
  INVARIANT((s->logits || s->codes) && dtype_is_native(w.dtype));
  INVARIANT(w.rows == s->rows && w.cols == s->cols && s->tile_cols % GROUP == 0);
  INVARIANT(s->rows <= INT32_MAX / mask_row_groups(s->cols));
  struct pass p = {.s = s, .w = w, .strips = strips_of(s)};
  fill_bias(&p);
  return p;
}

/* Rows [*first, *end) of strip `item`; empty past the last row. */
static void strip_rows(const struct pass *p, int64_t item, int64_t *first, int64_t *end) {
  int64_t tile_row = item / p->strips.per_tile_row;
  int64_t top = tile_row * p->s->tile_rows, bottom = top + p->s->tile_rows;
  if (bottom > p->s->rows) bottom = p->s->rows;
  *first = top + item % p->strips.per_tile_row * STRIP_ROWS;
  *end = *first + STRIP_ROWS < bottom ? *first + STRIP_ROWS : bottom;
}

/* T of each group of tile row `tile_row`: out (blocks, 16). */
static void spread_tiles(const struct mask_source *s, int64_t tile_row, float *out) {
  int64_t groups = mask_row_groups(s->cols), padded = mask_row_blocks(s->cols) * MASK_BLOCK;
  memset(out, 0, (size_t)padded * sizeof(float));
  if (!s->tile_soft) return;
  const float *soft = s->tile_soft + tile_row * tile_cols_of(s);
  for (int64_t g = 0; g < groups; g++) out[g] = soft[g * GROUP / s->tile_cols];
}

/* Scratch of one strip, all padded to blocks. */
struct strip_scratch {
  float *tile, *dtile;     /* (blocks, 16) */
  float *w, *dw, *out;     /* (blocks, 64) */
  float *logits, *dlogits; /* (blocks, 5, 16): of compact storage */
  uint8_t *codes;          /* (blocks, 8) */
};

static struct strip_scratch strip_scratch_make(const struct pass *p) {
  size_t groups = (size_t)(mask_row_blocks(p->s->cols) * MASK_BLOCK);
  const size_t floats = groups * (2 + 3 * GROUP + 1 + 2 * MASK_STORED);
  float *at = kernel_scratch(SCRATCH_MASK, floats);
  struct strip_scratch t = {.tile = at, .dtile = at + groups, .w = at + 2 * groups};
  t.dw = t.w + GROUP * groups;
  t.out = t.dw + GROUP * groups;
  t.logits = t.out + GROUP * groups;
  t.dlogits = t.logits + MASK_STORED * groups;
  t.codes = (uint8_t *)(t.dlogits + MASK_STORED * groups);
  memset(at, 0, floats * sizeof(float));
  return t;
}

/* A row of w as whole blocks of fp32. */
static const float *padded_weights(const struct pass *p, int64_t row, float *buffer) {
  const struct matrix_view *w = &p->w;
  const void *at = (const char *)w->data + row * w->cols * (w->dtype == DTYPE_F32 ? 4 : 2);
  if (w->dtype == DTYPE_F32 && w->cols % BLOCK_COLS == 0) return at;
  kernel_table()->widen(w->dtype, at, w->cols, buffer);
  return buffer;
}

static const float *padded_floats(const float *row, int64_t cols, float *buffer) {
  if (cols % BLOCK_COLS == 0) return row;
  memcpy(buffer, row, (size_t)cols * sizeof(float));
  return buffer;
}

static struct mask_row row_make(const struct pass *p, int64_t row, const struct strip_scratch *t) {
  const struct mask_source *s = p->s;
  struct mask_row r = {.blocks = mask_row_blocks(s->cols),
                       .tile = t->tile,
                       .bias = p->ragged ? p->bias : NULL,
                       .slope = s->kappa / s->tau,
                       .inverse_tau = 1.0f / s->tau,
                       .noise = s->noise,
                       .key = {s->key[0], s->key[1]},
                       .tensor = s->tensor,
                       .draw = s->draw,
                       .counter = (uint32_t)(row * mask_row_groups(s->cols))};
  if (s->logits && s->logit_dtype == DTYPE_BF16) {
    const uint16_t *stored = (const uint16_t *)s->logits + mask_logit_index(s->cols, row, 0, 0);
    kernel_table()->widen(DTYPE_BF16, stored, r.blocks * MASK_STORED * MASK_BLOCK, t->logits);
    r.logits = t->logits;
  } else if (s->logits) {
    r.logits = (const float *)s->logits + mask_logit_index(s->cols, row, 0, 0);
  } else {
    int64_t stride = (s->cols + 7) / 8;
    memcpy(t->codes, s->codes + row * stride, (size_t)stride);
    r.codes = t->codes;
  }
  return r;
}

/* Where a kernel puts a row of w M: in place, or in scratch until it is rounded or cut. */
static float *out_room(const struct pass *p, int64_t row, const struct strip_scratch *t) {
  bool in_place = p->out_dtype == DTYPE_F32 && p->s->cols % BLOCK_COLS == 0;
  return in_place ? (float *)p->out + row * p->s->cols : t->out;
}

static void put_out(const struct pass *p, int64_t row, const float *made) {
  const int64_t cols = p->s->cols, at = row * cols;
  if (p->out_dtype == DTYPE_BF16)
    kernel_table()->bf16.round(made, cols, (uint16_t *)p->out + at);
  else if (made != (const float *)p->out + at)
    memcpy((float *)p->out + at, made, (size_t)cols * sizeof(float));
}

static void sample_item(void *ctx, int64_t item, int worker) {
  const struct pass *p = ctx;
  (void)worker;
  int64_t first, end;
  strip_rows(p, item, &first, &end);
  p->part[item] = 0;
  if (first >= end) return;
  struct strip_scratch t = strip_scratch_make(p);
  spread_tiles(p->s, first / p->s->tile_rows, t.tile);
  for (int64_t row = first; row < end; row++) {
    struct mask_row r = row_make(p, row, &t);
    const float *w = padded_weights(p, row, t.w);
    float *out = out_room(p, row, &t);
    p->part[item] += kernel_table()->mask.sample(&r, w, out);
    put_out(p, row, out);
  }
}

/* Room for `count` sums. */
static void *part_scratch(int64_t count) {
  return kernel_scratch(SCRATCH_LINEAR, (size_t)(2 * count));
}

double mask_sample(const struct mask_source *source, struct matrix_view w, enum dtype out_dtype,
                   void *out) {
  struct pass p = pass_make(source, w);
  INVARIANT(out_dtype == DTYPE_F32 || out_dtype == DTYPE_BF16);
  p.out_dtype = out_dtype;
  p.out = out;
  p.part = part_scratch(p.strips.count);
  parallel_for(p.strips.count, sample_item, &p);
  double sum = 0;
  for (int64_t i = 0; i < p.strips.count; i++) sum += p.part[i];
  return sum;
}

/* Sums a strip's groups by tile: part (tile cols). */
static void gather_tiles(const struct mask_source *s, const float *dtile, double *part) {
  int64_t groups = mask_row_groups(s->cols);
  memset(part, 0, (size_t)tile_cols_of(s) * sizeof(double));
  for (int64_t g = 0; g < groups; g++) part[g * GROUP / s->tile_cols] += dtile[g];
}

/* A row's gradients, made in scratch, to where they are kept in bf16. */
static void round_gradients(const struct pass *p, int64_t row, const float *made) {
  const struct mask_source *s = p->s;
  const int64_t blocks = mask_row_blocks(s->cols);
  const struct mask_compact_row r = {
      .state = {.gradient = (uint16_t *)p->dlogits + mask_logit_index(s->cols, row, 0, 0)},
      .rounding = {{s->key[0], s->key[1]}, s->tensor},
      .slot = (uint64_t)(row * blocks * MASK_BLOCK),
      .blocks = blocks};
  kernel_table()->mask.compact_round(&r, s->pass, p->accumulate, made);
}

static void backward_item(void *ctx, int64_t item, int worker) {
  const struct pass *p = ctx;
  (void)worker;
  const struct mask_source *s = p->s;
  const bool compact = s->logits && s->logit_dtype == DTYPE_BF16;
  int64_t first, end, cols = s->cols;
  strip_rows(p, item, &first, &end);
  struct strip_scratch t = strip_scratch_make(p);
  if (first < end) spread_tiles(s, first / s->tile_rows, t.tile);
  for (int64_t row = first; row < end; row++) {
    struct mask_row r = row_make(p, row, &t);
    const float *w = padded_weights(p, row, t.w);
    const float *dw = padded_floats(p->dw + row * cols, cols, t.dw);
    float *dlogits = NULL;
    if (s->logits)
      dlogits = compact ? t.dlogits : (float *)p->dlogits + mask_logit_index(cols, row, 0, 0);
    float *out = p->out ? out_room(p, row, &t) : NULL;
    kernel_table()->mask.backward(&r, w, dw, p->decay, p->accumulate && !compact, dlogits, t.dtile,
                                  out);
    if (compact) round_gradients(p, row, dlogits);
    if (out) put_out(p, row, out);
  }
  gather_tiles(s, t.dtile, p->part + item * tile_cols_of(s));
}

static void reduce_tiles(const struct pass *p, double *dtile) {
  int64_t tile_cols = tile_cols_of(p->s), tile_rows = p->strips.count / p->strips.per_tile_row;
  if (!p->accumulate) memset(dtile, 0, (size_t)(tile_rows * tile_cols) * sizeof(double));
  for (int64_t i = 0; i < p->strips.count; i++)
    for (int64_t c = 0; c < tile_cols; c++)
      dtile[i / p->strips.per_tile_row * tile_cols + c] += p->part[i * tile_cols + c];
}

void mask_backward(const struct mask_source *source, struct matrix_view w, const float *dw,
                   float decay, bool accumulate, void *dlogits, double *dtile, enum dtype out_dtype,
                   void *out) {
  struct pass p = pass_make(source, w);
  INVARIANT(!out || out_dtype == DTYPE_F32 || out_dtype == DTYPE_BF16);
  p.out_dtype = out_dtype;
  p.out = out;
  p.dw = dw;
  p.decay = decay;
  p.accumulate = accumulate;
  p.dlogits = dlogits;
  p.part = part_scratch(p.strips.count * tile_cols_of(source));
  parallel_for(p.strips.count, backward_item, &p);
  if (source->tile_soft) reduce_tiles(&p, dtile);
}

/* --- hardening --- */

/* The best candidate of a row's last group, of `width` < 4 columns, among those that fit it. */
static uint8_t narrow_code(const float *logits, int64_t cols, int64_t width) {
  int best = 0;
  float top = -INFINITY;
  for (int k = 0; k <= MASK_STORED; k++) {
    int64_t at = mask_logit_index(cols, 0, mask_row_groups(cols) - 1, k);
    float value = k < MASK_STORED ? logits[at] : 0.0f;
    if (!sparse_code_fits(sparse_candidate_code[k], width) || !(value > top)) continue;
    best = k;
    top = value;
  }
  return sparse_candidate_code[best];
}

struct harden {
  const float *logits;
  int64_t rows, cols;
  uint8_t *codes;
  int64_t *changed; /* (items) */
};

/* Packs a row's chosen codes, two groups a byte; returns how many differ from what was there. */
static int64_t pack_codes(const int32_t *chosen, int64_t groups, uint8_t *codes) {
  int64_t changed = 0;
  for (int64_t g = 0; g < groups; g += 2, codes++) {
    int pair = chosen[g] | (g + 1 < groups ? chosen[g + 1] << 4 : *codes & 0xf0);
    int difference = pair ^ *codes;
    changed += (difference & 0x0f) != 0;
    changed += (difference & 0xf0) != 0;
    *codes = (uint8_t)pair;
  }
  return changed;
}

int64_t mask_harden_row(const float *logits, int64_t cols, int32_t *chosen, uint8_t *codes) {
  int64_t groups = mask_row_groups(cols), width = cols - (groups - 1) * GROUP;
  kernel_table()->mask.choose(logits, mask_row_blocks(cols), chosen);
  if (width < GROUP) chosen[groups - 1] = narrow_code(logits, cols, width);
  return pack_codes(chosen, groups, codes);
}

static int64_t harden_row(const struct harden *h, int64_t row, int32_t *chosen) {
  return mask_harden_row(h->logits + mask_logit_index(h->cols, row, 0, 0), h->cols, chosen,
                         h->codes + row * ((h->cols + 7) / 8));
}

static int32_t *chosen_scratch(int64_t cols) {
  return (int32_t *)kernel_scratch(SCRATCH_MASK, (size_t)(mask_row_blocks(cols) * MASK_BLOCK));
}

static void harden_item(void *ctx, int64_t item, int worker) {
  const struct harden *h = ctx;
  (void)worker;
  int64_t changed = 0;
  int64_t end = (item + 1) * STRIP_ROWS < h->rows ? (item + 1) * STRIP_ROWS : h->rows;
  int32_t *chosen = chosen_scratch(h->cols);
  for (int64_t row = item * STRIP_ROWS; row < end; row++) changed += harden_row(h, row, chosen);
  h->changed[item] = changed;
}

int64_t mask_harden(const float *logits, int64_t rows, int64_t cols, uint8_t *codes) {
  int64_t items = (rows + STRIP_ROWS - 1) / STRIP_ROWS, sum = 0;
  struct harden h = {logits, rows, cols, codes, part_scratch(items)};
  parallel_for(items, harden_item, &h);
  for (int64_t i = 0; i < items; i++) sum += h.changed[i];
  return sum;
}

/* --- the optimizer --- */

enum { ITEM_BLOCKS = 512 };

struct update {
  const float *gradient;
  int64_t blocks;
  struct mask_adamw_factors factors;
  float *logits, *first, *second;
  double *part;
};

static int64_t item_blocks(const struct update *u, int64_t item) {
  int64_t left = u->blocks - item * ITEM_BLOCKS;
  return left < ITEM_BLOCKS ? left : ITEM_BLOCKS;
}

static void squares_item(void *ctx, int64_t item, int worker) {
  const struct update *u = ctx;
  (void)worker;
  const float *at = u->gradient + item * ITEM_BLOCKS * MASK_STORED * MASK_BLOCK;
  u->part[item] = kernel_table()->mask.gradient_squares(at, item_blocks(u, item));
}

double mask_gradient_squares(const float *gradient, int64_t rows, int64_t cols) {
  struct update u = {.gradient = gradient, .blocks = rows * mask_row_blocks(cols)};
  int64_t items = (u.blocks + ITEM_BLOCKS - 1) / ITEM_BLOCKS;
  u.part = part_scratch(items);
  parallel_for(items, squares_item, &u);
  double sum = 0;
  for (int64_t i = 0; i < items; i++) sum += u.part[i];
  return sum;
}

struct stepping {
  struct update update;
  struct harden harden; /* codes NULL: none */
};

static void adamw_row(const struct update *u, int64_t row, int64_t blocks) {
  int64_t at = row * blocks * MASK_STORED * MASK_BLOCK;
  int64_t second_at = row * blocks * (MASK_STORED + 1) * MASK_BLOCK;
  kernel_table()->mask.adamw(&u->factors, blocks, u->gradient + at, u->logits + at, u->first + at,
                             u->second + second_at);
}

static void adamw_item(void *ctx, int64_t item, int worker) {
  const struct stepping *s = ctx;
  const struct harden *h = &s->harden;
  (void)worker;
  int64_t changed = 0;
  int64_t end = (item + 1) * STRIP_ROWS < h->rows ? (item + 1) * STRIP_ROWS : h->rows;
  int32_t *chosen = chosen_scratch(h->cols);
  for (int64_t row = item * STRIP_ROWS; row < end; row++) {
    adamw_row(&s->update, row, mask_row_blocks(h->cols));
    if (h->codes) changed += harden_row(h, row, chosen);
  }
  h->changed[item] = changed;
}

int64_t mask_adamw_step(const struct mask_adamw *o, int64_t rows, int64_t cols,
                        const float *gradient, float *logits, float *first, float *second,
                        uint8_t *codes) {
  int64_t items = (rows + STRIP_ROWS - 1) / STRIP_ROWS, sum = 0;
  struct stepping s = {
      .update = {.gradient = gradient, .logits = logits, .first = first, .second = second},
      .harden = {logits, rows, cols, codes, (int64_t *)part_scratch(items)}};
  s.update.factors = mask_adamw_factors_of(o);
  parallel_for(items, adamw_item, &s);
  for (int64_t i = 0; i < items; i++) sum += s.harden.changed[i];
  return sum;
}
