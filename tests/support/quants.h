/* Random quantized matrices for tests, with everything they are made of. */
#ifndef TSR_TESTS_QUANTS_H
#define TSR_TESTS_QUANTS_H

#include "sparse/quantize.h"
#include "support/hybrids.h"

/* Every kind of integers, scales and minimums. */
extern const struct quant_form quant_forms[];
enum { QUANT_FORMS = 7 };

struct quant_case {
  struct hybrid_case hybrid; /* its mask; unused when tile is 0 */
  struct quant_owned owned;
};

/* Normals quantized, under a mask as in hybrid_case_make or, when tile is 0, without one. Fails the
 * test when something goes wrong. */
void quant_case_make(struct quant_case *c, const struct quant_form *form, int64_t rows,
                     int64_t cols, int64_t tile, double dense_share, uint64_t seed);
void quant_case_free(struct quant_case *c);

#endif
