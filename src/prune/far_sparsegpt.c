/* See far_sparsegpt.h. No state beyond the factor: what a matrix needs is taken for its time. */
#include "prune/far_sparsegpt.h"

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/sparsegpt.h"
#include "prune/sparsegpt.h"

/* --- the factor --- */

static enum status take(const struct backend *ops, size_t bytes, void *out, const char *what,
                        struct error *err) {
  void **memory = out;
  enum status status = ops->alloc(bytes, memory, err);
  if (status != STATUS_OK)
    error_prefix(err,
                 "SparseGPT wants %.1f MiB on the card for %s; fewer --calib-tokens leave more "
                 "room, --device cpu needs none",
                 (double)bytes / 1048576, what);
  return status;
}

enum status far_sparsegpt_init(struct far_sparsegpt *s, const struct backend *ops, int64_t widest,
                               struct error *err) {
  *s = (struct far_sparsegpt){.ops = ops};
  enum status status = take(ops, (size_t)widest * (size_t)widest * sizeof *s->factor, &s->factor,
                            "the factor of a Hessian", err);
  return status != STATUS_OK ? status : take(ops, sizeof *s->failed, &s->failed, "a flag", err);
}

void far_sparsegpt_free(struct far_sparsegpt *s) {
  if (!s->ops) return;
  s->ops->free(s->factor);
  s->ops->free(s->failed);
  *s = (struct far_sparsegpt){0};
}

struct far_factor {
  struct far_sparsegpt *s;
  const struct far_moments *far;
  const struct moments *m;
};

static enum status factor_there(void *ctx, double scale, double added, bool *positive,
                                struct error *err) {
  const struct far_factor *f = ctx;
  const struct backend *ops = f->s->ops;
  uint32_t failed;
  ops->clear(f->s->failed, sizeof failed);
  ops->sparsegpt->factor(f->far->products, f->m->cols, scale, added, f->s->factor, f->s->failed);
  enum status status = ops->download(&failed, f->s->failed, sizeof failed, err);
  *positive = !failed;
  return status;
}

static enum status diagonal_there(void *ctx, double scale, double added, struct error *err) {
  const struct far_factor *f = ctx;
  const struct backend *ops = f->s->ops;
  const int64_t n = f->m->cols;
  const size_t bytes = (size_t)n * sizeof(float);
  float *diagonal = mem_alloc((size_t)n, sizeof *diagonal, err);
  if (!diagonal) return STATUS_FAILED;
  moments_fill_diagonal(f->m, scale, added, diagonal);
  ops->clear(f->s->factor, (size_t)n * bytes);
  enum status status = ops->upload(f->far->diagonal, diagonal, bytes, err);
  if (status == STATUS_OK)
    ops->sparsegpt->copy_matrix(f->s->factor, n + 1, f->far->diagonal, 1, n, 1);
  mem_free(diagonal);
  return status;
}

enum status far_sparsegpt_factor(struct far_sparsegpt *s, const struct far_moments *far,
                                 const struct moments *m, double damping,
                                 struct factor_report *report, struct error *err) {
  struct far_factor there = {s, far, m};
  const struct factor_way way = {&there, factor_there, diagonal_there};
  return moments_damp(m, damping, &way, report, err);
}

/* --- a matrix --- */

struct far_matrix {
  const struct backend *ops;
  const struct prune_rule *rule;
  struct mask_matrix *mask;
  struct sparsegpt_walk walk; /* of the block at hand */
  int64_t block, blocks;
  uint32_t *chosen;   /* (blocks, rows, SPARSEGPT_WORDS), on the card */
  float *scores;      /* (rows, block) there, unstructured only */
  uint32_t *here;     /* the host's copy of `chosen` */
  float *host_scores; /* and of `scores` */
};

static int64_t words_of_block(const struct far_matrix *f) { return f->walk.rows * SPARSEGPT_WORDS; }

static enum status matrix_alloc(struct far_matrix *f, struct error *err) {
  const int64_t rows = f->walk.rows, cols = f->walk.cols;
  const size_t words = (size_t)(f->blocks * words_of_block(f)) * sizeof *f->chosen;
  const size_t floats = (size_t)rows * (size_t)f->block * sizeof(float);
  const bool unstructured = f->rule->pattern == PRUNE_UNSTRUCTURED;
  enum status status =
      take(f->ops, (size_t)rows * (size_t)cols * sizeof(float), &f->walk.w, "a linear", err);
  if (!status) status = take(f->ops, words, &f->chosen, "a mask", err);
  if (!status) status = take(f->ops, floats, &f->walk.errors, "a block's errors", err);
  if (!status && unstructured) status = take(f->ops, floats, &f->scores, "scores", err);
  if (!status && rule_is_tiled(f->rule)) {
    const size_t costs = (size_t)rows * (size_t)mask_tile_col_count(f->mask) * sizeof(float);
    f->walk.tile_rows = f->mask->tile_rows;
    f->walk.tile_cols = f->mask->tile_cols;
    status = take(f->ops, costs, &f->walk.cost, "tiles' costs", err);
    if (!status && f->rule->dense_tiles)
      status = take(f->ops, (size_t)mask_tile_count(f->mask), (void *)&f->walk.tiles, "tiles", err);
  }
  if (status) return status;
  f->here = mem_alloc(words, 1, err);
  if (unstructured) f->host_scores = mem_alloc(floats, 1, err);
  return f->here && (!unstructured || f->host_scores) ? STATUS_OK : STATUS_FAILED;
}

static void matrix_free(struct far_matrix *f) {
  f->ops->free(f->walk.w);
  f->ops->free(f->chosen);
  f->ops->free(f->walk.errors);
  f->ops->free(f->scores);
  f->ops->free(f->walk.cost);
  f->ops->free((void *)f->walk.tiles);
  mem_free(f->here);
  mem_free(f->host_scores);
}

/* Unstructured: what stays of the block at hand, into the mask and the block's words. */
static enum status choose_here(struct far_matrix *f, struct error *err) {
  const struct sparsegpt_walk *w = &f->walk;
  const size_t bytes = (size_t)words_of_block(f) * sizeof *f->here;
  f->ops->sparsegpt->score(w, f->scores);
  enum status status = f->ops->download(f->host_scores, f->scores,
                                        (size_t)(w->rows * w->width) * sizeof(float), err);
  if (status) return status;
  sparsegpt_cut(f->rule, f->host_scores, w->begin, w->width, f->mask);
  for (int64_t r = 0; r < w->rows; r++)
    for (int64_t i = 0; i < 32 * SPARSEGPT_WORDS; i++) {
      uint32_t *word = &f->here[r * SPARSEGPT_WORDS + i / 32];
      if (i % 32 == 0) *word = 0;
      if (i < w->width) *word |= (uint32_t)mask_bit(f->mask, r, w->begin + i) << i % 32;
    }
  return f->ops->upload(w->chosen, f->here, bytes, err);
}

/* --- what was chosen, into the mask --- */

static bool was_chosen(const struct far_matrix *f, int64_t row, int64_t col) {
  const int64_t block = col / f->block, i = col % f->block;
  const uint32_t *words = f->here + block * words_of_block(f) + row * SPARSEGPT_WORDS;
  return words[i / 32] >> i % 32 & 1;
}

static void decode_row(void *ctx, int64_t row, int worker) {
  const struct far_matrix *f = ctx;
  struct mask_matrix *m = f->mask;
  (void)worker;
  if (!rule_is_pairs(f->rule)) {
    for (int64_t c = 0; c < m->cols; c++) mask_set_bit(m, row, c, was_chosen(f, row, c));
    return;
  }
  for (int64_t g = 0; g < mask_group_count(m); g++) {
    float kept[4];
    const int width = (int)mask_group_width(m, g);
    for (int i = 0; i < width; i++) kept[i] = was_chosen(f, row, 4 * g + i);
    mask_set_code(m, row, g, rule_pick_pair(kept, width));
  }
}

static enum status take_results(struct far_matrix *f, float *w, struct error *err) {
  const struct sparsegpt_walk *walk = &f->walk;
  const struct backend *ops = f->ops;
  const size_t weights = (size_t)walk->rows * (size_t)walk->cols;
  enum status status = ops->download(w, walk->w, weights * sizeof *w, err);
  if (status || f->rule->pattern == PRUNE_UNSTRUCTURED) return status;
  status = ops->download(f->here, f->chosen,
                         (size_t)(f->blocks * words_of_block(f)) * sizeof *f->here, err);
  if (status) return status;
  parallel_for(walk->rows, decode_row, f);
  if (!rule_is_tiled(f->rule)) return STATUS_OK;
  const size_t costs = (size_t)walk->rows * (size_t)mask_tile_col_count(f->mask);
  float *cost = mem_alloc(costs, sizeof *cost, err);
  status = cost ? ops->download(cost, walk->cost, costs * sizeof *cost, err) : STATUS_FAILED;
  if (!status) status = rule_score_tiles(f->mask, cost, err);
  mem_free(cost);
  return status;
}

static enum status walk_all(struct far_matrix *f, const float *w, struct error *err) {
  struct sparsegpt_walk *walk = &f->walk;
  const struct backend *ops = f->ops;
  const size_t weights = (size_t)walk->rows * (size_t)walk->cols;
  enum status status = ops->upload(walk->w, w, weights * sizeof *w, err);
  if (!status && walk->tiles)
    status = ops->upload((void *)walk->tiles, f->rule->dense_tiles,
                         (size_t)mask_tile_count(f->mask), err);
  for (int64_t b = 0; b < f->blocks && !status; b++) {
    walk->begin = b * f->block;
    walk->width = walk->cols - walk->begin < f->block ? walk->cols - walk->begin : f->block;
    walk->chosen = f->chosen + b * words_of_block(f);
    if (f->rule->pattern == PRUNE_UNSTRUCTURED) status = choose_here(f, err);
    if (!status) ops->sparsegpt->walk(walk);
  }
  return status;
}

static enum status block_of(const struct prune_rule *rule, int64_t block, int64_t *out,
                            struct error *err) {
  *out = sparsegpt_block(rule, block < SPARSEGPT_WALK_MAX ? block : SPARSEGPT_WALK_MAX);
  if (rule->pattern != PRUNE_UNSTRUCTURED || block <= SPARSEGPT_WALK_MAX) return STATUS_OK;
  return error_set(err, STATUS_USAGE,
                   "unstructured SparseGPT on a card chooses among at most %d columns at a time, "
                   "not --block %lld",
                   SPARSEGPT_WALK_MAX, (long long)block);
}

enum status far_sparsegpt_prune(struct far_sparsegpt *s, const struct prune_rule *rule,
                                const char *name, float *w, int64_t rows, int64_t cols,
                                int64_t block, struct mask_matrix *out, struct error *err) {
  const bool unstructured = rule->pattern == PRUNE_UNSTRUCTURED;
  struct far_matrix f = {.ops = s->ops, .rule = rule, .mask = out};
  enum status status = block_of(rule, block, &f.block, err);
  if (!status) status = rule_mask_init(rule, name, rows, cols, out, err);
  if (status) return status;
  f.blocks = (cols + f.block - 1) / f.block;
  f.walk = (struct sparsegpt_walk){.rows = rows,
                                   .cols = cols,
                                   .u = s->factor,
                                   .keep = unstructured          ? 0
                                           : rule_is_pairs(rule) ? 2
                                                                 : rule->keep,
                                   .of = (int)sparsegpt_group(rule)};
  status = matrix_alloc(&f, err);
  if (!status) status = walk_all(&f, w, err);
  if (!status) status = take_results(&f, w, err);
  matrix_free(&f);
  if (status) mask_matrix_free(out);
  return status;
}
