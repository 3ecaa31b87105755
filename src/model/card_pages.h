/* Pages of keys and values for the slots of a session: who has which, on the host, and the table
 * that kernels read, on the card. A page belongs to one slot at a time. */
#ifndef TSR_MODEL_CARD_PAGES_H
#define TSR_MODEL_CARD_PAGES_H

#include "kernel/backend.h"
#include "kernel/serve.h"
#include "model/config.h"

struct card_pages {
  const struct backend *ops;
  struct serve_cache cache; /* of layer 0: memory and table on the card */
  uint64_t layer_step;      /* elements between layers of a page */
  int64_t slots, count;     /* count: of all pages */
  uint32_t *table;          /* (slots, page_most): the host's copy */
  int64_t *held;            /* (slots): pages that a slot has */
  uint32_t *free;           /* (count): those that nobody has, the last first */
  int64_t free_count;
};

/* For `slots` texts of up to `capacity` positions, `count` pages in all; 0: as many as all can
 * fill. kv is f16 or bf16. STATUS_USAGE for another. */
enum status card_pages_new(struct card_pages *out, const struct backend *ops,
                           const struct model_config *config, enum dtype kv, int64_t slots,
                           int64_t capacity, int64_t count, struct error *err);
void card_pages_free(struct card_pages *p);
/* Pages for the first `length` positions of a slot. STATUS_REFUSED, with nothing changed, when
 * there are too few. */
enum status card_pages_hold(struct card_pages *p, int64_t slot, int64_t length, struct error *err);
/* Gives back what lies past the first `length` positions. */
void card_pages_drop(struct card_pages *p, int64_t slot, int64_t length);
/* Copies the first `length` positions; `to` holds them. */
enum status card_pages_copy(struct card_pages *p, int64_t to, int64_t from, int64_t length,
                            struct error *err);
/* The cache as kernels of this layer see it. */
struct serve_cache card_pages_layer(const struct card_pages *p, int layer);
size_t card_pages_bytes(const struct card_pages *p);

#endif
