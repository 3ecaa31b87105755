/* What a run will take, before it starts: steps, memory, disk, time. */
#ifndef TSR_LEARN_PLAN_H
#define TSR_LEARN_PLAN_H

#include "learn/memory.h"

struct learn_plan {
  int64_t learned_weights, tiles;
  struct learn_memory memory;
  double memory_bytes; /* peak: the model's pages that are read, the learner, its workspace */
  double disk_bytes;   /* two checkpoints and one being written, prior, mask */
  double prior_seconds, learn_seconds, heldout_seconds; /* by the rate measured now */
  double gflops; /* fp32 product rate measured now, GFLOP/s */
};

/* `skip` as in learner_init; calibration_tokens 0: the prior is given. Takes a fraction of a second
 * to measure the machine. */
struct learn_plan learn_plan_make(const struct model *model, const struct learn_settings *settings,
                                  const bool *skip, int64_t calibration_tokens);

#endif
