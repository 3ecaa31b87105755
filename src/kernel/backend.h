/* Where a model runs: one function for each operation that model/, learn/, prune/ and eval/ ask
 * for, on the CPU or on a GPU. There is one forward and one backward pass; it calls these.
 *
 * Every pointer to weights, activations, gradients, logits and moments lies in the backend's memory
 * (`alloc`), which only the backend may read: the host's for the CPU, the card's for a GPU. Ids,
 * targets, shapes and settings are the host's. What an operation computes, and its shapes, is said
 * where the CPU's function is declared (kernel/ops.h, distill.h, linear.h, mask_ops.h).
 *
 * Operations may be queued: they return nothing, and their order is that of the calls. The first
 * that fails is kept, and `download` or `wait`, which stand until all before them is done, say it.
 * A sum that the CPU's function returns is put into the backend's memory instead, so that a step
 * asks the card once. The same calls give the same bits on the same machine. */
#ifndef TSR_KERNEL_BACKEND_H
#define TSR_KERNEL_BACKEND_H

#include "base/error.h"
#include "kernel/distill.h"
#include "kernel/linear.h"
#include "kernel/mask_compact.h"
#include "kernel/ops.h"

enum { BACKEND_BUFFERS = 2 };

/* `decay` of mask_backward: factor, or factor / sqrt(*squares) (0 where that is 0). */
struct mask_decay {
  double factor;
  const double *squares; /* in the backend's memory, or NULL */
};

struct serve_ops;
struct sparsegpt_ops;

struct backend {
  const char *name; /* "cpu", "cuda" */
  bool is_host;     /* its memory is the host's: what is there need not be copied */
  /* Elements of logits that exist at a time: rows of the head's products are many enough to keep
   * the machine busy, and few enough to be paid for. */
  int64_t logit_elements;
  const struct serve_ops *serve;         /* decoding on a card (kernel/serve.h), or NULL */
  const struct sparsegpt_ops *sparsegpt; /* on a card (kernel/sparsegpt.h); NULL on the CPU */

  /* --- memory --- */
  /* Zeroed, aligned to 64 bytes. */
  enum status (*alloc)(size_t bytes, void **out, struct error *err);
  void (*free)(void *memory); /* NULL is fine */
  enum status (*upload)(void *to, const void *from, size_t bytes, struct error *err);
  enum status (*download)(void *to, const void *from, size_t bytes, struct error *err);
  enum status (*wait)(struct error *err);
  void (*clear)(void *memory, size_t bytes);
  void (*copy_floats)(float *to, const float *from, int64_t n);

  /* --- beside a card's work; NULL on the CPU, whose memory is the host's --- */
  /* The host's memory as a card copies it without a stop: zeroed, pinned. */
  enum status (*alloc_host)(size_t bytes, void **out, struct error *err);
  void (*free_host)(void *memory);
  /* Two lanes of copies, one each way, through BACKEND_BUFFERS numbered buffers of the caller's.
   * `fetch` brings host memory into a buffer once all that was put before from it has left;
   * operations queued after `arrive` find it there; `put` takes the buffer back to the host when
   * what was queued before it is done. `wait` waits for both lanes. */
  void (*fetch)(int buffer, void *to, const void *from, size_t bytes);
  void (*arrive)(int buffer);
  void (*put)(int buffer, void *to, const void *from, size_t bytes);
  /* Copies into memory of alloc_host what `from` holds when all that was queued before is done,
   * beside what is queued after. What is queued after await_aside waits for these copies: to be
   * called before something changes what is copied. The host finds them done after the `download`
   * or `wait` that follows. */
  void (*copy_aside)(void *to, const void *from, size_t bytes);
  void (*await_aside)(void);
  /* Whether what repeats is replayed as graphs, to the same bits (kernel/cuda/record.h). */
  enum status (*record)(bool on, struct error *err);

  /* --- products; weights are dense where is_host is false --- */
  void (*linear_forward)(const struct linear_weight *w, const float *bias, const float *x,
                         int64_t tokens, enum precision precision, float *y);
  /* NULL where nothing is gained by naming several products at once. */
  void (*linear_forward_many)(const struct linear_output *outputs, int count, const float *x,
                              int64_t tokens, enum precision precision);
  void (*linear_backward_input)(const struct linear_weight *w, const float *dy, int64_t tokens,
                                enum precision precision, float *dx, bool accumulate);
  void (*linear_backward_weight)(const float *dy, const float *x, int64_t tokens, int64_t rows,
                                 int64_t cols, enum precision precision, float *dw,
                                 bool accumulate);

  /* --- rows --- */
  void (*embed)(const struct linear_weight *table, const int32_t *ids, int64_t tokens, float scale,
                float *hidden);
  void (*rmsnorm_forward)(const float *x, const float *weight, bool plus_one, double eps,
                          int64_t rows, int64_t n, float *y, float *inverse);
  void (*rmsnorm_backward)(const float *dy, const float *x, const float *weight, bool plus_one,
                           const float *inverse, int64_t rows, int64_t n, float *dx,
                           bool accumulate);
  void (*rope_apply)(float *x, int64_t rows, int64_t length, const int64_t *starts, int64_t heads,
                     int64_t head_dim, const float *cos, const float *sin, int direction);
  void (*glu_forward)(bool gelu, const float *gate, const float *up, int64_t n, float *out);
  void (*glu_backward)(bool gelu, const float *gate, const float *up, const float *dout, int64_t n,
                       float *dgate, float *dup);
  void (*add_inplace)(float *x, const float *y, int64_t n);
  void (*softcap_forward)(float *x, int64_t n, double cap);
  void (*softcap_backward)(float *dx, const float *y, int64_t n, double cap);

  /* --- attention without a cache --- */
  void (*attention_forward)(const struct attention_shape *shape, const float *q, const float *k,
                            const float *v, float *out, float *lse);
  void (*attention_backward)(const struct attention_shape *shape, const float *q, const float *k,
                             const float *v, const float *out, const float *lse, const float *dout,
                             float *dq, float *dk, float *dv);

  /* --- losses --- */
  void (*cross_entropy)(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                        float scale, float *nll, float *dlogits);
  void (*score_targets)(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                        float *nll, uint8_t *likeliest);
  void (*softmax_kl)(const float *reference, const float *model, int64_t rows, int64_t vocab,
                     float *kl, uint8_t *agree);
  void (*distill_loss)(const float *logits, const float *teacher, const int32_t *targets,
                       int64_t rows, int64_t vocab, struct distill_rule rule, float scale,
                       float *nll, float *kl, float *dlogits);
  /* The host's alone; a card has DISTILL_FORWARD only, and NULL here. */
  void (*match_rows)(const float *x, float *d, const int32_t *targets, int64_t rows, int64_t width,
                     float share, float scale, float *distance);

  /* --- masks; pointers in the source are the backend's --- */
  void (*mask_sample)(const struct mask_source *source, struct matrix_view w, enum dtype out_dtype,
                      void *out, double *squares);
  void (*mask_backward)(const struct mask_source *source, struct matrix_view w, const float *dw,
                        struct mask_decay decay, bool accumulate, void *dlogits, double *dtile,
                        enum dtype out_dtype, void *out);
  /* `dtype` of gradients and of logits: f32, or bf16 in compact storage. */
  void (*mask_gradient_squares)(const void *gradient, enum dtype dtype, int64_t rows, int64_t cols,
                                double *squares);
  /* *flips += the number of groups whose code changed. */
  void (*mask_adamw_step)(const struct mask_adamw *settings, int64_t rows, int64_t cols,
                          const float *gradient, float *logits, float *first, float *second,
                          uint8_t *codes, uint64_t *flips);
  void (*mask_compact_step)(const struct mask_adamw *settings, const struct mask_rounding *rounding,
                            int64_t rows, int64_t cols, const struct mask_compact *state,
                            uint8_t *codes, uint64_t *flips);
  void (*mask_harden)(const void *logits, enum dtype dtype, int64_t rows, int64_t cols,
                      uint8_t *codes, uint64_t *flips);
  /* out (rows, cols) = w where a hybrid mask keeps it, else 0: codes as in sparse/mask.h, tiles
   * (tile rows, tile cols) bytes, 1 = dense. */
  void (*mask_keep)(struct matrix_view w, const uint8_t *codes, const uint8_t *tiles,
                    int64_t tile_rows, int64_t tile_cols, float *out);
};

const struct backend *backend_cpu(void);

/* `device` is "cpu", "cuda" or "cuda:1", cards counted as CUDA_VISIBLE_DEVICES shows them; one card
 * at a time. STATUS_USAGE for another name, STATUS_REFUSED where the build or the machine has none.
 */
enum status backend_open(const struct backend **out, const char *device, struct error *err);
/* After all that lay there was given back. NULL and the CPU are fine. */
void backend_close(const struct backend *backend);

#endif
