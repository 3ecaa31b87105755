/* Every kernel of SERVE_KERNELS and ATTEND_KERNELS: after a vocabulary. */
#include "kernel/cuda/serve_attend.h"
#include "kernel/cuda/serve_rows.h"
#include "kernel/cuda/serve_sample.h"
