/* Fuzz target: tokenizer.json, tokenizer.model and the vocabulary inside a GGUF file. */
#include "support/walk.h"

#define FUZZ_WALK walk_tokenizer
#include "fuzz_file.h"
