/* Which kernel multiplies which matrix of a model on a card: see choice.h, which keeps the table,
 * and kernel/serve.h, which runs and times. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/card.h"
#include "model/choice.h"

/* Shares of 2:4 tiles are told apart in sixteenths: a model has hundreds of masks and few shapes.
 * Rounded down, so that what is measured is no faster than what runs. */
enum { SHARES = 16 };

struct chooser {
  const struct serve_ops *serve;
  struct choice *table;
  struct serve_weight *weight; /* at hand */
  struct serve_weight *plain;  /* of a pair: what its dense product is made of; else the weight */
};

_Static_assert((int)CHOICE_NAME_MAX == (int)SERVE_NAME_MAX, "names of kernels");

static int candidates(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                      char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX]) {
  const struct chooser *c = ctx;
  char known[SERVE_VARIANTS_MAX][SERVE_NAME_MAX];
  (void)shape;
  const int found = c->serve->variants(c->weight, tokens, known);
  int count = 0;
  for (; count < found && count < CHOICE_CANDIDATES_MAX - 1; count++)
    memcpy(names[count], known[count], CHOICE_NAME_MAX);
  memcpy(names[count++], SERVE_DENSE, sizeof SERVE_DENSE);
  return count;
}

static enum status time_candidate(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                                  const char *name, double *seconds, struct error *err) {
  const struct chooser *c = ctx;
  (void)shape;
  return c->serve->time(strcmp(name, SERVE_DENSE) ? c->weight : c->plain, tokens, name, seconds,
                        err);
}

/* Kernels for 1 to `most` tokens; none where `pair`, of which the weight is the plain form, is
 * taken in its place. A pair whose dense product wins is left there: serve_ops.joins. */
static enum status choose(struct chooser *c, int64_t most, const struct serve_weight *pair,
                          struct error *err) {
  const struct serve_shape s = c->serve->weight_shape(c->weight);
  const struct choice_timer timer = {c, candidates, time_candidate};
  const int64_t unit = s.tiles / SHARES ? s.tiles / SHARES : 1;
  const struct choice_shape shape = {s.pair ? "bf16 pair" : "bf16", s.rows, s.cols,
                                     s.sparse_tiles / unit * unit};
  enum status status = STATUS_OK;
  if (s.kind != FRAGMENT_BF16) return STATUS_OK;
  for (int64_t tokens = 1, last; tokens <= most && !status; tokens = last + 1) {
    char name[CHOICE_NAME_MAX];
    uint32_t first;
    last = choice_bucket((uint32_t)tokens, &first);
    if (pair && c->serve->joins(pair, last)) continue;
    status = choice_pick(c->table, &shape, (uint32_t)last, &timer, name, err);
    if (!status) status = c->serve->choose(c->weight, first, last, name, err);
  }
  c->serve->settle(c->weight);
  return status;
}

static enum status choose_linears(struct chooser *c, struct card_linears *l, int64_t rows,
                                  const struct serve_weight *pair, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < l->weights && !status; i++) {
    c->weight = c->plain = l->weight[i];
    status = choose(c, rows, pair, err);
  }
  return status;
}

static enum status choose_layer(struct chooser *c, struct card_layer *l, int64_t rows,
                                struct error *err) {
  enum status status = STATUS_OK;
  if (l->pair) {
    c->weight = l->pair;
    c->plain = l->gate_up.weight[0];
    status = choose(c, rows, NULL, err);
  }
  if (!status)
    status = choose_linears(c, &l->gate_up, rows, l->pair, err); /* settles the pair's, too */
  if (!status) status = choose_linears(c, &l->qkv, rows, NULL, err);
  if (!status) status = choose_linears(c, &l->o, rows, NULL, err);
  return status ? status : choose_linears(c, &l->down, rows, NULL, err);
}

enum status card_choose(struct card *card, const struct serve_ops *serve, int64_t rows,
                        struct error *err) {
  char name[256], machine[512], *path = NULL;
  enum { HEAD_TOKENS = 64 }; /* logits are made for so many at a time */
  struct chooser c = {.serve = serve};
  serve->machine(name, machine);
  enum status status = choice_path(name, &path, err);
  if (!status) status = choice_open(&c.table, path, machine, err);
  for (int i = 0; i < card->layer_count && !status; i++)
    status = choose_layer(&c, &card->layers[i], rows, err);
  c.weight = c.plain = card->head;
  if (!status) status = choose(&c, rows < HEAD_TOKENS ? rows : HEAD_TOKENS, NULL, err);
  if (!status && choice_save(c.table, err)) { /* a table that cannot be kept is made again */
    log_warn("the table of kernels is not kept: %s", err->text);
  }
  choice_close(c.table);
  free(path);
  return status;
}
