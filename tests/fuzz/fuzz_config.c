/* Fuzz target: model configurations, as config.json or as the keys of a GGUF file. */
#include "model/config.h"

static enum status walk_config(void *ctx, const char *path, struct error *err) {
  static struct model_config config;
  (void)ctx;
  if (gguf_recognise(path)) {
    struct gguf *gguf = NULL;
    enum status status = gguf_open(&gguf, path, err);
    if (status == STATUS_OK) status = model_config_from_gguf(&config, gguf, path, err);
    if (gguf) gguf_close(gguf);
    return status;
  }
  json_t *json = json_read_file(path, 1 << 20, err);
  if (!json) return err->status;
  enum status status = model_config_from_json(&config, json, path, err);
  json_decref(json);
  return status;
}

#define FUZZ_WALK walk_config
#include "fuzz_file.h"
