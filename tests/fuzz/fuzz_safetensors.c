/* Fuzz target: safetensors files. */
#include "support/walk.h"
#define FUZZ_WALK walk_safetensors
#include "fuzz_file.h"
