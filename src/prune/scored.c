/* Magnitude and Wanda, row by row on all threads. Owns scratch of one row a thread. */
#include "prune/scored.h"

#include <math.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "prune/select.h"

struct scored_job {
  const struct prune_rule *rule;
  const float *w;     /* (rows, cols) */
  const float *norms; /* (cols) or NULL */
  struct mask_matrix *mask;
  float *scores; /* (threads, cols) */
  float *cost;   /* (rows, tile columns), tiled patterns only */
};

/* Scores of a row: out (cols). */
static void score_row(const struct scored_job *job, int64_t row, float *out) {
  const int64_t cols = job->mask->cols;
  const float *w = job->w + row * cols;
  for (int64_t c = 0; c < cols; c++) out[c] = fabsf(w[c]) * (job->norms ? job->norms[c] : 1.0f);
}

static void prune_pairs(struct scored_job *job, int64_t row, const float *scores) {
  struct mask_matrix *m = job->mask;
  const int64_t groups = mask_group_count(m), per_row = mask_tile_col_count(m);
  for (int64_t g = 0; g < groups; g++) {
    const int width = (int)mask_group_width(m, g);
    const uint8_t code = rule_pick_pair(scores + 4 * g, width);
    float lost = 0;
    for (int i = 0; i < width; i++)
      if (i != (code & 3) && i != code >> 2) lost += scores[4 * g + i];
    mask_set_code(m, row, g, code);
    job->cost[row * per_row + 4 * g / m->tile_cols] += lost;
  }
}

static void prune_groups(struct scored_job *job, int64_t row, const float *scores) {
  struct mask_matrix *m = job->mask;
  const int of = job->rule->of;
  for (int64_t c = 0; c < m->cols; c += of) {
    bool kept[SPARSE_GROUP_MAX];
    const int width = m->cols - c < of ? (int)(m->cols - c) : of;
    float lost = 0;
    rule_pick(scores + c, width, job->rule->keep, kept);
    for (int i = 0; i < width; i++) {
      mask_set_bit(m, row, c + i, kept[i]);
      if (!kept[i]) lost += scores[c + i];
    }
    if (job->cost) job->cost[row * mask_tile_col_count(m) + c / m->tile_cols] += lost;
  }
}

static void cut_row(struct mask_matrix *m, int64_t row, const float *scores,
                    const struct select_cut *cut, int64_t *ties) {
  for (int64_t c = 0; c < m->cols; c++)
    mask_set_bit(m, row, c, !select_drops(cut, scores[c], ties));
}

static void prune_share(struct scored_job *job, int64_t row, const float *scores) {
  struct mask_matrix *m = job->mask;
  const int64_t drop = select_share(job->rule->sparsity, row * m->cols, (row + 1) * m->cols);
  const struct select_cut cut = select_smallest(scores, m->cols, drop);
  int64_t ties = cut.ties;
  cut_row(m, row, scores, &cut, &ties);
}

static void prune_row(void *ctx, int64_t row, int worker) {
  struct scored_job *job = ctx;
  float *scores = job->scores + worker * job->mask->cols;
  score_row(job, row, scores);
  if (rule_is_pairs(job->rule))
    prune_pairs(job, row, scores);
  else if (job->rule->pattern != PRUNE_UNSTRUCTURED)
    prune_groups(job, row, scores);
  else
    prune_share(job, row, scores);
}

/* The smallest of the whole matrix: select_key looks past signs, so the weights are the scores. */
static void prune_whole(const struct prune_rule *rule, const float *w, struct mask_matrix *m) {
  const int64_t count = m->rows * m->cols;
  const struct select_cut cut = select_smallest(w, count, select_share(rule->sparsity, 0, count));
  int64_t ties = cut.ties;
  for (int64_t r = 0; r < m->rows; r++) cut_row(m, r, w + r * m->cols, &cut, &ties);
}

enum status prune_scored(const struct prune_rule *rule, const char *name, const float *w,
                         int64_t rows, int64_t cols, const float *norms, struct mask_matrix *out,
                         struct error *err) {
  struct scored_job job = {.rule = rule, .w = w, .norms = norms, .mask = out};
  enum status status = rule_mask_init(rule, name, rows, cols, out, err);
  if (status) return status;
  if (rule->pattern == PRUNE_UNSTRUCTURED && !norms) {
    prune_whole(rule, w, out);
    return STATUS_OK;
  }
  status = STATUS_FAILED;
  job.scores = mem_alloc((size_t)parallel_threads() * (size_t)cols, sizeof(float), err);
  if (!job.scores) goto out;
  if (rule_is_tiled(rule)) {
    job.cost = mem_alloc((size_t)(rows * mask_tile_col_count(out)), sizeof(float), err);
    if (!job.cost) goto out;
  }
  parallel_for(rows, prune_row, &job);
  status = rule_is_tiled(rule) ? rule_score_tiles(out, job.cost, err) : STATUS_OK;
out:
  mem_free(job.scores);
  mem_free(job.cost);
  if (status) mask_matrix_free(out);
  return status;
}
