/* Fuzz target: config.json of every family. */
#include "io/json.h"
#include "model/config.h"

static enum status walk_config(void *ctx, const char *path, struct error *err) {
  static struct model_config config;
  json_t *json = json_read_file(path, 1 << 20, err);
  if (!json) return err->status;
  enum status status = model_config_from_json(&config, json, path, err);
  json_decref(json);
  return status;
}

#define FUZZ_WALK walk_config
#include "fuzz_file.h"
