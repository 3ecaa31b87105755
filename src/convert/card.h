/* What a model says about its licence and its origin, carried from form to form: the front matter
 * of a Hugging Face README.md, or the general.* keys of a GGUF. */
#ifndef TSR_CONVERT_CARD_H
#define TSR_CONVERT_CARD_H

#include "base/strbuf.h"
#include "io/gguf.h"

enum { CARD_BASES_MAX = 16, CARD_FIELD_MAX = 512 };

struct model_card {
  char license[CARD_FIELD_MAX]; /* "apache-2.0"; empty when unknown, like all of these */
  char license_name[CARD_FIELD_MAX];
  char license_link[CARD_FIELD_MAX];
  char bases[CARD_BASES_MAX][CARD_FIELD_MAX]; /* "owner/name" */
  int base_count;
};

/* From the directory's README.md (none is fine), or from a GGUF's keys. */
enum status card_from_directory(struct model_card *card, const char *directory, struct error *err);
void card_from_gguf(struct model_card *card, const struct gguf *gguf);

/* A README.md: front matter with what is known, then `text`. */
void card_write(const struct model_card *card, const char *text, struct strbuf *out);
void card_to_gguf(const struct model_card *card, struct gguf_builder *builder);

#endif
