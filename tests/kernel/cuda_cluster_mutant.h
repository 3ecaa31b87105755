/* One deliberately wrong kernel for clusters, called PRODUCT_NAME: the body with a word of its
 * vocabulary redefined before. */
#define PANEL_TOKENS 128
#include "kernel/cuda/cluster_body.h"
