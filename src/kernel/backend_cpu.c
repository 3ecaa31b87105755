/* The CPU's column: the functions of this room, and the host's memory. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/backend.h"
#include "sparse/mask.h"

/* 64 MiB */
enum { LOGIT_ELEMENTS = 1 << 24 };

static enum status alloc(size_t bytes, void **out, struct error *err) {
  *out = mem_alloc(bytes, 1, err);
  return *out ? STATUS_OK : STATUS_FAILED;
}

static enum status copy(void *to, const void *from, size_t bytes, struct error *err) {
  (void)err;
  if (to != from) memcpy(to, from, bytes);
  return STATUS_OK;
}

static enum status wait(struct error *err) {
  (void)err;
  return STATUS_OK;
}

static void clear(void *memory, size_t bytes) { memset(memory, 0, bytes); }

static void sample(const struct mask_source *source, struct matrix_view w, enum dtype out_dtype,
                   void *out, double *squares) {
  *squares = mask_sample(source, w, out_dtype, out);
}

static float decay_value(struct mask_decay decay) {
  if (!decay.squares) return (float)decay.factor;
  const double norm = sqrt(*decay.squares);
  return norm > 0 ? (float)(decay.factor / norm) : 0;
}

static void backward(const struct mask_source *source, struct matrix_view w, const float *dw,
                     struct mask_decay decay, bool accumulate, void *dlogits, double *dtile,
                     enum dtype out_dtype, void *out) {
  mask_backward(source, w, dw, decay_value(decay), accumulate, dlogits, dtile, out_dtype, out);
}

static void gradient_squares(const void *gradient, enum dtype dtype, int64_t rows, int64_t cols,
                             double *squares) {
  *squares = dtype == DTYPE_BF16 ? mask_compact_squares(gradient, rows, cols)
                                 : mask_gradient_squares(gradient, rows, cols);
}

static void adamw(const struct mask_adamw *settings, int64_t rows, int64_t cols,
                  const float *gradient, float *logits, float *first, float *second, uint8_t *codes,
                  uint64_t *flips) {
  *flips += (uint64_t)mask_adamw_step(settings, rows, cols, gradient, logits, first, second, codes);
}

static void compact_step(const struct mask_adamw *settings, const struct mask_rounding *rounding,
                         int64_t rows, int64_t cols, const struct mask_compact *state,
                         uint8_t *codes, uint64_t *flips) {
  *flips += (uint64_t)mask_compact_step(settings, rounding, rows, cols, state, codes);
}

static void harden(const void *logits, enum dtype dtype, int64_t rows, int64_t cols, uint8_t *codes,
                   uint64_t *flips) {
  *flips += (uint64_t)(dtype == DTYPE_BF16 ? mask_compact_harden(logits, rows, cols, codes)
                                           : mask_harden(logits, rows, cols, codes));
}

static void keep(struct matrix_view w, const uint8_t *codes, const uint8_t *tiles,
                 int64_t tile_rows, int64_t tile_cols, float *out) {
  const struct mask_matrix mask = {.kind = MASK_HYBRID,
                                   .rows = w.rows,
                                   .cols = w.cols,
                                   .tile_rows = tile_rows,
                                   .tile_cols = tile_cols,
                                   .tiles = (uint8_t *)tiles,
                                   .codes = (uint8_t *)codes};
  if (w.dtype != DTYPE_F32) dtype_to_f32(w.dtype, w.data, w.rows * w.cols, out);
  mask_apply(&mask, w.dtype == DTYPE_F32 ? w.data : out, out);
}

const struct backend *backend_cpu(void) {
  static const struct backend cpu = {
      .name = "cpu",
      .is_host = true,
      .logit_elements = LOGIT_ELEMENTS,
      .alloc = alloc,
      .free = mem_free,
      .upload = copy,
      .download = copy,
      .wait = wait,
      .clear = clear,
      .copy_floats = copy_floats,
      .linear_forward = linear_forward,
      .linear_forward_many = linear_forward_many,
      .linear_backward_input = linear_backward_input,
      .linear_backward_weight = linear_backward_weight,
      .embed = linear_embed,
      .rmsnorm_forward = rmsnorm_forward,
      .rmsnorm_backward = rmsnorm_backward,
      .rope_apply = rope_apply,
      .glu_forward = glu_forward,
      .glu_backward = glu_backward,
      .add_inplace = add_inplace,
      .softcap_forward = softcap_forward,
      .softcap_backward = softcap_backward,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
      .cross_entropy = cross_entropy,
      .score_targets = score_targets,
      .softmax_kl = softmax_kl,
      .distill_loss = distill_loss,
      .match_rows = match_rows,
      .mask_sample = sample,
      .mask_backward = backward,
      .mask_gradient_squares = gradient_squares,
      .mask_adamw_step = adamw,
      .mask_compact_step = compact_step,
      .mask_harden = harden,
      .mask_keep = keep,
  };
  return &cpu;
}
