/* Fuzz target: packed matrices in a safetensors file, 16-bit and quantized ones. */
#include "support/walk.h"

#define FUZZ_WALK walk_packed
#include "fuzz_file.h"
