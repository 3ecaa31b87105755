/* Which linear of a block sees which input. No state. */
#include "prune/inputs.h"

const enum block_input role_input[SITE_ROLES] = {
    [SITE_Q] = INPUT_QKV,    [SITE_K] = INPUT_QKV,  [SITE_V] = INPUT_QKV,    [SITE_O] = INPUT_O,
    [SITE_GATE] = INPUT_MLP, [SITE_UP] = INPUT_MLP, [SITE_DOWN] = INPUT_DOWN};
const enum site_role input_leader[BLOCK_INPUTS] = {SITE_Q, SITE_O, SITE_GATE, SITE_DOWN};
