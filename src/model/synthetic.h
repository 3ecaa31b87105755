/* Models of random weights in the shapes of known ones: for measuring speed without any files.
 *
 * They have blocks only, unless a vocabulary is asked for: with a single token, embeddings and
 * lm_head read next to nothing and what is measured is the blocks; everything that takes a model
 * takes these, but for what needs a tokenizer or writes files. Values are uniform, scaled so that
 * activations stay finite; they depend on the seed alone. Tiles of 128 x 128 are drawn from all
 * matrices together, so that the density is exact to a tile, and so are the 2:4 codes. */
#ifndef TSR_MODEL_SYNTHETIC_H
#define TSR_MODEL_SYNTHETIC_H

#include "model/model.h"

struct synthetic_model {
  const char *shape; /* "llama2-7b": one of synthetic_shape_names */
  int layers;        /* 0 = synthetic_layers' choice */
  enum dtype dtype;  /* bf16, f16, f32; i8 and u8: int8 and int4, a scale for 32 columns */
  double density;    /* 0.5 to 1; 1 is a dense model */
  uint64_t seed;
  int64_t vocabulary; /* 0 = one token; embeddings and lm_head are tied */
};

/* "llama2-7b, llama2-13b, ...": what there is, for help and errors. */
const char *synthetic_shape_names(void);
/* Checks the request, and sets `layers` where it is 0: the fewest whose dense form takes half a
 * gigabyte, which no cache holds, or all that the shape has. */
enum status synthetic_settle(struct synthetic_model *request, struct error *err);
/* Bytes of weights that a settled request takes. */
size_t synthetic_bytes(const struct synthetic_model *request);
/* Builds a settled request; model_close frees it. Its path is "llama2-7b, 4 layers". */
enum status synthetic_open(struct model **out, const struct synthetic_model *request,
                           struct error *err);

#endif
