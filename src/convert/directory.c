/* The small files of a model directory. Owns nothing. */
#include "convert/directory.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "io/file.h"
#include "text/tokenizer.h"

enum { SIDE_FILE_LIMIT_BYTES = 64 << 20 };

json_t *directory_config(const struct model *model, const char *torch_dtype) {
  const json_t *source = model_json(model);
  if (!source || json_object_get(source, "text_config"))
    return model_config_to_json(model_config(model), torch_dtype);
  json_t *config = json_deep_copy(source);
  json_object_del(config, "sparsity_config");
  json_object_del(config, "dtype"); /* what newer transformers call torch_dtype */
  json_object_set_new(config, "torch_dtype", json_string(torch_dtype));
  return config;
}

enum status directory_card(const struct model *model, struct model_card *card, struct error *err) {
  if (!model_gguf(model)) return card_from_directory(card, model_path(model), err);
  card_from_gguf(card, model_gguf(model));
  return STATUS_OK;
}

static bool has_file(const struct model *model, const char *name) {
  char *path = path_join(model_path(model), name);
  const bool found = file_exists(path);
  free(path);
  return found;
}

bool directory_has_tokenizer(const struct model *model) {
  if (model_gguf(model)) return gguf_find(model_gguf(model), "tokenizer.ggml.model") != NULL;
  return has_file(model, "tokenizer.json") || has_file(model, "tokenizer.model") ||
         has_file(model, "vocab.json");
}

static enum status write_tokenizer(const struct model *model, const char *directory,
                                   struct error *err) {
  struct tokenizer *tokenizer;
  if (!directory_has_tokenizer(model)) {
    log_warn("%s has no tokenizer, so the output has none either", model_path(model));
    return STATUS_OK;
  }
  enum status status = tokenizer_open(&tokenizer, model_path(model), err);
  if (status) return status;
  status = tokenizer_export(tokenizer, directory, err);
  tokenizer_close(tokenizer);
  return status;
}

/* Files that go along as they are. */
static bool is_companion(const char *name) {
  static const char *const starts[] = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING"};
  if (!strcmp(name, "generation_config.json")) return true;
  for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
    if (!strncasecmp(name, starts[i], strlen(starts[i]))) return true;
  return false;
}

static enum status copy_file(const char *from_directory, const char *name, const char *to_directory,
                             struct error *err) {
  char *from = path_join(from_directory, name), *to = path_join(to_directory, name), *data = NULL;
  size_t bytes;
  enum status status = file_is_directory(from)
                           ? STATUS_OK
                           : file_read(from, SIDE_FILE_LIMIT_BYTES, &data, &bytes, err);
  if (!status && data) status = file_write_all(to, data, bytes, err);
  free(data);
  free(from);
  free(to);
  return status;
}

static enum status copy_companions(const struct model *model, const char *directory,
                                   struct error *err) {
  if (model_gguf(model)) return STATUS_OK;
  DIR *source = opendir(model_path(model));
  if (!source) return error_set(err, STATUS_FAILED, "%s: %s", model_path(model), strerror(errno));
  enum status status = STATUS_OK;
  for (struct dirent *entry; !status && (entry = readdir(source));)
    if (is_companion(entry->d_name))
      status = copy_file(model_path(model), entry->d_name, directory, err);
  closedir(source);
  return status;
}

static enum status write_readme(const struct model *model, const char *text, const char *directory,
                                struct error *err) {
  struct model_card card;
  struct strbuf readme = {0};
  char *path = path_join(directory, "README.md");
  enum status status = directory_card(model, &card, err);
  if (!status) {
    card_write(&card, text, &readme);
    status = file_write_all(path, strbuf_text(&readme), readme.length, err);
  }
  strbuf_free(&readme);
  free(path);
  return status;
}

enum status directory_write(const struct model *model, const json_t *config, const char *text,
                            const char *directory, struct error *err) {
  char *path = path_join(directory, "config.json");
  enum status status = json_write_file(path, config, err);
  free(path);
  if (!status) status = write_tokenizer(model, directory, err);
  if (!status) status = copy_companions(model, directory, err);
  if (!status) status = write_readme(model, text, directory, err);
  return status;
}
