/* The four inputs of a block's seven linears: q, k and v share one, gate and up another. */
#ifndef TSR_PRUNE_INPUTS_H
#define TSR_PRUNE_INPUTS_H

#include "model/model.h"

enum block_input { INPUT_QKV, INPUT_O, INPUT_MLP, INPUT_DOWN, BLOCK_INPUTS };
extern const enum block_input role_input[SITE_ROLES];
/* The first role that sees an input: its call is the one that counts. */
extern const enum site_role input_leader[BLOCK_INPUTS];

#endif
