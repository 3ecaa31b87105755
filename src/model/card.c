/* The weights of a model on a card: each matrix is packed on the host, copied there and given back,
 * so that the host needs room for a few at a time. Linears that meet the same activations become
 * one matrix where they can: fewer and larger launches. */
#include "model/card.h"

#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"

/* --- packing --- */

struct expansion {
  const struct linear_weight *weight;
  float *out; /* (rows, cols) */
};

static void expand_row(void *ctx, int64_t row, int worker) {
  const struct expansion *x = ctx;
  (void)worker;
  linear_row(x->weight, row, x->out + row * linear_cols(x->weight));
}

/* Blocks of a GGUF, and integers that have no form on the card: rounded to bf16. */
static enum status pack_expanded(struct fragment_matrix *out, const struct linear_weight *w,
                                 struct error *err) {
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  float *expanded = mem_alloc((size_t)rows, (size_t)cols * sizeof *expanded, err);
  if (!expanded) return STATUS_FAILED;
  struct expansion x = {w, expanded};
  parallel_for(rows, expand_row, &x);
  enum status status =
      fragment_pack_dense(out, (struct matrix_view){expanded, DTYPE_F32, rows, cols}, err);
  mem_free(expanded);
  return status;
}

static enum status pack(struct fragment_matrix *out, const struct linear_weight *w,
                        struct error *err) {
  INVARIANT(!w->strips && !w->quant);
  if (w->hybrid) return fragment_pack_hybrid(out, w->hybrid, err);
  if (!w->integers && dtype_is_native(w->dense.dtype))
    return fragment_pack_dense(out, w->dense, err);
  if (w->integers) {
    struct error why = {0};
    const enum status status = fragment_pack_quant(out, w->integers, &why);
    if (status != STATUS_REFUSED) {
      if (status) *err = why;
      return status;
    }
  }
  return pack_expanded(out, w, err);
}

static bool same_form(const struct fragment_matrix *a, const struct fragment_matrix *b) {
  return a->form.kind == b->form.kind && a->form.scales == b->form.scales &&
         a->form.mins == b->form.mins && !a->row_scales == !b->row_scales;
}

/* parts[0] becomes all of them; the others are released. */
static enum status join_all(struct fragment_matrix *parts, int count, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 1; i < count && !status; i++) {
    struct fragment_matrix joined;
    status = fragment_join(&joined, &parts[0], &parts[i], err);
    if (status) break;
    fragment_release(&parts[0]);
    fragment_release(&parts[i]);
    parts[0] = joined;
  }
  return status;
}

/* --- biases --- */

/* The biases of `count` sites as bf16, that of site i from at[i] on; NULL where none has one. */
static const uint16_t *place_biases(struct placing *p, const struct linear_site *sites, int count,
                                    const int64_t *at, int64_t width) {
  bool any = false;
  for (int i = 0; i < count; i++) any |= sites[i].bias != NULL;
  if (!any || p->status) return NULL;
  uint16_t *row = mem_alloc((size_t)width, sizeof *row, p->err);
  if (!row) {
    p->status = STATUS_FAILED;
    return NULL;
  }
  for (int i = 0; i < count; i++)
    if (sites[i].bias)
      dtype_from_f32(DTYPE_BF16, sites[i].bias, linear_rows(&sites[i].weight), row + at[i]);
  const uint16_t *placed = place(p, row, (size_t)width * sizeof *row);
  mem_free(row);
  return placed;
}

/* --- linears --- */

static struct serve_weight *upload(struct placing *p, const struct fragment_matrix *f,
                                   enum product_pair pair) {
  const struct serve_ops *serve = p->to->backend->serve;
  struct serve_weight *w = NULL;
  if (!p->status) p->status = serve->weight_new(f, pair, &w, p->err);
  return w;
}

static void place_linears(struct placing *p, const struct linear_site *sites, int count,
                          struct card_linears *out, enum product_pair activation,
                          struct card_layer *layer) {
  struct fragment_matrix parts[LINEAR_MANY_MOST] = {{0}};
  bool one = true;
  for (int i = 0; i < count && !p->status; i++) {
    p->status = pack(&parts[i], &sites[i].weight, p->err);
    one = one && !p->status && same_form(&parts[0], &parts[i]);
    out->at[i] = out->width;
    out->width += parts[i].strips * FRAGMENT_STRIP_ROWS;
  }
  if (!p->status && one && count > 1) p->status = join_all(parts, count, p->err);
  out->weights = one ? 1 : count;
  const bool pair = one && activation != PAIR_NONE;
  for (int i = 0; i < out->weights && !p->status; i++) {
    const int64_t zero = 0, width = one ? parts[0].rows : linear_rows(&sites[i].weight);
    out->bias[i] = place_biases(p, sites + i, one ? count : 1, one ? out->at : &zero, width);
    if (!pair) out->weight[i] = upload(p, &parts[i], PAIR_NONE);
  }
  if (pair && !p->status) {
    const int64_t rows = linear_rows(&sites[0].weight), at[2] = {0, rows};
    layer->pair_bias = place_biases(p, sites, 2, at, 2 * rows);
    layer->pair = upload(p, &parts[0], activation);
    if (layer->pair)
      p->status = p->to->backend->serve->weight_plain(layer->pair, &out->weight[0], p->err);
  }
  for (int i = 0; i < LINEAR_MANY_MOST; i++) fragment_release(&parts[i]);
}

static void place_layer(struct placing *p, struct card *card, const struct model *host, int layer) {
  struct card_layer *l = &card->layers[layer];
  const struct linear_site *sites = &host->sites[model_block_site(layer)];
  const enum product_pair activation =
      host->config.activation == ACTIVATION_GELU_TANH ? PAIR_GELU_TANH : PAIR_SILU;
  place_linears(p, &sites[SITE_Q], 3, &l->qkv, PAIR_NONE, l);
  place_linears(p, &sites[SITE_O], 1, &l->o, PAIR_NONE, l);
  place_linears(p, &sites[SITE_GATE], 2, &l->gate_up, activation, l);
  place_linears(p, &sites[SITE_DOWN], 1, &l->down, PAIR_NONE, l);
}

/* A tied head of bf16 serves for the embeddings, too; else they lie beside it, row-major. */
static void place_head(struct placing *p, struct card *card, const struct model *host) {
  struct fragment_matrix head = {0};
  if (p->status) return;
  p->status = pack(&head, &host->lm_head, p->err);
  card->head = upload(p, &head, PAIR_NONE);
  const bool serves =
      host->config.tied_embeddings && head.form.kind == FRAGMENT_BF16 && !host->lm_head.hybrid;
  fragment_release(&head);
  if (serves || p->status) return;
  const struct linear_weight *w = &host->embed;
  const int64_t rows = linear_rows(w), cols = linear_cols(w);
  uint16_t *table = mem_alloc((size_t)rows, (size_t)cols * sizeof *table, p->err);
  float *row = mem_alloc((size_t)cols, sizeof *row, p->err);
  if (!table || !row) p->status = STATUS_FAILED;
  for (int64_t r = 0; r < rows && !p->status; r++) {
    linear_row(w, r, row);
    dtype_from_f32(DTYPE_BF16, row, cols, table + r * cols);
  }
  card->embeddings = place(p, table, (size_t)(rows * cols) * sizeof *table);
  card->embedding_bytes = (size_t)(rows * cols) * sizeof *table;
  mem_free(table);
  mem_free(row);
}

enum status card_new(struct placing *p, const struct model *host, bool choose) {
  struct card *card = mem_alloc(1, sizeof *card, p->err);
  if (!card) return STATUS_FAILED;
  p->to->card = card;
  card->choose = choose;
  card->layer_count = host->config.layers;
  card->layers = mem_alloc((size_t)host->config.layers, sizeof *card->layers, p->err);
  if (!card->layers) return STATUS_FAILED;
  for (int i = 0; i < host->config.layers && !p->status; i++) place_layer(p, card, host, i);
  place_head(p, card, host);
  return p->status;
}

static void free_linears(const struct serve_ops *serve, struct card_linears *l) {
  for (int i = 0; i < l->weights; i++) serve->weight_free(l->weight[i]);
}

static size_t bytes_of(const struct serve_ops *serve, const struct serve_weight *w, bool step) {
  return serve->weight_bytes(w) + (step ? 0 : serve->copy_bytes(w));
}

size_t card_bytes(const struct card *card, const struct serve_ops *serve, bool step) {
  size_t bytes = bytes_of(serve, card->head, step) + (step ? 0 : card->embedding_bytes);
  for (int i = 0; i < card->layer_count; i++) {
    const struct card_layer *l = &card->layers[i];
    const struct card_linears *all[] = {&l->qkv, &l->gate_up, &l->o, &l->down};
    for (int j = 0; j < 4; j++)
      for (int k = 0; k < all[j]->weights; k++) bytes += bytes_of(serve, all[j]->weight[k], step);
    if (l->pair) bytes += bytes_of(serve, l->pair, step);
  }
  return bytes;
}

void card_free(struct card *card, const struct backend *backend) {
  if (!card) return;
  const struct serve_ops *serve = backend->serve;
  for (int i = 0; card->layers && i < card->layer_count; i++) {
    struct card_layer *l = &card->layers[i];
    free_linears(serve, &l->qkv);
    free_linears(serve, &l->gate_up);
    free_linears(serve, &l->o);
    free_linears(serve, &l->down);
    serve->weight_free(l->pair); /* after its plain view */
  }
  serve->weight_free(card->head);
  mem_free(card->layers);
  mem_free(card);
}
