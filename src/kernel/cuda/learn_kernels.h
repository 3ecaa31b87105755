/* Every kernel of LEARN_KERNELS: after a vocabulary. */
#include "kernel/cuda/attention.h"
#include "kernel/cuda/attention_mma.h"
#include "kernel/cuda/attention_mma_back.h"
#include "kernel/cuda/compact.h"
#include "kernel/cuda/loss.h"
#include "kernel/cuda/mask.h"
#include "kernel/cuda/prune.h"
#include "kernel/cuda/rows.h"
