/* A small LLaMA GGUF whose matrices are random blocks of one of ggml's types. */
#ifndef TSR_TESTS_BLOCK_GGUF_H
#define TSR_TESTS_BLOCK_GGUF_H

#include "tensor/dtype.h"

enum { BLOCK_GGUF_HIDDEN = 256, BLOCK_GGUF_VOCAB = 101 };

/* Two blocks, hidden size 256, grouped heads, a head of its own. Linears are of `linears`,
 * embeddings and head of `ends`; weights are about as large as those of a trained model. */
void block_gguf_write(const char *path, enum dtype linears, enum dtype ends, uint64_t seed);

#endif
