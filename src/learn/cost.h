/* What a matrix costs at run time: seconds of a decoded token in its dense and in its 2:4 form,
 * measured here with the kernels that generate uses, so that a run can aim at a speed instead of a
 * density (`learn --speedup`).
 *
 * Matrices of a shape cost the same, so the table has a row for each shape. Weights are bf16 in the
 * run-time order (sparse/strips.h). Each timing walks over copies of the matrix that no cache
 * holds, as a decoded token walks over its layers. Times are whole picoseconds: exact as JSON, so
 * that a run that is continued from its config.json has the same bits. */
#ifndef TSR_LEARN_COST_H
#define TSR_LEARN_COST_H

#include "io/json.h"
#include "model/model.h"

enum { COST_SHAPES_MAX = 64 };

struct cost_shape {
  int64_t rows, cols;
  int64_t dense_ps, sparse_ps; /* of one product with one token; sparse_ps: every tile 2:4 */
};

struct cost_table {
  struct cost_shape shapes[COST_SHAPES_MAX];
  int count;
  int64_t head_ps; /* the logits of one token */
};

/* Takes a second or so and about half a gigabyte for it. STATUS_FAILED without that memory. */
enum status cost_measure(struct cost_table *out, const struct model *model, struct error *err);
/* NULL when the table has no such shape. */
const struct cost_shape *cost_of_shape(const struct cost_table *table, int64_t rows, int64_t cols);
/* What a weight that 2:4 drops from a matrix of this shape saves, in ps; 0 where 2:4 is no faster.
 */
double cost_saved_per_weight(const struct cost_shape *shape);

/* Picoseconds of a decoded token: all matrices dense, or all that `skip` (model_site_count) does
 * not name 2:4. Attention, norms and the like, the same in both, are left out. */
int64_t cost_dense_ps(const struct cost_table *table, const struct model *model);
int64_t cost_sparse_ps(const struct cost_table *table, const struct model *model, const bool *skip);

/* New reference; and back: STATUS_REFUSED, naming `what`, for anything else or for a table that
 * lacks a shape of the model. */
json_t *cost_to_json(const struct cost_table *table);
enum status cost_from_json(struct cost_table *out, const json_t *json, const struct model *model,
                           const char *what, struct error *err);

#endif
