#include "support/block_gguf.h"

#include <stdio.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/gguf.h"
#include "support/support.h"

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2, FEED = 512, TENSORS = 64 };

struct build {
  struct tensor_source tensors[TENSORS];
  char names[TENSORS][64];
  size_t count;
  struct rng rng;
};

static void put_half(uint8_t *at, float value) {
  const uint16_t half = f16_from_f32(value);
  memcpy(at, &half, 2);
}

/* Where a type's f16 scale and minimum stand, and what makes weights of about 0.05. */
static void set_scales(enum dtype dtype, uint8_t *block, double chance) {
  const float vary = (float)(0.5 + chance), unit = 0.01f * vary;
  if (dtype == DTYPE_Q8_0) put_half(block, unit / 16);
  if (dtype == DTYPE_Q5_0) put_half(block, unit / 2);
  if (dtype == DTYPE_Q4_0 || dtype == DTYPE_Q4_1) put_half(block, unit);
  if (dtype == DTYPE_Q4_1) put_half(block + 2, -8 * unit);
  if (dtype == DTYPE_Q4_K) put_half(block, unit / 32);
  if (dtype == DTYPE_Q4_K) put_half(block + 2, unit / 4);
  if (dtype == DTYPE_Q6_K) put_half(block + 208, unit / 256);
}

static void add_matrix(struct build *b, enum dtype dtype, const char *name, int64_t rows,
                       int64_t cols) {
  struct error err = {0};
  const struct dtype_traits *t = dtype_traits(dtype);
  const int64_t blocks = rows * cols / t->block_length;
  uint8_t *data = mem_alloc((size_t)blocks, (size_t)t->block_bytes, &err);
  assert_non_null(data);
  for (int64_t i = 0; i < blocks * t->block_bytes; i++) data[i] = (uint8_t)rng_below(&b->rng, 256);
  for (int64_t i = 0; i < blocks; i++)
    set_scales(dtype, data + i * t->block_bytes, rng_uniform(&b->rng));
  snprintf(b->names[b->count], sizeof b->names[0], "%s", name);
  b->tensors[b->count] = (struct tensor_source){
      .name = b->names[b->count], .dtype = dtype, .rank = 2, .shape = {rows, cols}, .data = data};
  b->count++;
}

static void add_norm(struct build *b, const char *name) {
  struct error err = {0};
  float *data = mem_alloc(BLOCK_GGUF_HIDDEN, sizeof *data, &err);
  for (int i = 0; i < BLOCK_GGUF_HIDDEN; i++) data[i] = (float)(0.75 + 0.5 * rng_uniform(&b->rng));
  snprintf(b->names[b->count], sizeof b->names[0], "%s", name);
  b->tensors[b->count] = (struct tensor_source){.name = b->names[b->count],
                                                .dtype = DTYPE_F32,
                                                .rank = 1,
                                                .shape = {BLOCK_GGUF_HIDDEN},
                                                .data = data};
  b->count++;
}

static void add_block(struct build *b, int layer, enum dtype dtype) {
  static const struct {
    const char *name;
    int64_t rows, cols;
  } matrices[] = {{"attn_q", 256, 256},      {"attn_k", 128, 256},    {"attn_v", 128, 256},
                  {"attn_output", 256, 256}, {"ffn_gate", FEED, 256}, {"ffn_up", FEED, 256},
                  {"ffn_down", 256, FEED}};
  char name[64];
  snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
  add_norm(b, name);
  snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", layer);
  add_norm(b, name);
  for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
    add_matrix(b, dtype, name, matrices[i].rows, matrices[i].cols);
  }
}

void block_gguf_write(const char *path, enum dtype linears, enum dtype ends, uint64_t seed) {
  static struct build b;
  struct error err = {0};
  b = (struct build){.rng = rng_make(seed, 9)};
  struct gguf_builder *keys = gguf_builder_new();
  gguf_set_string(keys, "general.architecture", "llama", 5);
  gguf_set_u32(keys, "llama.block_count", LAYERS);
  gguf_set_u32(keys, "llama.context_length", 512);
  gguf_set_u32(keys, "llama.embedding_length", BLOCK_GGUF_HIDDEN);
  gguf_set_u32(keys, "llama.feed_forward_length", FEED);
  gguf_set_u32(keys, "llama.attention.head_count", HEADS);
  gguf_set_u32(keys, "llama.attention.head_count_kv", KV_HEADS);
  gguf_set_f32(keys, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf_set_f32(keys, "llama.rope.freq_base", 1e4f);
  add_matrix(&b, ends, "token_embd.weight", BLOCK_GGUF_VOCAB, BLOCK_GGUF_HIDDEN);
  for (int layer = 0; layer < LAYERS; layer++) add_block(&b, layer, linears);
  add_norm(&b, "output_norm.weight");
  add_matrix(&b, ends, "output.weight", BLOCK_GGUF_VOCAB, BLOCK_GGUF_HIDDEN);
  must(gguf_write(keys, path, b.tensors, b.count, &err), err);
  gguf_builder_free(keys);
  for (size_t i = 0; i < b.count; i++) mem_free((void *)b.tensors[i].data);
}
