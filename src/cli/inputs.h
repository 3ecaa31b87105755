/* Opening what several commands take: a model with a mask on it, its tokenizer, a text. */
#ifndef TSR_CLI_INPUTS_H
#define TSR_CLI_INPUTS_H

#include "cli/options.h"
#include "data/windows.h"
#include "model/model.h"

/* Opens MODEL and zeroes what the mask file drops; `mask` may be NULL. */
enum status inputs_model(struct model **out, const char *path, const char *mask, struct error *err);
/* "fp32, avx2, 2 threads": how this process computes. */
void inputs_describe_compute(enum precision precision, char out[96]);

/* Where a command runs. */
#define INPUTS_DEVICE_OPTION(type, member)                                                 \
  {                                                                                        \
    "device", OPTION_TEXT, offsetof(type, member), "cpu", 0, 0, NULL, "DEVICE",            \
        "where it runs: cpu, cuda, or cuda:1 for another GPU (a build with -DTSR_CUDA=ON)" \
  }

/* What --kv may be, and the types in the order of these choices. */
#define INPUTS_KV_CHOICES "f32|f16|bf16|int8"
extern const enum dtype inputs_kv_types[];

#endif
