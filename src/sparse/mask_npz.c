/* The reference's mask.npz, both ways. Bits there run most significant first over the flat matrix,
 * without padding rows; here they run least significant first, row by row. */
#include "sparse/mask_npz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "io/npz.h"
#include "sparse/detect.h"

#define SHAPE_SUFFIX ".__shape__"
#define META_NAME "__meta__"

/* --- reading --- */

static bool ends_with(const char *text, const char *end) {
  const size_t length = strlen(text), tail = strlen(end);
  return length >= tail && !strcmp(text + length - tail, end);
}

static int64_t integer_at(const struct npy_array *a, int64_t index) {
  int64_t wide;
  int32_t narrow;
  INVARIANT(a->data != NULL); /* npz_read gives every array that has items its data */
  if (a->dtype == DTYPE_I64) {
    memcpy(&wide, a->data + index * 8, 8);
    return wide;
  }
  memcpy(&narrow, a->data + index * 4, 4);
  return narrow;
}

/* The two integers of NAME.__shape__. */
static enum status read_shape(struct npz *file, const char *name, int64_t shape[2],
                              struct error *err) {
  struct strbuf full = {0};
  struct npy_array a = {0};
  strbuf_printf(&full, "%s%s", name, SHAPE_SUFFIX);
  const size_t index = npz_find(file, strbuf_text(&full));
  enum status status = STATUS_OK;
  if (index == npz_count(file))
    status = error_set(err, STATUS_REFUSED, "%s is missing", strbuf_text(&full));
  else
    status = npz_read(file, index, &a, err);
  if (!status && (a.kind != NPY_NUMBERS || (a.dtype != DTYPE_I64 && a.dtype != DTYPE_I32) ||
                  npy_array_count(&a) != 2))
    status = error_set(err, STATUS_REFUSED, "%s is not two integers", strbuf_text(&full));
  if (!status) {
    shape[0] = integer_at(&a, 0);
    shape[1] = integer_at(&a, 1);
    status = sparse_check_shape(name, shape[0], shape[1], 1, 4, err);
  }
  npy_array_free(&a);
  strbuf_free(&full);
  return status;
}

static void unpack_bits(const uint8_t *packed, struct mask_matrix *m) {
  int64_t flat = 0;
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t c = 0; c < m->cols; c++, flat++)
      if (packed[flat / 8] >> (7 - flat % 8) & 1) mask_set_bit(m, r, c, true);
}

static enum status read_matrix(struct npz *file, size_t index, struct mask_set *set,
                               struct error *err) {
  const char *name = npz_name(file, index);
  int64_t shape[2];
  struct npy_array a = {0};
  struct mask_matrix m = {0};
  if (strlen(name) > MASK_NAME_MAX)
    return error_set(err, STATUS_REFUSED, "a matrix's name is longer than %d bytes", MASK_NAME_MAX);
  enum status status = read_shape(file, name, shape, err);
  if (status) return status;
  status = npz_read(file, index, &a, err);
  if (status) return status;
  const size_t bytes = (size_t)(shape[0] * shape[1] + 7) / 8;
  if (a.kind != NPY_NUMBERS || a.dtype != DTYPE_U8 || a.size_bytes != bytes)
    status = error_set(err, STATUS_REFUSED, "%s is not %zu bytes of packed bits", name, bytes);
  else
    status = mask_matrix_init_bits(&m, name, shape[0], shape[1], err);
  if (!status) {
    unpack_bits(a.data, &m);
    status = mask_set_add(set, &m, err);
  }
  mask_matrix_free(&m);
  npy_array_free(&a);
  return status;
}

static enum status read_meta(struct npz *file, size_t index, struct mask_set *set,
                             struct error *err) {
  struct npy_array a = {0};
  struct strbuf text = {0};
  enum status status = npz_read(file, index, &a, err);
  if (status) return status;
  status = npy_text(&a, 0, &text, err);
  if (!status) status = mask_set_meta(set, "reference meta", strbuf_text(&text), err);
  npy_array_free(&a);
  strbuf_free(&text);
  return status;
}

/* Replaces the bit masks by hybrid ones when all fit tiles of this size. */
static enum status try_tile(struct mask_set *set, int64_t tile, bool *fits, struct error *err) {
  enum status status = STATUS_OK;
  struct mask_matrix *found = mem_alloc(set->count, sizeof *found, err);
  if (!found) return STATUS_FAILED;
  *fits = true;
  for (size_t i = 0; i < set->count && *fits && !status; i++)
    status = detect_hybrid(&set->items[i], tile, tile, &found[i], fits, err);
  for (size_t i = 0; i < set->count; i++) {
    if (*fits && !status) {
      struct mask_matrix bits = set->items[i];
      set->items[i] = found[i];
      found[i] = bits;
    }
    mask_matrix_free(&found[i]);
  }
  mem_free(found);
  return status;
}

static enum status read_all(struct npz *file, struct mask_set *set, struct error *err) {
  enum status status = STATUS_OK;
  for (size_t i = 0; i < npz_count(file) && !status; i++) {
    const char *name = npz_name(file, i);
    if (!strcmp(name, META_NAME))
      status = read_meta(file, i, set, err);
    else if (!ends_with(name, SHAPE_SUFFIX))
      status = read_matrix(file, i, set, err);
  }
  if (!status && !set->count) status = error_set(err, STATUS_REFUSED, "no masks in this archive");
  bool fits = false;
  for (int64_t tile = 128; tile >= 4 && !fits && !status; tile /= 2)
    status = try_tile(set, tile, &fits, err);
  return status;
}

enum status mask_npz_load(struct mask_set *set, const char *path, struct error *err) {
  struct npz *file = NULL;
  *set = (struct mask_set){0};
  enum status status = npz_open(&file, path, err);
  if (status) return status;
  status = read_all(file, set, err);
  if (status) {
    mask_set_free(set);
    error_prefix(err, "%s", path);
  }
  npz_close(file);
  return status;
}

/* --- writing --- */

static enum status fill_bits(void *ctx, void *out, struct error *err) {
  const struct mask_matrix *m = ctx;
  uint8_t *packed = out;
  float *row = mem_alloc((size_t)m->cols, sizeof *row, err);
  if (!row) return STATUS_FAILED;
  memset(packed, 0, (size_t)(m->rows * m->cols + 7) / 8);
  int64_t flat = 0;
  for (int64_t r = 0; r < m->rows; r++) {
    mask_row(m, r, row);
    for (int64_t c = 0; c < m->cols; c++, flat++)
      packed[flat / 8] |= (uint8_t)((row[c] != 0) << (7 - flat % 8));
  }
  mem_free(row);
  return STATUS_OK;
}

/* NAME.__shape__ is written straight from the mask's own two members. */
_Static_assert(offsetof(struct mask_matrix, cols) == offsetof(struct mask_matrix, rows) + 8,
               "rows and cols are neighbours");

enum status mask_npz_save(const struct mask_set *set, const char *path, const char *meta_json,
                          struct error *err) {
  enum status status = STATUS_FAILED;
  struct npz_source *arrays = mem_alloc(2 * set->count + 1, sizeof *arrays, err);
  char **names = mem_alloc(set->count, sizeof *names, err);
  if (!arrays || !names) goto out;
  size_t count = 0;
  for (size_t i = 0; i < set->count; i++) {
    struct mask_matrix *m = &set->items[i];
    struct strbuf name = {0};
    strbuf_printf(&name, "%s%s", m->name, SHAPE_SUFFIX);
    names[i] = name.data;
    arrays[count++] = (struct npz_source){.name = m->name,
                                          .dtype = DTYPE_U8,
                                          .rank = 1,
                                          .shape = {(m->rows * m->cols + 7) / 8},
                                          .fill = fill_bits,
                                          .ctx = m};
    arrays[count++] = (struct npz_source){
        .name = name.data, .dtype = DTYPE_I64, .rank = 1, .shape = {2}, .data = &m->rows};
  }
  arrays[count++] = (struct npz_source){.name = META_NAME, .text = meta_json};
  status = npz_write(path, arrays, count, err);
out:
  for (size_t i = 0; names && i < set->count; i++) free(names[i]);
  mem_free(names);
  mem_free(arrays);
  return status;
}
