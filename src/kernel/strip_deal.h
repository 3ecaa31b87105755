/* Inside the kernel room: how the strips of some matrices are dealt out to the threads. */
#ifndef TSR_KERNEL_STRIP_DEAL_H
#define TSR_KERNEL_STRIP_DEAL_H

#include <stdint.h>

#include "kernel/linear.h"

/* Their pairs are counted through, three quarters of them are in long items, which are read from
 * memory in one go, and the rest in short ones, so that all threads end at about the same time. No
 * sum depends on which pairs are an item. */
struct strip_deal {
  int count;
  int64_t strips[LINEAR_MANY_MOST];               /* of each matrix */
  int64_t pairs, of_long, longs, of_short, items; /* pairs in an item, long items, all items */
};

/* strips: of `count` <= LINEAR_MANY_MOST matrices. */
struct strip_deal strip_deal_make(const int64_t *strips, int count);

/* Runs `part` on the strips [first, first + count) of each matrix that has a share in an item;
 * `first` is even. */
typedef void strip_part_fn(const void *job, int matrix, int64_t first, int64_t count);
void strip_deal_item(const struct strip_deal *d, int64_t item, strip_part_fn *part,
                     const void *job);

#endif
