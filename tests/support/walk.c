/* Reading all of a file: see walk.h. */
#include "support/walk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/gguf.h"
#include "io/npz.h"
#include "io/safetensors_set.h"
#include "sparse/packed.h"
#include "text/tokenizer.h"

/* Where everything read ends up, so that no read is optimized away. */
static volatile double sink;

static void walk_tensor(const struct stored_tensor *t) {
  for (size_t i = 0; i < t->size_bytes; i++) sink += t->data[i];
  if (t->dtype == DTYPE_COUNT || !dtype_is_float(t->dtype)) return;
  int length = dtype_traits(t->dtype)->block_length;
  int64_t count = stored_tensor_count(t);
  float *out = calloc((size_t)count + 1, sizeof *out);
  INVARIANT(out != NULL && count % length == 0);
  dtype_to_f32(t->dtype, t->data, count, out);
  for (int64_t i = 0; i < count; i++) sink += (double)out[i];
  free(out);
}

enum status walk_safetensors(void *ctx, const char *path, struct error *err) {
  struct safetensors *file;
  enum status status = safetensors_open(&file, path, err);
  if (status != STATUS_OK) return status;
  for (size_t i = 0; i < safetensors_size(file); i++) {
    const struct stored_tensor *t = safetensors_at(file, i);
    INVARIANT(safetensors_find(file, t->name) == t);
    walk_tensor(t);
  }
  safetensors_close(file);
  return STATUS_OK;
}

enum status walk_safetensors_set(void *ctx, const char *path, struct error *err) {
  struct safetensors_set *set;
  enum status status = safetensors_set_open(&set, ctx ? ctx : path, err);
  if (status != STATUS_OK) return status;
  for (size_t i = 0; i < safetensors_set_size(set); i++) walk_tensor(safetensors_set_at(set, i));
  safetensors_set_close(set);
  return STATUS_OK;
}

/* Rows of a view that holds; `row` has room for one. */
static void walk_rows(const struct hybrid_matrix *h, const struct quant_matrix *q, int64_t rows,
                      int64_t cols) {
  float *row = calloc((size_t)cols, sizeof *row);
  INVARIANT(row != NULL);
  for (int64_t r = 0; r < rows; r++) {
    if (h)
      hybrid_row(h, r, row);
    else
      quant_row(q, r, row);
    for (int64_t c = 0; c < cols; c++) sink += (double)row[c];
  }
  free(row);
}

/* The matrix of which `layout` is a part, "NAME.layout". */
static enum status walk_matrix(const struct safetensors *file, const struct stored_tensor *layout,
                               struct error *err) {
  const struct stored_tensor *parts[PACKED_QUANT_PARTS];
  char name[512], part[600];
  const int length = (int)(strlen(layout->name) - strlen(packed_suffix[PACKED_LAYOUT]));
  snprintf(name, sizeof name, "%.*s", length < 500 ? length : 500, layout->name);
  for (int i = 0; i < PACKED_QUANT_PARTS; i++) {
    snprintf(part, sizeof part, "%s%s", name, packed_suffix[i]);
    parts[i] = safetensors_find(file, part);
    if (!parts[i] && i < PACKED_PARTS && !packed_is_quant(layout))
      return error_set(err, STATUS_REFUSED, "%s is missing", part);
  }
  struct quant_matrix q = {0};
  struct hybrid_matrix h = {0};
  enum status status;
  if (packed_is_quant(layout)) {
    status = packed_quant_view(&q, name, parts, err);
    if (!status) status = quant_check(&q, name, err);
    if (!status) walk_rows(NULL, &q, q.rows, q.cols);
    quant_release(&q);
    return status;
  }
  status = packed_view(&h, name, parts, err);
  if (!status) status = hybrid_check(&h, name, err);
  if (!status) walk_rows(&h, NULL, h.rows, h.cols);
  hybrid_release(&h);
  return status;
}

enum status walk_packed(void *ctx, const char *path, struct error *err) {
  struct safetensors *file;
  enum status status = safetensors_open(&file, path, err);
  if (status != STATUS_OK) return status;
  for (size_t i = 0; i < safetensors_size(file) && status == STATUS_OK; i++) {
    const struct stored_tensor *t = safetensors_at(file, i);
    const size_t length = strlen(t->name), tail = strlen(packed_suffix[PACKED_LAYOUT]);
    if (length > tail && !strcmp(t->name + length - tail, packed_suffix[PACKED_LAYOUT]))
      status = walk_matrix(file, t, err);
  }
  safetensors_close(file);
  return status;
}

static void walk_array(const struct gguf_value *v) {
  for (uint64_t i = 0; i < v->count; i++) {
    if (v->element_type == GGUF_STRING) {
      struct gguf_string s = gguf_array_string(v, i);
      for (size_t j = 0; j < s.length; j++) sink += s.data[j];
    } else if (v->element_type == GGUF_BOOL) {
      sink += (double)gguf_array_int(v, i);
    } else {
      sink += gguf_array_real(v, i);
    }
  }
}

static void walk_value(const struct gguf *file, const struct gguf_value *v) {
  char key[256];
  snprintf(key, sizeof key, "%.*s", (int)(v->key.length < 200 ? v->key.length : 200), v->key.data);
  int64_t integer;
  double real;
  bool truth;
  struct gguf_string text;
  if (gguf_get_int(file, key, &integer)) sink += (double)integer;
  if (gguf_get_real(file, key, &real)) sink += real;
  if (gguf_get_bool(file, key, &truth)) sink += truth;
  if (gguf_get_string(file, key, &text))
    for (size_t i = 0; i < text.length; i++) sink += text.data[i];
  if (v->type == GGUF_ARRAY) walk_array(v);
}

enum status walk_gguf(void *ctx, const char *path, struct error *err) {
  struct gguf *file;
  enum status status = gguf_open(&file, path, err);
  if (status != STATUS_OK) return status;
  for (size_t i = 0; i < gguf_value_count(file); i++) walk_value(file, gguf_value_at(file, i));
  for (size_t i = 0; i < gguf_tensor_count(file) && status == STATUS_OK; i++) {
    const struct stored_tensor *t;
    status = gguf_tensor_get(file, gguf_tensor_at(file, i)->name, &t, err);
    if (status == STATUS_OK) walk_tensor(t);
  }
  gguf_close(file);
  return status;
}

static enum status walk_array_of_numpy(struct npy_array *a, struct error *err) {
  struct strbuf text = {0};
  enum status status = STATUS_OK;
  for (size_t i = 0; i < a->size_bytes; i++) sink += a->data[i];
  for (int64_t i = 0;
       a->kind != NPY_NUMBERS && status == STATUS_OK && i < npy_array_count(a) && i < 1000; i++)
    status = npy_text(a, i, &text, err);
  strbuf_free(&text);
  npy_array_free(a);
  return status;
}

enum status walk_npz(void *ctx, const char *path, struct error *err) {
  struct npz *file;
  enum status status = npz_open(&file, path, err);
  if (status != STATUS_OK) return status;
  for (size_t i = 0; i < npz_count(file) && status == STATUS_OK; i++) {
    struct npy_array a;
    INVARIANT(npz_find(file, npz_name(file, i)) == i);
    status = npz_read(file, i, &a, err);
    if (status == STATUS_OK) status = walk_array_of_numpy(&a, err);
  }
  npz_close(file);
  return status;
}

enum status walk_npy(void *ctx, const char *path, struct error *err) {
  char *data;
  size_t bytes;
  enum status status = file_read(path, 1 << 24, &data, &bytes, err);
  if (status != STATUS_OK) return status;
  struct npy_array a;
  status = npy_parse((const uint8_t *)data, bytes, path, &a, err);
  free(data);
  return status == STATUS_OK ? walk_array_of_numpy(&a, err) : status;
}

static void walk_json_value(const json_t *value) {
  const char *key;
  size_t index;
  json_t *item;
  bool wrong;
  int64_t integer;
  double real;
  json_object_foreach((json_t *)value, key, item) {
    if (json_get_int(value, key, &integer, &wrong)) sink += (double)integer;
    if (json_get_real(value, key, &real, &wrong)) sink += real;
    walk_json_value(item);
  }
  json_array_foreach((json_t *)value, index, item) walk_json_value(item);
}

/* What was read is also written and read again: that must succeed and give the same value. */
enum status walk_json(void *ctx, const char *path, struct error *err) {
  json_t *value = json_read_file(path, 1 << 20, err);
  if (!value) return err->status;
  walk_json_value(value);
  struct strbuf text = {0};
  json_format(&text, value, 2);
  json_t *again = json_parse(text.data, text.length, "what was written", err);
  INVARIANT(again && json_equal(value, again));
  json_decref(again);
  json_decref(value);
  strbuf_free(&text);
  return STATUS_OK;
}

enum status walk_tokenizer(void *ctx, const char *path, struct error *err) {
  static const char text[] =
      "Hello  w\xc3\xb6rld 123\n\n<s> \xf0\x9f\x98\x80! the of [tag]aaaaaaaaaa";
  const struct chat_message message = {"user", "Hello"};
  struct tokenizer *t;
  enum status status = tokenizer_open(&t, path, err);
  if (status != STATUS_OK) return status;
  struct token_ids ids = {0};
  struct strbuf out = {0};
  if (tokenizer_encode(t, text, sizeof text - 1, 0, &ids, NULL) == STATUS_OK)
    tokenizer_decode(t, ids.items, ids.count, false, &out, NULL);
  tokenizer_chat(t, &message, 1, &out, NULL);
  strbuf_free(&out);
  token_ids_free(&ids);
  tokenizer_close(t);
  return STATUS_OK;
}
