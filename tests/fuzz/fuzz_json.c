/* Fuzz target: json files. */
#include "support/walk.h"
#define FUZZ_WALK walk_json
#include "fuzz_file.h"
