/* Models and masks to files that other programs, or tessera again, can open.
 *
 * Every output appears whole or not at all. A `model` opened by its headers alone will do (its
 * weights are then passed over once); `masks` may be NULL where not said otherwise, and must fit
 * the model. Licence, base models and tokenizer go along. Existing outputs are replaced only when
 * `replace` is set. */
#ifndef TSR_CONVERT_CONVERT_H
#define TSR_CONVERT_CONVERT_H

#include "model/model.h"
#include "sparse/quantize.h"

/* A packed directory (docs/FORMAT.md) of element type bf16, f16 or f32. The masks must be hybrid:
 * STATUS_REFUSED names the first that is not. */
enum status convert_pack(const struct model *model, const struct mask_set *masks, const char *out,
                         enum dtype dtype, bool replace, struct error *err);

/* A packed directory of version 2: every matrix quantized, linears as `form` says, embeddings and a
 * head of their own to int8 in groups of 32; vectors as f32. Linears without a mask, and all
 * without `masks`, are dense. Blocks of the source whose integers are of the wanted form (or for
 * embeddings of any that is kept) are taken over as they are; with `blocks_mins`, form.mins is what
 * linears of other types get, and those of blocks have minimums when their blocks do. */
struct pack_quant_settings {
  struct quant_form form;
  bool blocks_mins;
  bool replace;
};
enum status convert_pack_quant(const struct model *model, const struct mask_set *masks,
                               const char *out, const struct pack_quant_settings *settings,
                               struct error *err);

/* A Hugging Face directory with zeros where masks drop weights; transformers loads it as it is. */
enum status convert_to_hf(const struct model *model, const struct mask_set *masks, const char *out,
                          enum dtype dtype, bool replace, struct error *err);

/* The same with a sentence for the model's card: what else was done to the weights. */
enum status convert_to_hf_noted(const struct model *model, const struct mask_set *masks,
                                const char *note, const char *out, enum dtype dtype, bool replace,
                                struct error *err);

/* A GGUF file for llama.cpp, matrices as f32, f16, bf16, q8_0 or q4_0 (f16 where rows are no
 * multiple of 32, embeddings and head then q8_0), vectors as f32. Keys about the tokenizer are
 * copied from a GGUF source, else made from the tokenizer's files. */
enum status convert_to_gguf(const struct model *model, const struct mask_set *masks,
                            const char *out, enum dtype dtype, bool replace, struct error *err);

/* The reference's mask.npz; the masks must not be NULL, and are not held against the weights: they
 * may be a packed model's own (inspect_masks). */
enum status convert_to_mask_npz(const struct model *model, const struct mask_set *masks,
                                const char *out, bool replace, struct error *err);

#endif
