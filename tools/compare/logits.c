/* Writes the logits of a model for a file of token ids: for tools/compare/transformers_logits.py.
 *
 *     logits MODEL IDS OUT      IDS: int32 tokens; OUT: fp32 (tokens, vocab_size) */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "io/file.h"
#include "model/model.h"

static enum status run(char **argv, struct error *err) {
  struct model *model = NULL;
  struct model_workspace *ws = NULL;
  struct file_map ids = {0};
  float *normed = NULL, *logits = NULL;
  enum status status = model_open(&model, argv[1], err);
  if (status == STATUS_OK) status = file_map_open(&ids, argv[2], err);
  if (status != STATUS_OK) goto out;
  struct model_shape shape = {1, (int64_t)(ids.size_bytes / 4)};
  size_t vocab = (size_t)model_config(model)->vocab_size, tokens = (size_t)shape.length;
  normed = mem_alloc(tokens, (size_t)model_config(model)->hidden_size * 4, err);
  logits = mem_alloc(tokens, vocab * 4, err);
  status =
      normed && logits ? model_workspace_new(&ws, model, shape, false, false, err) : STATUS_FAILED;
  if (status == STATUS_OK)
    status = model_forward(model, (const int32_t *)ids.data, shape, NULL, ws, normed, err);
  if (status != STATUS_OK) goto out;
  model_logits(model, normed, shape.length, logits);
  status = file_write_all(argv[3], logits, tokens * vocab * 4, err);
out:
  mem_free(normed);
  mem_free(logits);
  model_workspace_free(ws);
  file_map_close(&ids);
  model_close(model);
  return status;
}

int main(int argc, char **argv) {
  struct error err = {0};
  if (argc != 4) {
    fprintf(stderr, "usage: logits MODEL IDS OUT\n");
    return STATUS_USAGE;
  }
  enum status status = run(argv, &err);
  if (status != STATUS_OK) fprintf(stderr, "%s\n", err.text);
  return (int)status;
}
