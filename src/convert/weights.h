/* The tensors of a model on their way into a file: expanded, masked, and rounded row by row while
 * they are written, so that no more than a few rows are in memory at a time. */
#ifndef TSR_CONVERT_WEIGHTS_H
#define TSR_CONVERT_WEIGHTS_H

#include "io/safetensors.h"
#include "model/model.h"
#include "sparse/quantize.h"

struct weight_stream {
  const struct model *model;
  int tensor;                     /* model_tensor index */
  const struct mask_matrix *mask; /* what it drops is written as +0; or NULL */
  enum dtype dtype;               /* f32, f16, bf16, q8_0 */
  int64_t interleaved; /* head_dim when rows go out in GGUF's order of rotary pairs, else 0 */
  float shift;         /* added to every element (norms of Gemma in GGUF) */
};

/* A source that writes the stream under `name`, in the model's shape. */
struct tensor_source weight_source(struct weight_stream *stream, const char *name);

/* STATUS_REFUSED when a mask names a tensor or a shape that the model does not have, or one that is
 * packed already. */
enum status weights_check_masks(const struct model *model, const struct mask_set *masks,
                                struct error *err);
/* STATUS_REFUSED for a mask that cannot be packed in tiles, naming it. */
enum status weights_check_hybrid(const struct mask_set *masks, struct error *err);
/* Share of kept positions over all prunable weights of the model under the masks (or NULL). */
double weights_density(const struct model *model, const struct mask_set *masks);
/* A tensor quantized. Where it is stored in blocks whose integers are of this form they are taken
 * over as they are. */
enum status weights_quantize(struct quant_owned *out, const struct model *model, int tensor,
                             const struct quant_form *form, const struct mask_matrix *mask,
                             struct error *err);
/* f32, f16 or bf16 when every matrix of the model is stored as that, else bf16. */
enum dtype weights_natural_dtype(const struct model *model);
/* "float32", "float16", "bfloat16": as PyTorch says it. */
const char *weights_torch_name(enum dtype dtype);

#endif
