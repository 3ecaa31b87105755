/* Rotary embedding: frequencies of a configuration, and the tables the kernels rotate by. */
#ifndef TSR_MODEL_ROPE_H
#define TSR_MODEL_ROPE_H

#include <stdbool.h>

#include "base/error.h"
#include "model/config.h"

/* out (head_dim / 2): angle per position of each pair, as transformers computes it in fp32. */
void rope_frequencies(const struct rope_config *rope, int64_t head_dim, float *out);

struct rope_table {
  float *cosine, *sine; /* (positions, head_dim / 2) each */
};
enum status rope_table_init(struct rope_table *table, const struct rope_config *rope,
                            int64_t head_dim, int64_t positions, struct error *err);
void rope_table_release(struct rope_table *table);

/* Sets ROPE_LLAMA3 in *rope when `divisors` (head_dim / 2 unaligned fp32), by which a GGUF says
 * each frequency of rope->theta is to be divided, are what LLaMA 3.x's settings give. */
bool rope_recognise_llama3(struct rope_config *rope, const void *divisors, int64_t head_dim);

#endif
