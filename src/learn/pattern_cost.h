/* What masks of another pattern than 2:4 cost beside a step's products. They are made in plain C
 * (kernel/pattern_ops.h), for tens of candidates a group, and may take longer than the products, so
 * that a plan has to measure them too. */
#ifndef TSR_LEARN_PATTERN_COST_H
#define TSR_LEARN_PATTERN_COST_H

#include "learn/settings.h"

struct pattern_cost { /* seconds a weight, on all threads */
  double micro_batch; /* the mask drawn forward, and again with its gradient backward */
  double step;        /* the update */
};

/* Measured now, in a small matrix under resolved settings of another pattern; takes a tenth of a
 * second or so. Zeros when there is no memory to measure with. */
struct pattern_cost pattern_cost_measure(const struct learn_settings *settings);

#endif
