/* Fuzz target: npz files. */
#include "support/walk.h"
#define FUZZ_WALK walk_npz
#include "fuzz_file.h"
