/* The serial kernels behind mask_ops.h: one row of a matrix, padded to whole blocks of groups. */
#ifndef TSR_KERNEL_MASK_KERNELS_H
#define TSR_KERNEL_MASK_KERNELS_H

#include "kernel/mask_compact.h"

struct mask_row {
  int64_t blocks;
  const float *logits;  /* (blocks, 5, 16) or NULL */
  const uint8_t *codes; /* (blocks, 8): nibbles, when logits is NULL */
  const float *tile;    /* (blocks, 16): T of each group */
  const float *bias;    /* (6, 16), added to the exponents of the last block; or NULL */
  float slope;          /* kappa / tau */
  float inverse_tau;
  bool noise;
  uint32_t key[2], tensor, draw;
  uint32_t counter; /* of the row's first Philox block */
};

/* Constants of one AdamW step. */
struct mask_adamw_factors {
  float keep; /* 1 - rate * weight_decay */
  float rate; /* divided by the bias correction of the first moment */
  float beta1, beta2, gradient_scale, epsilon;
  float second_scale; /* 1 / (1 - beta2^step) */
  float root_scale;   /* its root */
  /* What no update exceeds but by rounding, and what that of the sixth candidate is held to. Its
   * first moment is what the other five's leave, rounding included, while its second is of its own
   * gradients: where these cancel to 0 in every step, rounding over an epsilon of 1e-15 would be a
   * leap of many rates. */
  float most;
};

struct mask_adamw_factors mask_adamw_factors_of(const struct mask_adamw *settings);
/* mask_harden of one row: logits (blocks, 5, 16), codes (ceil(cols / 8)); chosen (blocks, 16) is
 * scratch. */
int64_t mask_harden_row(const float *logits, int64_t cols, int32_t *chosen, uint8_t *codes);

/* A row of compact storage: its slice of the matrix. */
struct mask_compact_row {
  struct mask_compact state;
  struct mask_rounding rounding;
  uint64_t slot; /* number of its first group in the matrix, padding counted */
  int64_t blocks;
};

struct mask_kernels {
  /* out = w M over (blocks, 64); the sum of squares of out. */
  double (*sample)(const struct mask_row *row, const float *w, float *out);
  /* dlogits (blocks, 5, 16) written or added to, NULL in fixed-code rows; dtile (blocks, 16) +=
   * each group's sum of dM * (1 - M24); out (blocks, 64) as in sample, or NULL. */
  void (*backward)(const struct mask_row *row, const float *w, const float *dw, float decay,
                   bool accumulate, float *dlogits, float *dtile, float *out);
  double (*gradient_squares)(const float *gradient, int64_t blocks);
  void (*adamw)(const struct mask_adamw_factors *f, int64_t blocks, const float *gradient,
                float *logits, float *first, float *second);
  /* The code of each group's largest logit, the first on ties: code (blocks, 16). */
  void (*choose)(const float *logits, int64_t blocks, int32_t *code);
  /* The optimizer on compact storage; `step` numbers the rounding's noise. */
  void (*compact_step)(const struct mask_adamw_factors *f, uint32_t step,
                       const struct mask_compact_row *row);
  /* Rounds fresh gradients (blocks, 5, 16), or adds them to what is stored. */
  void (*compact_round)(const struct mask_compact_row *row, uint32_t pass, bool accumulate,
                        const float *made);
};

#endif
