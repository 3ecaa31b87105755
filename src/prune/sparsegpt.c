/* SparseGPT, blocked: within a block of columns each row is worked on alone (they don't depend on
 * each other), and what the block did to the columns behind it is one matrix product.
 *
 * Owns the errors of one block. What may surprise: a kept weight has no error, so only the dropped
 * half of the columns costs anything. */
#include "prune/sparsegpt.h"

#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/gemm.h"
#include "prune/select.h"

enum { ROWS_PER_ITEM = 8 };

struct sparsegpt_job {
  const struct prune_rule *rule;
  float *w;       /* (rows, cols) */
  const float *u; /* (cols, cols) */
  struct mask_matrix *mask;
  int64_t begin, width; /* the block's columns */
  float *errors;        /* (rows, block): w / u_jj of what was dropped, else 0 */
  float *scores;        /* (rows, block), unstructured only */
  float *cost;          /* (rows, tile columns), tiled patterns only */
};

static float diagonal(const struct sparsegpt_job *job, int64_t col) {
  return job->u[col * job->mask->cols + col];
}

static float saliency(const struct sparsegpt_job *job, const float *w, int64_t col) {
  const float scaled = w[col] / diagonal(job, col);
  return scaled * scaled;
}

/* --- which weights stay: kept[i] for columns col .. col + width of one row --- */

static void choose_pair(struct sparsegpt_job *job, int64_t row, int64_t col, int width,
                        bool *kept) {
  struct mask_matrix *m = job->mask;
  const float *w = job->w + row * m->cols;
  float scores[4];
  for (int i = 0; i < width; i++) scores[i] = saliency(job, w, col + i);
  const uint8_t code = rule_pick_pair(scores, width);
  mask_set_code(m, row, col / 4, code);
  const bool dense = mask_tile_dense(m, row, col);
  for (int i = 0; i < width; i++) kept[i] = dense || i == (code & 3) || i == code >> 2;
}

static void choose_group(struct sparsegpt_job *job, int64_t row, int64_t col, int width,
                         bool *kept) {
  struct mask_matrix *m = job->mask;
  const float *w = job->w + row * m->cols;
  float scores[SPARSE_GROUP_MAX];
  for (int i = 0; i < width; i++) scores[i] = saliency(job, w, col + i);
  rule_pick(scores, width, job->rule->keep, kept);
  for (int i = 0; i < width; i++) mask_set_bit(m, row, col + i, kept[i]);
  if (mask_has_tiles(m) && mask_tile_dense(m, row, col))
    for (int i = 0; i < width; i++) kept[i] = true;
}

int64_t sparsegpt_group(const struct prune_rule *rule) {
  if (rule_is_pairs(rule)) return 4;
  return rule->pattern == PRUNE_UNSTRUCTURED ? 1 : rule->of;
}

int64_t sparsegpt_block(const struct prune_rule *rule, int64_t block) {
  const int64_t group = sparsegpt_group(rule);
  return block < group ? group : block / group * group;
}

static void choose(struct sparsegpt_job *job, int64_t row, int64_t col, int width, bool *kept) {
  if (rule_is_pairs(job->rule))
    choose_pair(job, row, col, width, kept);
  else if (job->rule->pattern != PRUNE_UNSTRUCTURED)
    choose_group(job, row, col, width, kept);
  else
    *kept = mask_bit(job->mask, row, col); /* decided for the whole block before */
}

/* --- what dropping does --- */

/* Drops w[col] of a row and lets the rest of the block make up for it. */
static void drop_weight(struct sparsegpt_job *job, int64_t row, int64_t col) {
  const int64_t cols = job->mask->cols, end = job->begin + job->width;
  float *w = job->w + row * cols;
  const float *u = job->u + col * cols;
  const float error = w[col] / u[col];
  for (int64_t k = col + 1; k < end; k++) w[k] -= error * u[k];
  w[col] = 0;
  job->errors[row * job->width + col - job->begin] = error;
  if (job->cost)
    job->cost[row * mask_tile_col_count(job->mask) + col / job->mask->tile_cols] += error * error;
}

static void prune_row(struct sparsegpt_job *job, int64_t row) {
  const int64_t end = job->begin + job->width;
  const int64_t group = sparsegpt_group(job->rule);
  for (int64_t i = 0; i < job->width; i++) job->errors[row * job->width + i] = 0;
  for (int64_t col = job->begin; col < end; col += group) {
    bool kept[SPARSE_GROUP_MAX] = {false};
    const int width = end - col < group ? (int)(end - col) : group;
    choose(job, row, col, width, kept);
    for (int i = 0; i < width; i++)
      if (!kept[i]) drop_weight(job, row, col + i);
  }
}

static void prune_rows(void *ctx, int64_t item, int worker) {
  struct sparsegpt_job *job = ctx;
  const int64_t end = (item + 1) * ROWS_PER_ITEM;
  for (int64_t r = item * ROWS_PER_ITEM; r < end && r < job->mask->rows; r++) prune_row(job, r);
}

static void score_rows(void *ctx, int64_t row, int worker) {
  struct sparsegpt_job *job = ctx;
  for (int64_t i = 0; i < job->width; i++)
    job->scores[row * job->width + i] =
        saliency(job, job->w + row * job->mask->cols, job->begin + i);
}

void sparsegpt_cut(const struct prune_rule *rule, const float *scores, int64_t begin, int64_t width,
                   struct mask_matrix *m) {
  const int64_t drop = select_share(rule->sparsity, m->rows * begin, m->rows * (begin + width));
  const struct select_cut cut = select_smallest(scores, m->rows * width, drop);
  int64_t ties = cut.ties;
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t i = 0; i < width; i++)
      mask_set_bit(m, r, begin + i, !select_drops(&cut, scores[r * width + i], &ties));
}

static void cut_block(struct sparsegpt_job *job) {
  parallel_for(job->mask->rows, score_rows, job);
  sparsegpt_cut(job->rule, job->scores, job->begin, job->width, job->mask);
}

static void prune_block(struct sparsegpt_job *job) {
  const int64_t rows = job->mask->rows, cols = job->mask->cols, end = job->begin + job->width;
  if (job->scores) cut_block(job);
  parallel_for((rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, prune_rows, job);
  if (end == cols) return;
  gemm(rows, cols - end, job->width, -1.0f,
       (struct gemm_operand){job->errors, DTYPE_F32, job->width, false},
       (struct gemm_operand){job->u + job->begin * cols + end, DTYPE_F32, cols, false}, 1.0f,
       job->w + end, cols);
}

static enum status job_alloc(struct sparsegpt_job *job, int64_t block, struct error *err) {
  const size_t rows = (size_t)job->mask->rows;
  job->errors = mem_alloc(rows * (size_t)block, sizeof(float), err);
  if (!job->errors) return STATUS_FAILED;
  if (job->rule->pattern == PRUNE_UNSTRUCTURED) {
    job->scores = mem_alloc(rows * (size_t)block, sizeof(float), err);
    return job->scores ? STATUS_OK : STATUS_FAILED;
  }
  if (!rule_is_tiled(job->rule)) return STATUS_OK;
  job->cost = mem_alloc(rows * (size_t)mask_tile_col_count(job->mask), sizeof(float), err);
  return job->cost ? STATUS_OK : STATUS_FAILED;
}

enum status prune_sparsegpt(const struct prune_rule *rule, const char *name, float *w, int64_t rows,
                            int64_t cols, const float *u, int64_t block, struct mask_matrix *out,
                            struct error *err) {
  struct sparsegpt_job job = {.rule = rule, .w = w, .u = u, .mask = out};
  enum status status = rule_mask_init(rule, name, rows, cols, out, err);
  if (status) return status;
  block = sparsegpt_block(rule, block);
  status = job_alloc(&job, block, err);
  if (status) goto out;
  for (job.begin = 0; job.begin < cols; job.begin += block) {
    job.width = cols - job.begin < block ? cols - job.begin : block;
    prune_block(&job);
  }
  if (rule_is_tiled(rule)) status = rule_score_tiles(out, job.cost, err);
out:
  mem_free(job.errors);
  mem_free(job.scores);
  mem_free(job.cost);
  if (status) mask_matrix_free(out);
  return status;
}
