/* The layers and batches that products are timed at on a card, for gpu_time.c and gpu_peers.py,
 * which reads these lines: L(model and layer, out features, in features), B(tokens). */
#define GPU_LAYERS(L)                    \
  L("LLaMA-2 7B qo", 4096, 4096)         \
  L("LLaMA-2 7B gate/up", 11008, 4096)   \
  L("LLaMA-2 7B down", 4096, 11008)      \
  L("LLaMA-3.1 8B kv", 1024, 4096)       \
  L("LLaMA-3.1 8B gate/up", 14336, 4096) \
  L("LLaMA-3.1 8B down", 4096, 14336)    \
  L("Qwen2.5 0.5B qo", 896, 896)         \
  L("Qwen2.5 0.5B gate/up", 4864, 896)   \
  L("Qwen2.5 0.5B down", 896, 4864)
#define GPU_BATCHES(B) B(1) B(4) B(16) B(64) B(96) B(128) B(512) B(2048) B(8192)
