/* Packed linears as safetensors hold them: from five tensors to a hybrid matrix. Owns nothing.
 * The surprising thing: sizes follow from the layout and the tile map alone, so that a lying file
 * is found out before a single value is touched. */
#include "sparse/packed.h"

#include <string.h>

const char *const packed_suffix[PACKED_PARTS] = {".layout", ".dense", ".values", ".tile_map",
                                                 ".codes"};

static enum status check_part(const char *name, enum packed_part part,
                              const struct stored_tensor *t, enum dtype dtype, size_t bytes,
                              struct error *err) {
  if (t->dtype != dtype)
    return error_set(err, STATUS_REFUSED, "%s%s is %s, not %s; pack the model again", name,
                     packed_suffix[part], dtype_traits(t->dtype)->name, dtype_traits(dtype)->name);
  if (t->size_bytes != bytes)
    return error_set(err, STATUS_REFUSED,
                     "%s%s has %zu bytes where the tile map asks for %zu; the file is damaged",
                     name, packed_suffix[part], t->size_bytes, bytes);
  const size_t align = (size_t)dtype_traits(dtype)->block_bytes;
  if (bytes && (uintptr_t)t->data % align)
    return error_set(err, STATUS_REFUSED,
                     "%s%s does not start at a multiple of %zu bytes; write the file again with "
                     "wider types first",
                     name, packed_suffix[part], align);
  return STATUS_OK;
}

static enum status read_layout(struct hybrid_matrix *out, const char *name,
                               const struct stored_tensor *t, struct error *err) {
  int64_t layout[4];
  enum status status = check_part(name, PACKED_LAYOUT, t, DTYPE_I64, sizeof layout, err);
  if (status) return status;
  memcpy(layout, t->data, sizeof layout);
  status = sparse_check_shape(name, layout[0], layout[1], layout[2], layout[3], err);
  if (status) return status;
  out->rows = layout[0];
  out->cols = layout[1];
  out->tile_rows = layout[2];
  out->tile_cols = layout[3];
  return STATUS_OK;
}

enum status packed_view(struct hybrid_matrix *out, const char *name,
                        const struct stored_tensor *const parts[PACKED_PARTS], struct error *err) {
  *out = (struct hybrid_matrix){0};
  enum status status = read_layout(out, name, parts[PACKED_LAYOUT], err);
  if (status) return status;
  const int64_t tiles = hybrid_tile_rows(out) * hybrid_tile_cols(out);
  status = check_part(name, PACKED_TILE_MAP, parts[PACKED_TILE_MAP], DTYPE_U8,
                      (size_t)(tiles + 7) / 8, err);
  if (status) return status;
  out->tile_map = parts[PACKED_TILE_MAP]->data;
  out->dtype = parts[PACKED_VALUES]->dtype;
  if (!dtype_is_native(out->dtype))
    return error_set(err, STATUS_REFUSED, "%s: packed values of type %s are not supported", name,
                     dtype_traits(out->dtype)->name);
  struct hybrid_sizes sizes;
  status = hybrid_measure(out->rows, out->cols, out->tile_rows, out->tile_cols, out->dtype,
                          out->tile_map, &sizes, err);
  if (status) return status;
  status = check_part(name, PACKED_DENSE, parts[PACKED_DENSE], out->dtype, sizes.dense_bytes, err);
  if (status) return status;
  status =
      check_part(name, PACKED_VALUES, parts[PACKED_VALUES], out->dtype, sizes.values_bytes, err);
  if (status) return status;
  status = check_part(name, PACKED_CODES, parts[PACKED_CODES], DTYPE_U8, sizes.codes_bytes, err);
  if (status) return status;
  out->dense = parts[PACKED_DENSE]->data;
  out->values = parts[PACKED_VALUES]->data;
  out->codes = parts[PACKED_CODES]->data;
  return hybrid_index(out, err);
}

enum status packed_config_check(const json_t *config, const char *path, bool *present,
                                struct error *err) {
  const json_t *sparsity = json_object_get(config, "sparsity_config");
  *present = json_is_object(sparsity);
  if (!sparsity || json_is_null(sparsity)) return STATUS_OK;
  const char *format = *present ? json_get_string(sparsity, "format") : NULL;
  if (!format || strcmp(format, PACKED_FORMAT) != 0)
    return error_set(err, STATUS_REFUSED,
                     "%s: sparsity_config is of format \"%s\"; only " PACKED_FORMAT " is read",
                     path, format ? format : "unknown");
  int64_t version = -1;
  if (!json_get_int(sparsity, "version", &version, NULL) || version != PACKED_VERSION)
    return error_set(err, STATUS_REFUSED,
                     "%s: sparsity_config has version %lld; this program reads version %d", path,
                     (long long)version, PACKED_VERSION);
  return STATUS_OK;
}
