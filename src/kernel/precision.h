/* What matrix products round their operands to. Sums are fp32 in both cases. */
#ifndef TSR_KERNEL_PRECISION_H
#define TSR_KERNEL_PRECISION_H

#include <stdbool.h>

enum precision {
  PRECISION_FP32, /* operands as they are */
  PRECISION_BF16, /* operands rounded to the nearest bf16, ties to even */
  PRECISIONS
};
extern const char *const precision_name[PRECISIONS]; /* "fp32", "bf16" */

/* bf16 where the instruction set in use multiplies bf16 in hardware, else fp32. On the others bf16
 * works too, at about half the speed of fp32. */
enum precision precision_fastest(void);

#endif
