/* Reading items: see items.h. */
#include "eval/items.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "data/reader.h"
#include "io/file.h"

enum { FILE_BYTES_MAX = 1 << 30, LINE_BYTES_MAX = 16 << 20, ITEMS_MAX = 1 << 22, BLOCK = 1 << 18 };

/* --- the file --- */

static enum status find_file(char **path, const char *directory, const char *name,
                             struct error *err) {
  static const char *const endings[] = {".jsonl", ".jsonl.gz", ".jsonl.zst"};
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    char file[256];
    snprintf(file, sizeof file, "%s%s", name, endings[i]);
    *path = path_join(directory, file);
    if (file_exists(*path)) return STATUS_OK;
    free(*path);
    *path = NULL;
  }
  return error_set(
      err, STATUS_REFUSED,
      "%s holds no %s.jsonl; tools/tasks_convert.py makes one from the set's own files "
      "(docs/TASKS.md)",
      directory, name);
}

static enum status read_all(const char *path, struct strbuf *text, struct error *err) {
  struct reader *reader = NULL;
  enum status status = reader_open(&reader, path, err);
  for (size_t got = BLOCK; !status && got == BLOCK;) {
    char block[BLOCK];
    status = reader_read(reader, block, sizeof block, &got, err);
    if (!status) strbuf_append(text, block, got);
    if (!status && text->length > FILE_BYTES_MAX)
      status = error_set(err, STATUS_REFUSED, "%s: a task of more than %d MiB", path,
                         FILE_BYTES_MAX >> 20);
  }
  reader_close(reader);
  return status;
}

static bool is_blank(const char *line, size_t bytes) { return strspn(line, " \t\r") >= bytes; }

static enum status put_line(struct item_file *f, const char *line, size_t bytes, int64_t number,
                            struct error *err) {
  json_error_t wrong;
  if (bytes > LINE_BYTES_MAX)
    return error_set(err, STATUS_REFUSED, "line %lld is longer than %d MiB", (long long)number,
                     LINE_BYTES_MAX >> 20);
  if (f->count == ITEMS_MAX)
    return error_set(err, STATUS_REFUSED, "there are more than %d items", ITEMS_MAX);
  size_t need = (size_t)f->count + 1;
  if (mem_grow((void **)&f->docs, &f->doc_capacity, need, sizeof(json_t *), err) ||
      mem_grow((void **)&f->lines, &f->line_capacity, need, sizeof *f->lines, err))
    return STATUS_FAILED;
  json_t *doc = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &wrong);
  if (!doc)
    return error_set(err, STATUS_REFUSED, "line %lld is no valid JSON: %s at column %d",
                     (long long)number, wrong.text, wrong.column);
  f->docs[f->count] = doc;
  f->lines[f->count++] = number;
  if (!json_is_object(doc))
    return error_set(err, STATUS_REFUSED, "line %lld is no JSON object", (long long)number);
  return STATUS_OK;
}

static enum status split_lines(struct item_file *f, const struct strbuf *text, struct error *err) {
  int64_t number = 1;
  for (size_t at = 0; at < text->length; number++) {
    const char *line = text->data + at, *end = memchr(line, '\n', text->length - at);
    size_t bytes = end ? (size_t)(end - line) : text->length - at;
    if (!is_blank(line, bytes)) {
      enum status status = put_line(f, line, bytes, number, err);
      if (status) return status;
    }
    at += bytes + 1;
  }
  return f->count ? STATUS_OK : error_set(err, STATUS_REFUSED, "there are no items");
}

enum status item_file_read(struct item_file *file, const char *directory, const char *name,
                           struct error *err) {
  struct strbuf text = {0};
  *file = (struct item_file){0};
  enum status status = find_file(&file->path, directory, name, err);
  if (!status) status = read_all(file->path, &text, err);
  if (!status) {
    status = split_lines(file, &text, err);
    if (status) error_prefix(err, "%s", file->path);
  }
  strbuf_free(&text);
  if (status) item_file_free(file);
  return status;
}

void item_file_free(struct item_file *file) {
  for (int64_t i = 0; i < file->count; i++) json_decref(file->docs[i]);
  free(file->docs);
  free(file->lines);
  free(file->path);
  *file = (struct item_file){0};
}

enum status item_file_blame(const struct item_file *file, int64_t index, struct error *err) {
  return error_prefix(err, "%s, line %lld", file->path, (long long)file->lines[index]);
}

/* --- fields --- */

const char *item_text(const json_t *doc, const char *key, struct error *err) {
  const char *text = json_get_string(doc, key);
  if (!text) error_set(err, STATUS_REFUSED, "there is no member \"%s\" that is a string", key);
  return text;
}

const json_t *item_texts(const json_t *doc, const char *key, size_t least, size_t most,
                         struct error *err) {
  const json_t *array = json_object_get(doc, key), *text;
  size_t i, count = json_array_size(array);
  if (!json_is_array(array) || count < least || count > most) {
    error_set(err, STATUS_REFUSED, "there is no member \"%s\" that is a list of %zu to %zu strings",
              key, least, most);
    return NULL;
  }
  json_array_foreach(array, i, text) {
    if (json_is_string(text)) continue;
    error_set(err, STATUS_REFUSED, "element %zu of \"%s\" is no string", i, key);
    return NULL;
  }
  return array;
}

bool item_index(const json_t *doc, const char *key, int base, int count, int *out,
                struct error *err) {
  const json_t *value = json_object_get(doc, key);
  const char *digits = json_string_value(value);
  int64_t index = -1;
  if (json_is_boolean(value)) index = json_is_true(value);
  if (digits && digits[0] >= '0' && digits[0] <= '9' && !digits[1]) index = digits[0] - '0';
  if (json_is_integer(value)) index = json_integer_value(value);
  if (index < base || index >= base + count) {
    error_set(err, STATUS_REFUSED, "\"%s\" must be a number from %d to %d", key, base,
              base + count - 1);
    return false;
  }
  *out = (int)(index - base);
  return true;
}
