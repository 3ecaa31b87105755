/* Several texts in one pass, those with a common beginning computed once: see model.h.
 *
 * All rows of all texts go through the linears, norms and activations as one matrix; only rotation
 * and attention know where a text begins. A branch reads the keys of its stem and then its own:
 * where those do not lie one after the other they are copied together, which costs a read of what
 * attention would read anyway. */
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/internal.h"

/* Branches of more rows than this use all threads inside attention instead of one each. */
enum { LONG_BRANCH_ROWS = 256 };

struct model_branches {
  const struct model *model;
  struct model_workspace *ws;
  int64_t rows, longest;
  int workers;
  int64_t *positions; /* (rows): of each row in its text */
  float *joined;      /* (workers, 2, longest, kv_heads * head_dim): keys, values */
};

enum status model_branches_new(struct model_branches **out, const struct model *model, int64_t rows,
                               int64_t longest, enum precision precision, struct error *err) {
  INVARIANT(rows >= 1 && longest >= 1 && model->backend->is_host);
  struct model_branches *b = mem_alloc(1, sizeof *b, err);
  if (!b) return STATUS_FAILED;
  *b = (struct model_branches){
      .model = model, .rows = rows, .longest = longest, .workers = parallel_threads()};
  size_t width = (size_t)config_kv_width(&model->config) * sizeof(float), count;
  enum status status = STATUS_OK;
  if (!checked_mul((size_t)b->workers * 2, (size_t)longest, &count))
    status = error_set(err, STATUS_FAILED, "texts of %lld tokens are too long", (long long)longest);
  if (!status) {
    b->positions = mem_alloc((size_t)rows, sizeof *b->positions, err);
    b->joined = mem_alloc(count, width, err);
    if (!b->positions || !b->joined) status = STATUS_FAILED;
  }
  if (!status)
    status =
        workspace_make(&b->ws, model, (struct model_shape){rows, 1}, longest, false, false, err);
  if (!status) {
    model_workspace_set_precision(b->ws, precision);
    *out = b;
  } else {
    model_branches_free(b);
  }
  return status;
}

void model_branches_free(struct model_branches *b) {
  if (!b) return;
  model_workspace_free(b->ws);
  mem_free(b->positions);
  mem_free(b->joined);
  mem_free(b);
}

/* --- attention, branch by branch --- */

struct attending {
  const struct block_run *run;
  const float *q;     /* (rows, heads * head_dim) */
  const float *k, *v; /* (rows, kv_heads * head_dim) */
  float *out;         /* (rows, heads * head_dim) */
};

/* Rows of the stem, then the branch's own: where they lie, or copied together into `joined`. */
static const float *join(const struct model_branch *b, const float *rows, int64_t width,
                         float *joined) {
  if (b->stem + b->stem_count == b->first || b->stem_count == 0)
    return rows + (b->first - b->stem_count) * width;
  memcpy(joined, rows + b->stem * width, (size_t)(b->stem_count * width) * sizeof *rows);
  memcpy(joined + b->stem_count * width, rows + b->first * width,
         (size_t)(b->count * width) * sizeof *rows);
  return joined;
}

static void attend(void *ctx, int64_t index, int worker) {
  const struct attending *a = ctx;
  const struct branch_run *branches = a->run->branches;
  const struct model_config *c = &a->run->model->config;
  const struct model_branch *b = &branches->items[index];
  int64_t width = config_kv_width(c), at = b->first * config_q_width(c);
  float *joined = branches->joined + worker * 2 * branches->longest * width;
  struct attention_shape shape = block_attention_shape(a->run);
  shape.sequences = 1;
  shape.q_length = b->count;
  shape.q_start = b->stem_count;
  shape.kv_length = b->stem_count + b->count;
  const float *k = join(b, a->k, width, joined);
  const float *v = join(b, a->v, width, joined + branches->longest * width);
  attention_forward(&shape, a->q + at, k, v, a->out + at, NULL);
}

static void attend_short(void *ctx, int64_t index, int worker) {
  const struct attending *a = ctx;
  if (a->run->branches->items[index].count <= LONG_BRANCH_ROWS) attend(ctx, index, worker);
}

void branches_attend(const struct block_run *run, const float *q, const float *k, const float *v,
                     float *out) {
  struct attending a = {run, q, k, v, out};
  for (int64_t i = 0; i < run->branches->count; i++)
    if (run->branches->items[i].count > LONG_BRANCH_ROWS) attend(&a, i, 0);
  parallel_for(run->branches->count, attend_short, &a);
}

/* --- the pass --- */

/* Rows follow one another without gaps, stems lie before their branches and begin a text. Gives the
 * number of rows, and their positions. */
static int64_t place_branches(struct model_branches *pass, const struct model_branch *items,
                              int64_t count) {
  int64_t rows = 0;
  INVARIANT(pass->workers >= parallel_threads());
  for (int64_t i = 0; i < count; i++) {
    const struct model_branch *b = &items[i];
    INVARIANT(b->first == rows && b->count >= 1 && b->stem_count >= 0);
    INVARIANT(b->stem_count == 0 || (b->stem >= 0 && b->stem + b->stem_count <= b->first));
    INVARIANT(b->stem_count + b->count <= pass->longest && rows + b->count <= pass->rows);
    for (int64_t row = 0; row < b->count; row++) pass->positions[rows++] = b->stem_count + row;
  }
  INVARIANT(rows >= 1);
  return rows;
}

enum status model_branches_forward(struct model_branches *pass, const int32_t *ids,
                                   const struct model_branch *items, int64_t count, float *normed,
                                   struct error *err) {
  const struct model *m = pass->model;
  int64_t rows = place_branches(pass, items, count);
  struct branch_run branches = {items, count, pass->joined, pass->longest};
  enum status status = model_embed(m, ids, rows, pass->ws->hidden, err);
  if (status != STATUS_OK) return status;
  for (int i = 0; i < m->config.layers; i++) {
    struct block_run run = {.model = m,
                            .layer = i,
                            .shape = {rows, 1},
                            .starts = pass->positions,
                            .branches = &branches,
                            .ws = pass->ws,
                            .memory = &pass->ws->blocks[0]};
    block_forward(&run, pass->ws->hidden);
  }
  model_final_norm(m, pass->ws->hidden, rows, normed);
  return STATUS_OK;
}
