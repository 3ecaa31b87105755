/* What a run keeps in memory, part by part, on the CPU and on a GPU: for plans, before a byte is
 * taken. */
#ifndef TSR_LEARN_MEMORY_H
#define TSR_LEARN_MEMORY_H

#include "learn/learner.h"

/* MEMORY_PINNED: of the host beside a card, which it copies from. */
enum memory_place { MEMORY_CPU, MEMORY_CUDA, MEMORY_PINNED, MEMORY_PLACES };
enum memory_part {
  MEMORY_WEIGHTS,     /* of the model; on the CPU, pages of its file that are read */
  MEMORY_LOGITS,      /* five a group */
  MEMORY_MOMENTS,     /* AdamW's: five and six a group */
  MEMORY_GRADIENTS,   /* of the logits: five a group */
  MEMORY_CODES,       /* hard masks, tile logits */
  MEMORY_MASKED,      /* W * M of one linear and its gradient */
  MEMORY_ACTIVATIONS, /* what the backward pass needs */
  MEMORY_HEAD,        /* logits over the vocabulary, a chunk of rows at a time */
  MEMORY_OPERANDS,    /* operands of products in their element type, cuBLASLt's workspace */
  MEMORY_CHECKPOINT,  /* the copy that is written beside a card's steps; pinned */
  MEMORY_PARTS
};
extern const char *const memory_place_name[MEMORY_PLACES];
extern const char *const memory_part_name[MEMORY_PARTS];

struct learn_memory {
  double bytes[MEMORY_PLACES][MEMORY_PARTS];
};
double learn_memory_total(const struct learn_memory *m, enum memory_place place);

/* `settings` resolved, `skip` as in learner_init. */
struct learn_memory learn_memory_plan(const struct model *model,
                                      const struct learn_settings *settings, const bool *skip);

#endif
