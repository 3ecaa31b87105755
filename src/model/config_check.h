/* What both readers of configurations share: the empty start, derived values, and the limits. */
#ifndef TSR_MODEL_CONFIG_CHECK_H
#define TSR_MODEL_CONFIG_CHECK_H

#include "model/family.h"

/* Limits on what a file may claim. A width above these would be a mistake, not a model. */
enum {
  MODEL_VOCAB_MAX = 1 << 22,
  MODEL_WIDTH_MAX = 1 << 20,
  MODEL_HEADS_MAX = 1 << 12,
  MODEL_HEAD_DIM_MAX = 1 << 12,
  MODEL_CONTEXT_MAX = 1 << 28
};

/* A configuration of `family` with what transformers assumes for it. */
struct model_config config_blank(const struct model_family *family);
/* Fills what follows from other values where it was not given: kv_heads, head_dim, query_scale. */
void config_settle_heads(struct model_config *config);
/* These, and the rotary settings of sliding layers from those of the others, which must be read. */
void config_settle(struct model_config *config);
/* Refuses a configuration that no model can have. */
void config_check(struct config_reader *in, const struct model_config *config);

#endif
