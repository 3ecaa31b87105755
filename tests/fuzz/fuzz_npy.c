/* Fuzz target: npy files. */
#include "support/walk.h"
#define FUZZ_WALK walk_npy
#include "fuzz_file.h"
