/* Fuzz target: gguf files. */
#include "support/walk.h"
#define FUZZ_WALK walk_gguf
#include "fuzz_file.h"
