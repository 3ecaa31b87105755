/* What stands beside the weights in a Hugging Face directory. */
#ifndef TSR_CONVERT_DIRECTORY_H
#define TSR_CONVERT_DIRECTORY_H

#include "convert/card.h"
#include "model/model.h"

/* The config.json for weights of `torch_dtype`: the source's own where it describes a text model,
 * else made from the model's configuration. New reference. */
json_t *directory_config(const struct model *model, const char *torch_dtype);

/* Writes config.json, the tokenizer's files, generation_config.json, licence texts and a README.md
 * with the model's card and `text` into `directory`. A source without a tokenizer gives an output
 * without one, with a warning. */
enum status directory_write(const struct model *model, const json_t *config, const char *text,
                            const char *directory, struct error *err);

/* The card of the model's source. */
enum status directory_card(const struct model *model, struct model_card *card, struct error *err);
/* Whether the source has a tokenizer at all. */
bool directory_has_tokenizer(const struct model *model);

#endif
