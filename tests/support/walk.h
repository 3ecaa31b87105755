/* Opens a file and reads all of it, as the damage tests and the fuzz targets need. */
#ifndef TSR_TESTS_WALK_H
#define TSR_TESTS_WALK_H

#include "base/error.h"

enum status walk_safetensors(void *ctx, const char *path, struct error *err);
enum status walk_safetensors_set(void *ctx, const char *path, struct error *err);
/* A safetensors file with packed matrices: views, checks and expands each. */
enum status walk_packed(void *ctx, const char *path, struct error *err);
enum status walk_gguf(void *ctx, const char *path, struct error *err);
enum status walk_npz(void *ctx, const char *path, struct error *err);
enum status walk_npy(void *ctx, const char *path, struct error *err);
enum status walk_json(void *ctx, const char *path, struct error *err);
/* tokenizer.json, tokenizer.model and the vocabulary inside a GGUF file: what opens must encode,
 * decode and render a chat. */
enum status walk_tokenizer(void *ctx, const char *path, struct error *err);

#endif
