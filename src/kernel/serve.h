/* What a backend with a card offers to decoding beyond kernel/backend.h: products of weights that
 * stay packed on the card, and kernels over the rows of a pass and over pages of keys and values.
 *
 * All pointers to activations lie in the backend's memory; activations that products read and write
 * are bf16. What each operation does, and its shapes, is said at its arguments
 * (kernel/cuda/serve.h); how it is launched is decided behind this table. Operations are queued, as
 * in backend.h: the first that fails is said by the next `download` or `wait`. */
#ifndef TSR_KERNEL_SERVE_H
#define TSR_KERNEL_SERVE_H

#include "base/error.h"
#include "kernel/cuda/product.h"
#include "kernel/cuda/serve.h"
#include "sparse/fragments.h"

enum { SERVE_NAME_MAX = 32, SERVE_VARIANTS_MAX = 16 };
/* The library's dense product, of a dense copy that is then kept beside the packed form. */
#define SERVE_DENSE "dense"

struct serve_weight; /* a matrix on the card, in fragment-major form */
struct serve_record; /* the launches of a pass */

/* y = x W^T (+ bias) for some tokens: of a pair, y = f(gate) * up. */
struct serve_product_call {
  const struct serve_weight *weight;
  int64_t tokens;
  const uint16_t *x; /* bf16 (tokens, columns; x_stride apart, a multiple of 8); 16-byte aligned */
  int64_t x_stride;
  uint16_t *y; /* bf16 (tokens, rows; y_stride apart) */
  int64_t y_stride;
  const uint16_t *bias; /* bf16 (rows) or NULL */
  float *y_wide;        /* or NULL: fp32 in place of y; not of a pair */
};

struct serve_shape {
  enum fragment_kind kind;
  bool pair;
  int64_t rows, cols; /* of the packed matrix, both of a pair */
  int64_t tiles, sparse_tiles;
};

struct serve_ops {
  /* --- weights --- */
  /* Copies `f` to the card. With a pair, `f` are both, joined (fragment_join). */
  enum status (*weight_new)(const struct fragment_matrix *f, enum product_pair pair,
                            struct serve_weight **out, struct error *err);
  /* The two matrices of a pair as one of all their rows, for where `joins` says no; the same
   * memory, which the pair owns. */
  enum status (*weight_plain)(const struct serve_weight *pair, struct serve_weight **out,
                              struct error *err);
  void (*weight_free)(struct serve_weight *w); /* NULL is fine */
  /* Of the packed form; of the dense copy beside it, where there is one. */
  size_t (*weight_bytes)(const struct serve_weight *w);
  size_t (*copy_bytes)(const struct serve_weight *w);
  /* The tiles of a dense bf16 matrix, for serve_embed_args. */
  const uint8_t *(*weight_tiles)(const struct serve_weight *w);
  struct serve_shape (*weight_shape)(const struct serve_weight *w);
  /* Names of the kernels that can multiply so many tokens: first the one that is taken where
   * nothing was chosen. Returns how many. */
  int (*variants)(const struct serve_weight *w, int64_t tokens,
                  char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX]);
  /* Takes the kernel `name` for first to last tokens from now on. SERVE_DENSE is one for every
   * matrix of bf16; of a pair, see `joins`. */
  enum status (*choose)(struct serve_weight *w, int64_t first, int64_t last, const char *name,
                        struct error *err);
  /* Whether a pair's product is to be taken for so many tokens: no where SERVE_DENSE was chosen,
   * which means both matrices by whatever is best for them and the activation after it, or where
   * the card has no kernel of pairs for as many. */
  bool (*joins)(const struct serve_weight *pair, int64_t tokens);
  /* Seconds that a product takes by the kernel `name`, with operands of the call's shapes. */
  enum status (*time)(struct serve_weight *w, int64_t tokens, const char *name, double *seconds,
                      struct error *err);
  /* Gives back what only timings needed: products and dense copies that were not chosen. */
  void (*settle)(struct serve_weight *w);
  /* The card, its driver and this build: all that a timing depends on. */
  void (*machine)(char card[256], char machine[512]);

  /* --- operations of a pass --- */
  void (*product)(const struct serve_product_call *call);
  void (*embed)(struct serve_embed_args args);
  void (*norm)(struct serve_norm_args args, int64_t rows);
  void (*rotate)(struct serve_rotate_args args);
  void (*glu)(struct serve_glu_args args);
  /* Each `run` rows are consecutive tokens of one slot, rows a multiple of it. `longest`: the most
   * positions that a row of this pass, or of one that runs its record, sees. Fills in items and
   * pieces. */
  void (*attend)(struct serve_attend_args args, int64_t run, int64_t longest);
  void (*sample)(struct serve_sample_args args, int64_t rows);
  /* Bytes of partials and of counters that `attend` takes for such arguments. */
  void (*attend_scratch)(struct serve_attend_args args, int64_t run, int64_t longest,
                         size_t *partials, size_t *counters);

  /* --- recording --- */
  /* Operations between these two are kept, not run; products must have run for as many tokens
   * before. `run` runs them again, as often as wanted, on what the same memory then holds. */
  enum status (*record_begin)(struct error *err);
  enum status (*record_end)(struct serve_record **out, struct error *err);
  enum status (*record_run)(const struct serve_record *record, struct error *err);
  void (*record_free)(struct serve_record *record); /* NULL is fine */
  /* Changes when memory that records use has moved: they are then not to be run any more. */
  uint64_t (*record_epoch)(void);
};

#endif
