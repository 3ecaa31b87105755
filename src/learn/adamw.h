/* AdamW (Loshchilov & Hutter 2019) on a plain vector: the tile logits. The 2:4 logits have their
 * own in kernel/mask_ops.h, with the same settings. */
#ifndef TSR_LEARN_ADAMW_H
#define TSR_LEARN_ADAMW_H

#include "kernel/mask_ops.h"

/* p, gradient, first, second (count). */
void adamw_step(const struct mask_adamw *settings, int64_t count, const float *gradient, float *p,
                float *first, float *second);

#endif
