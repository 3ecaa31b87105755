/* Random hybrid matrices for tests, with everything they are made of. */
#ifndef TSR_TESTS_HYBRIDS_H
#define TSR_TESTS_HYBRIDS_H

#include "base/rng.h"
#include "model/model.h"
#include "sparse/hybrid.h"

struct hybrid_case {
  struct mask_matrix mask;
  struct hybrid_matrix h;
  uint8_t *map, *codes;
  void *dense, *values;
};

/* Random tiles, each dense with probability `dense_share`, and random codes that fit their groups.
 */
void hybrid_mask_fill(struct mask_matrix *m, double dense_share, struct rng *rng);

/* Normals, with a -0.0 among them; each tile is dense with probability `dense_share`, each code any
 * that its group may have. Fails the test when something goes wrong. */
void hybrid_case_make(struct hybrid_case *c, int64_t rows, int64_t cols, int64_t tile,
                      double dense_share, enum dtype dtype, uint64_t seed);
void hybrid_case_free(struct hybrid_case *c);

/* Random hybrid masks for all linears of a model but the first, `density` of all weights kept. */
void hybrid_masks_make(struct mask_set *set, const struct model *model, int64_t tile,
                       double density, uint64_t seed);

#endif
