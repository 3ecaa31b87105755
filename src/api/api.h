/* What the files of this room share: the opaque types of tessera.h, and errors across the border.
 */
#ifndef TSR_API_API_H
#define TSR_API_API_H

#include "base/error.h"
#include "model/model.h"
#include "tessera.h"
#include "text/tokenizer.h"

struct tsr_model {
  struct model *model;
  struct tokenizer *tokenizer; /* NULL when the model came without one */
};

/* tsr_error and struct error are two names of one layout, so that a sentence needs no copy. */
_Static_assert(sizeof(tsr_error) == sizeof(struct error), "tsr_error mirrors struct error");
_Static_assert((int)TSR_REFUSED == (int)STATUS_REFUSED, "tsr_status mirrors enum status");
_Static_assert((int)TSR_INTERRUPTED == (int)STATUS_INTERRUPTED, "tsr_status mirrors enum status");

static inline struct error *api_error(tsr_error *err) { return (struct error *)err; }

/* TSR_REFUSED with a sentence when the model has no tokenizer. */
enum status api_need_tokenizer(const tsr_model *model, struct error *err);

#endif
