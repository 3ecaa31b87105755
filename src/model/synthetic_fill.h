/* Random contents of synthetic models: a pure function of seed, site and stream, made on all
 * threads.
 */
#ifndef TSR_MODEL_SYNTHETIC_FILL_H
#define TSR_MODEL_SYNTHETIC_FILL_H

#include "tensor/dtype.h"

/* Streams of the generator: one a purpose, so that none sees another's numbers. */
enum { STREAM_WEIGHTS = 1, STREAM_CODES, STREAM_TILES, STREAM_SCALES };

struct synthetic_fill {
  uint32_t key[2];
  uint32_t stream, site;
  int64_t count;
  enum dtype dtype; /* of weights */
  float scale;
  uint8_t *out;
};

enum synthetic_content {
  SYNTHETIC_WEIGHTS, /* uniform in -scale .. scale, of dtype */
  SYNTHETIC_BYTES,   /* all values as likely */
  SYNTHETIC_CODES    /* pairs of 2:4 codes */
};
/* Fills out with `count` weights or bytes. */
void synthetic_fill(struct synthetic_fill *f, enum synthetic_content content, int64_t count,
                    void *out);

static inline size_t synthetic_element_bytes(enum dtype dtype) {
  return (size_t)dtype_traits(dtype)->block_bytes;
}

#endif
