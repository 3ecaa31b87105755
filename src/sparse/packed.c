/* Packed linears as safetensors hold them: from their tensors to a hybrid or a quantized matrix.
 * Owns nothing. The surprising thing: sizes follow from the layout and the tile map alone, so that
 * a lying file is found out before a single value is touched. */
#include "sparse/packed.h"

#include <string.h>

const char *const packed_suffix[PACKED_QUANT_PARTS] = {".layout", ".dense",  ".values", ".tile_map",
                                                       ".codes",  ".scales", ".mins"};

bool packed_is_quant(const struct stored_tensor *layout) {
  return layout->size_bytes == PACKED_QUANT_LAYOUT_COUNT * sizeof(int64_t);
}

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
  int64_t layout[PACKED_LAYOUT_COUNT];
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

/* --- quantized ones --- */

static enum status read_quant_layout(struct quant_matrix *out, const char *name,
                                     const struct stored_tensor *t, struct error *err) {
  int64_t layout[PACKED_QUANT_LAYOUT_COUNT];
  enum status status = check_part(name, PACKED_LAYOUT, t, DTYPE_I64, sizeof layout, err);
  if (status) return status;
  memcpy(layout, t->data, sizeof layout);
  if (layout[4] != 8 && layout[4] != 4)
    return error_set(err, STATUS_REFUSED,
                     "%s: integers of %lld bits are not read; 8 and 4 bits are", name,
                     (long long)layout[4]);
  *out = (struct quant_matrix){.rows = layout[0],
                               .cols = layout[1],
                               .tile_rows = layout[2],
                               .tile_cols = layout[3],
                               .type = layout[4] == 8 ? QUANT_I8 : QUANT_I4,
                               .group = layout[5]};
  return sparse_check_shape(name, out->rows, out->cols, out->tile_rows, out->tile_cols, err);
}

/* Which tensors there are must fit together: a tile map with 2:4 tiles, minimums with nibbles. */
static enum status check_presence(const struct quant_matrix *q, const char *name,
                                  const struct stored_tensor *const parts[PACKED_QUANT_PARTS],
                                  struct error *err) {
  const bool tiled = parts[PACKED_TILE_MAP] != NULL;
  for (int i = 0; i < PACKED_QUANT_PARTS; i++) {
    const bool of_tiles = i == PACKED_TILE_MAP || i == PACKED_VALUES || i == PACKED_CODES;
    if (i == PACKED_MINS) continue;
    if (!parts[i] && (tiled || !of_tiles))
      return error_set(err, STATUS_REFUSED, "%s%s is missing", name, packed_suffix[i]);
    if (parts[i] && !tiled && of_tiles)
      return error_set(err, STATUS_REFUSED, "%s%s is there without a tile map", name,
                       packed_suffix[i]);
  }
  if (parts[PACKED_MINS] && (q->type != QUANT_I4 || !q->group))
    return error_set(err, STATUS_REFUSED,
                     "%s.mins: minimums are read for groups of int4, not for these integers", name);
  return STATUS_OK;
}

static enum status check_quant_parts(const struct quant_matrix *q, const char *name,
                                     const struct stored_tensor *const parts[PACKED_QUANT_PARTS],
                                     struct error *err) {
  const enum dtype integers = q->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  const enum dtype scales = q->group ? DTYPE_F16 : DTYPE_F32;
  struct quant_sizes sizes;
  enum status status = quant_measure(q, &sizes, err);
  if (status) return error_prefix(err, "%s", name);
  const size_t count = (size_t)sizes.scales;
  const struct {
    enum packed_part part;
    enum dtype dtype;
    size_t bytes;
  } wanted[] = {{PACKED_DENSE, integers, sizes.dense_bytes},
                {PACKED_VALUES, integers, sizes.values_bytes},
                {PACKED_CODES, DTYPE_U8, sizes.codes_bytes},
                {PACKED_SCALES, scales, count * (q->group ? 2 : 4)},
                {PACKED_MINS, DTYPE_F16, 2 * count}};
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !status; i++)
    if (parts[wanted[i].part])
      status = check_part(name, wanted[i].part, parts[wanted[i].part], wanted[i].dtype,
                          wanted[i].bytes, err);
  return status;
}

static const void *part_data(const struct stored_tensor *part) { return part ? part->data : NULL; }

enum status packed_quant_view(struct quant_matrix *out, const char *name,
                              const struct stored_tensor *const parts[PACKED_QUANT_PARTS],
                              struct error *err) {
  *out = (struct quant_matrix){0};
  enum status status = read_quant_layout(out, name, parts[PACKED_LAYOUT], err);
  if (!status) status = check_presence(out, name, parts, err);
  if (status) return status;
  const struct hybrid_matrix h = quant_tiles(out);
  if (parts[PACKED_TILE_MAP])
    status = check_part(name, PACKED_TILE_MAP, parts[PACKED_TILE_MAP], DTYPE_U8,
                        (size_t)(hybrid_tile_rows(&h) * hybrid_tile_cols(&h) + 7) / 8, err);
  if (status) return status;
  out->tile_map = part_data(parts[PACKED_TILE_MAP]);
  status = check_quant_parts(out, name, parts, err);
  if (status) return status;
  out->dense = part_data(parts[PACKED_DENSE]);
  out->values = part_data(parts[PACKED_VALUES]);
  out->codes = part_data(parts[PACKED_CODES]);
  out->mins = part_data(parts[PACKED_MINS]);
  if (out->group)
    out->scales = part_data(parts[PACKED_SCALES]);
  else
    out->row_scales = part_data(parts[PACKED_SCALES]);
  return quant_index(out, err);
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
  if (!json_get_int(sparsity, "version", &version, NULL) ||
      (version != PACKED_VERSION && version != PACKED_VERSION_QUANT))
    return error_set(err, STATUS_REFUSED,
                     "%s: sparsity_config has version %lld; this program reads versions %d and %d",
                     path, (long long)version, PACKED_VERSION, PACKED_VERSION_QUANT);
  return STATUS_OK;
}
