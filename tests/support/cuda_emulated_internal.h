/* What the emulated card's files share: cuda_emulated.c has its memory and launches,
 * cuda_emulated_serve.c what decoding needs beyond. */
#ifndef TSR_TESTS_CUDA_EMULATED_INTERNAL_H
#define TSR_TESTS_CUDA_EMULATED_INTERNAL_H

#include "kernel/cuda/column_serve.h"
#include "support/cuda_emulated.h"

enum status emulated_alloc(void *ctx, size_t bytes, void **out, struct error *err);
void emulated_free(void *ctx, void *memory);
enum status emulated_upload(void *ctx, void *to, const void *from, size_t bytes, struct error *err);
/* Opens the card's memory to the host, and closes it. */
void emulated_reach(bool open);
/* Runs a kernel on the card's memory; fails the test where the emulator does. */
void emulated_launch(void (*kernel)(const void *), const char *what, uint32_t blocks,
                     uint32_t threads, uint32_t shared_bytes, const void *args);

const struct serve_runtime *emulated_serve(void);
void emulated_serve_close(void); /* gives back what products share */

#endif
