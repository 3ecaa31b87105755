/* Writes the logits of a model for a file of token ids: for the scripts beside this one.
 *
 *     logits MODEL IDS OUT [decode]     IDS: int32 tokens; OUT: fp32 (tokens, vocab_size)
 *
 * In one pass over expanded fp32 weights, or with `decode` token by token as `generate` runs it. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "io/file.h"
#include "model/model.h"

static enum status one_pass(const char *path, const int32_t *ids, int64_t tokens, float **logits,
                            size_t *bytes, struct error *err) {
  struct model *model = NULL;
  struct model_workspace *ws = NULL;
  const struct model_shape shape = {1, tokens};
  enum status status = model_open(&model, path, err);
  if (status) return status;
  float *normed = mem_alloc((size_t)tokens, (size_t)model_config(model)->hidden_size * 4, err);
  *bytes = (size_t)tokens * (size_t)model_config(model)->vocab_size * 4;
  *logits = mem_alloc(*bytes, 1, err);
  status =
      normed && *logits ? model_workspace_new(&ws, model, shape, false, false, err) : STATUS_FAILED;
  if (!status) status = model_forward(model, ids, shape, NULL, ws, normed, err);
  if (!status) model_logits(model, normed, tokens, PRECISION_FP32, *logits);
  mem_free(normed);
  model_workspace_free(ws);
  model_close(model);
  return status;
}

static enum status decode(const char *path, const int32_t *ids, int64_t tokens, float **logits,
                          size_t *bytes, struct error *err) {
  struct model *model = NULL;
  struct model_session *session = NULL;
  const struct session_settings settings = {1, tokens, DTYPE_F16};
  enum status status = model_open_to_run(&model, path, err);
  if (status) return status;
  const int64_t vocab = model_config(model)->vocab_size;
  *bytes = (size_t)(tokens * vocab) * 4;
  *logits = mem_alloc(*bytes, 1, err);
  status = *logits ? model_prepare(model, false, err) : STATUS_FAILED;
  if (!status) status = model_session_new_with(&session, model, &settings, err);
  for (int64_t i = 0; i < tokens && !status; i++)
    status = model_session_append(session, ids + i, 1, *logits + i * vocab, err);
  model_session_free(session);
  model_close(model);
  return status;
}

int main(int argc, char **argv) {
  struct error err = {0};
  struct file_map ids = {0};
  float *logits = NULL;
  size_t bytes = 0;
  if (argc < 4) {
    fprintf(stderr, "usage: logits MODEL IDS OUT [decode]\n");
    return STATUS_USAGE;
  }
  enum status status = file_map_open(&ids, argv[2], &err);
  if (!status)
    status = (argc > 4 ? decode : one_pass)(argv[1], (const int32_t *)(const void *)ids.data,
                                            (int64_t)(ids.size_bytes / 4), &logits, &bytes, &err);
  if (!status) status = file_write_all(argv[3], logits, bytes, &err);
  mem_free(logits);
  file_map_close(&ids);
  if (status) fprintf(stderr, "%s\n", err.text);
  return (int)status;
}
