/* Fuzz target: a GGUF file as a whole model. What opens and is small is run over a few tokens. */
#include "base/parallel.h"
#include "model/model.h"

static enum status run_model(struct model *model, struct error *err) {
  enum { HIDDEN_MAX = 64, TOKENS = 4 };
  static float normed[TOKENS * HIDDEN_MAX];
  static const int32_t ids[TOKENS] = {0, 1, 2, 3};
  const struct model_config *config = model_config(model);
  if (config->hidden_size > HIDDEN_MAX || config->vocab_size < TOKENS) return STATUS_OK;
  struct model_workspace *ws;
  struct model_shape shape = {1, TOKENS};
  enum status status = model_workspace_new(&ws, model, shape, false, false, err);
  if (status != STATUS_OK) return status;
  status = model_forward(model, ids, shape, NULL, ws, normed, err);
  model_workspace_free(ws);
  return status;
}

static enum status walk_model(void *ctx, const char *path, struct error *err) {
  struct model *model;
  parallel_set_threads(1);
  enum status status = model_open(&model, path, err);
  if (status != STATUS_OK) return status;
  status = run_model(model, err);
  model_close(model);
  return status;
}

#define FUZZ_WALK walk_model
#include "fuzz_file.h"
