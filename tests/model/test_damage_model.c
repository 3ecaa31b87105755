/* Damaged configurations and models: opened or refused, run when they open, never a crash. */
#include "base/parallel.h"
#include "io/json.h"
#include "model/model.h"
#include "support/damage.h"
#include "support/support.h"

static enum status open_config(void *ctx, const char *path, struct error *e) {
  static struct model_config config;
  json_t *json = json_read_file(path, 1 << 20, e);
  if (!json) return e->status;
  enum status status = model_config_from_json(&config, json, path, e);
  json_decref(json);
  return status;
}

static enum status open_gguf_config(void *ctx, const char *path, struct error *e) {
  static struct model_config config;
  struct gguf *gguf = NULL;
  enum status status = gguf_open(&gguf, path, e);
  if (status == STATUS_OK) status = model_config_from_gguf(&config, gguf, path, e);
  if (gguf) gguf_close(gguf);
  return status;
}

static void damaged_json(void **state) {
  struct damage d = {
      .name = "config", .suffix = ".json", .open = open_config, .seed = 1, .rounds = 3000};
  damage_run_file(&d, golden("models/gemma3/config.json"));
  d.seed = 2;
  damage_run_file(&d, golden("models/llama/config.json"));
}

static void damaged_gguf(void **state) {
  struct damage d = {
      .name = "config", .suffix = ".gguf", .open = open_gguf_config, .seed = 3, .rounds = 1000};
  damage_run_file(&d, golden("models/llama.gguf"));
}

static enum status open_and_run(void *ctx, const char *path, struct error *e) {
  struct model *model = NULL;
  enum status status = model_open(&model, path, e);
  if (status == STATUS_OK) {
    static float normed[4 * 64];
    struct model_workspace *ws;
    int32_t few[4] = {0, 1, 2, 3};
    struct model_shape small = {1, 4};
    if (model_config(model)->hidden_size <= 64 && model_config(model)->vocab_size >= 4 &&
        model_workspace_new(&ws, model, small, false, false, e) == STATUS_OK) {
      status = model_forward(model, few, small, NULL, ws, normed, e);
      model_workspace_free(ws);
    }
  }
  model_close(model);
  return status;
}

static void damaged_model(void **state) {
  struct damage d = {
      .name = "model", .suffix = ".gguf", .open = open_and_run, .seed = 11, .rounds = 1000};
  damage_run_file(&d, golden("models/gemma3.gguf"));
}

int main(void) {
  parallel_set_threads(1); /* tiny models: waking threads would be most of the time */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(damaged_json),
      cmocka_unit_test(damaged_gguf),
      cmocka_unit_test(damaged_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
