/* The weights of a model as spans of memory, and how fast this machine reads them: the floor that
 * decoding is held against. */
#ifndef TSR_EVAL_SPEED_READ_H
#define TSR_EVAL_SPEED_READ_H

#include "model/model.h"

struct weight_spans {
  struct weight_span {
    const uint8_t *data;
    size_t bytes;
  } * items;
  size_t count;
  size_t bytes;         /* of all */
  int64_t *first_piece; /* (count + 1) pieces of work before each span */
};
/* What one pass over a model reads: prunable linears, biases left out, and the head. Views: the
 * model must live as long. */
enum status weight_spans_init(struct weight_spans *spans, const struct model *model,
                              struct error *err);
/* Cuts the spans into pieces of work; weight_spans_init has done it. first_piece (count + 1). */
void weight_spans_cut(struct weight_spans *spans);
void weight_spans_free(struct weight_spans *spans);
/* Seconds that all threads take to read every byte once, summing them up: the best of reading one,
 * two and four parts of each megabyte side by side, since processors differ in which keeps memory
 * busiest. */
double weight_spans_time_read(const struct weight_spans *spans);

#endif
