/* Mask files: a mask set as safetensors, byte for byte as docs/FORMAT.md describes.
 *
 * The header's "matrix:NAME" entries say which matrices there are and how they are shaped; the
 * tensors hold the bits. Everything is checked against them before it is used. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/number.h"
#include "base/strbuf.h"
#include "io/npz.h"
#include "sparse/mask_npz.h"

#define MASK_FORMAT "tessera-mask"
#define MASK_VERSION "1"

/* --- writing --- */

/* The tensors of a file in the making, with the memory behind their names and tile maps. */
struct mask_output {
  struct tensor_source *tensors;
  char **names;
  uint8_t **maps;
  size_t count, map_count;
};

static enum status output_init(struct mask_output *out, const struct mask_set *set,
                               struct error *err) {
  /* at most three tensors per matrix */
  out->tensors = mem_alloc(3 * set->count, sizeof *out->tensors, err);
  out->names = mem_alloc(3 * set->count, sizeof *out->names, err);
  out->maps = mem_alloc(set->count, sizeof *out->maps, err);
  return out->tensors && out->names && out->maps ? STATUS_OK : STATUS_FAILED;
}

static void output_free(struct mask_output *out) {
  for (size_t i = 0; i < out->count; i++) free(out->names[i]);
  for (size_t i = 0; i < out->map_count; i++) mem_free(out->maps[i]);
  mem_free(out->tensors);
  mem_free(out->names);
  mem_free(out->maps);
}

static void output_add(struct mask_output *out, const char *name, const char *suffix,
                       enum dtype dtype, int rank, int64_t rows, int64_t cols, const void *data) {
  struct strbuf text = {0};
  strbuf_printf(&text, "%s%s", name, suffix);
  out->names[out->count] = text.data;
  out->tensors[out->count++] = (struct tensor_source){
      .name = text.data, .dtype = dtype, .rank = rank, .shape = {rows, cols}, .data = data};
}

static enum status add_tile_map(struct mask_output *out, const struct mask_matrix *m,
                                struct error *err) {
  const int64_t tiles = mask_tile_count(m);
  uint8_t *map = mem_alloc((size_t)(tiles + 7) / 8, 1, err);
  if (!map) return STATUS_FAILED;
  out->maps[out->map_count++] = map;
  for (int64_t t = 0; t < tiles; t++) map[t / 8] |= (uint8_t)((m->tiles[t] != 0) << (t % 8));
  output_add(out, m->name, ".tile_map", DTYPE_U8, 1, (tiles + 7) / 8, 0, map);
  return STATUS_OK;
}

static enum status output_fill(struct mask_output *out, const struct mask_set *set,
                               struct error *err) {
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    if (m->tile_scores)
      output_add(out, m->name, ".tile_scores", DTYPE_F32, 2, mask_tile_row_count(m),
                 mask_tile_col_count(m), m->tile_scores);
  }
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    enum status status = mask_has_tiles(m) ? add_tile_map(out, m, err) : STATUS_OK;
    if (status) return status;
    if (m->kind == MASK_HYBRID)
      output_add(out, m->name, ".codes", DTYPE_U8, 2, m->rows, mask_code_stride(m), m->codes);
    else
      output_add(out, m->name, ".bits", DTYPE_U8, 2, m->rows, mask_bit_stride(m), m->bits);
  }
  return STATUS_OK;
}

static json_t *describe(const struct mask_set *set) {
  json_t *header = json_pack("{s:s, s:s}", "format", MASK_FORMAT, "version", MASK_VERSION);
  struct strbuf key = {0}, value = {0};
  for (size_t i = 0; i < set->meta_count; i++)
    json_object_set_new(header, set->meta[i].key, json_string(set->meta[i].value));
  for (size_t i = 0; i < set->count; i++) {
    const struct mask_matrix *m = &set->items[i];
    strbuf_clear(&key);
    strbuf_clear(&value);
    strbuf_printf(&key, "matrix:%s", m->name);
    if (m->kind == MASK_BITS)
      strbuf_printf(&value, "bits %" PRId64 " %" PRId64, m->rows, m->cols);
    else
      strbuf_printf(&value, "%s %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64,
                    m->kind == MASK_HYBRID ? "hybrid" : "tiled", m->rows, m->cols, m->tile_rows,
                    m->tile_cols);
    if (m->kind == MASK_TILED) strbuf_printf(&value, " %d %d", m->keep, m->of);
    json_object_set_new(header, strbuf_text(&key), json_string(strbuf_text(&value)));
  }
  strbuf_free(&key);
  strbuf_free(&value);
  return header;
}

enum status mask_save(const struct mask_set *set, const char *path, struct error *err) {
  struct mask_output out = {0};
  json_t *header = describe(set);
  enum status status = output_init(&out, set, err);
  if (status) goto out;
  status = output_fill(&out, set, err);
  if (status) goto out;
  status = safetensors_write(path, out.tensors, out.count, header, err);
out:
  json_decref(header);
  output_free(&out);
  return status;
}

/* --- reading --- */

/* A file being read, and how many of its tensors a matrix has claimed. */
struct mask_input {
  const struct safetensors *file;
  size_t claimed;
};

/* The tensor `name``suffix` of exactly these properties. `optional`: *out is NULL when absent. */
static enum status claim(struct mask_input *in, const char *name, const char *suffix,
                         enum dtype dtype, size_t bytes, bool optional,
                         const struct stored_tensor **out, struct error *err) {
  char full[MASK_NAME_MAX + 32];
  snprintf(full, sizeof full, "%s%s", name, suffix);
  *out = safetensors_find(in->file, full);
  if (!*out) return optional ? STATUS_OK : error_set(err, STATUS_REFUSED, "%s is missing", full);
  in->claimed++;
  if ((*out)->dtype != dtype || (*out)->size_bytes != bytes)
    return error_set(err, STATUS_REFUSED, "%s has %zu bytes of %s where %zu of %s belong", full,
                     (*out)->size_bytes, dtype_traits((*out)->dtype)->name, bytes,
                     dtype_traits(dtype)->name);
  return STATUS_OK;
}

static enum status check_codes(const struct mask_matrix *m, struct error *err) {
  const int64_t groups = mask_group_count(m), stride = mask_code_stride(m);
  for (int64_t r = 0; r < m->rows; r++) {
    for (int64_t g = 0; g < groups; g++)
      if (!sparse_code_fits(mask_code(m, r, g), mask_group_width(m, g)))
        return error_set(err, STATUS_REFUSED, "%s: row %lld, group %lld: %u is no 2:4 code",
                         m->name, (long long)r, (long long)g, mask_code(m, r, g));
    if (groups % 2 && m->codes[r * stride + stride - 1] >> 4)
      return error_set(err, STATUS_REFUSED, "%s: row %lld: padding is not zero", m->name,
                       (long long)r);
  }
  return STATUS_OK;
}

static enum status check_bit_padding(const struct mask_matrix *m, struct error *err) {
  const int64_t stride = mask_bit_stride(m), rest = m->cols % 8;
  for (int64_t r = 0; rest && r < m->rows; r++)
    if (m->bits[r * stride + stride - 1] >> rest)
      return error_set(err, STATUS_REFUSED, "%s: row %lld: padding is not zero", m->name,
                       (long long)r);
  return STATUS_OK;
}

/* Tile map, groups and scores of a matrix that was described as one with tiles: numbers are rows,
 * cols, tile rows and tile cols, for a tiled mask n and m too. */
static enum status load_tiles(struct mask_input *in, struct mask_matrix *m, const char *name,
                              enum mask_kind kind, const int64_t *numbers, struct error *err) {
  const bool hybrid = kind == MASK_HYBRID;
  enum status status =
      sparse_check_shape(name, numbers[0], numbers[1], numbers[2], numbers[3], err);
  if (!status && !hybrid)
    status = sparse_check_pattern(name, numbers[4], numbers[5], numbers[3], err);
  if (status) return status;
  /* The sizes in the file bound what is allocated, so they come first. */
  const struct mask_matrix plan = {
      .rows = numbers[0], .cols = numbers[1], .tile_rows = numbers[2], .tile_cols = numbers[3]};
  const int64_t tiles = mask_tile_count(&plan);
  const struct stored_tensor *map, *groups, *scores;
  status = claim(in, name, ".tile_map", DTYPE_U8, (size_t)(tiles + 7) / 8, false, &map, err);
  if (!status)
    status = claim(in, name, hybrid ? ".codes" : ".bits", DTYPE_U8, mask_groups_bytes(&plan), false,
                   &groups, err);
  if (!status)
    status = claim(in, name, ".tile_scores", DTYPE_F32, (size_t)tiles * sizeof(float), true,
                   &scores, err);
  if (status) return status;
  status =
      hybrid ? mask_matrix_init_hybrid(m, name, numbers[0], numbers[1], numbers[2], numbers[3], err)
             : mask_matrix_init_tiled(m, name, numbers[0], numbers[1], numbers[2], numbers[3],
                                      (int)numbers[4], (int)numbers[5], err);
  if (status) return status;
  for (int64_t t = 0; t < tiles; t++) m->tiles[t] = map->data[t / 8] >> (t % 8) & 1;
  if (tiles % 8 && map->data[tiles / 8] >> (tiles % 8))
    return error_set(err, STATUS_REFUSED, "%s: padding of the tile map is not zero", name);
  memcpy(mask_groups(m), groups->data, groups->size_bytes);
  if (scores) {
    status = mask_matrix_add_scores(m, err);
    if (status) return status;
    memcpy(m->tile_scores, scores->data, scores->size_bytes);
  }
  if (hybrid) return check_codes(m, err);
  status = check_bit_padding(m, err);
  return status ? status : mask_check_groups(m, m->keep, m->of, err);
}

static enum status load_bits(struct mask_input *in, struct mask_matrix *m, const char *name,
                             const int64_t shape[2], struct error *err) {
  enum status status = sparse_check_shape(name, shape[0], shape[1], 1, 4, err);
  if (status) return status;
  const struct mask_matrix plan = {.rows = shape[0], .cols = shape[1]};
  const struct stored_tensor *bits;
  status = claim(in, name, ".bits", DTYPE_U8, (size_t)(plan.rows * mask_bit_stride(&plan)), false,
                 &bits, err);
  if (status) return status;
  status = mask_matrix_init_bits(m, name, shape[0], shape[1], err);
  if (status) return status;
  memcpy(m->bits, bits->data, bits->size_bytes);
  return check_bit_padding(m, err);
}

/* KIND and `count` numbers, one space before each. */
static bool parse_description(const char *text, const char *kind, int64_t *numbers, int count) {
  const size_t length = strlen(kind);
  if (strncmp(text, kind, length) != 0) return false;
  text += length;
  for (int i = 0; i < count; i++)
    if (*text++ != ' ' || !number_take(&text, 9999999999, &numbers[i])) return false;
  return !*text;
}

static enum status load_matrix(struct mask_input *in, struct mask_set *set, const char *name,
                               const char *description, struct error *err) {
  int64_t numbers[6];
  enum status status;
  struct mask_matrix m = {0};
  if (!*name || strlen(name) > MASK_NAME_MAX)
    return error_set(err, STATUS_REFUSED, "a matrix's name has %zu bytes; 1 to %d are allowed",
                     strlen(name), MASK_NAME_MAX);
  if (parse_description(description, "hybrid", numbers, 4))
    status = load_tiles(in, &m, name, MASK_HYBRID, numbers, err);
  else if (parse_description(description, "tiled", numbers, 6))
    status = load_tiles(in, &m, name, MASK_TILED, numbers, err);
  else if (parse_description(description, "bits", numbers, 2))
    status = load_bits(in, &m, name, numbers, err);
  else
    status = error_set(err, STATUS_REFUSED, "%s is described as \"%.60s\", which is not known",
                       name, description);
  if (!status) status = mask_set_add(set, &m, err);
  mask_matrix_free(&m);
  return status;
}

static enum status check_version(const struct safetensors *file, struct error *err) {
  const char *format = safetensors_metadata(file, "format");
  const char *version = safetensors_metadata(file, "version");
  if (!format || strcmp(format, MASK_FORMAT) != 0)
    return error_set(err, STATUS_REFUSED,
                     "not a mask file: its header does not say \"format\": \"" MASK_FORMAT "\"");
  if (!version || strcmp(version, MASK_VERSION) != 0)
    return error_set(err, STATUS_REFUSED,
                     "a mask file of version %.20s; this program reads version " MASK_VERSION,
                     version ? version : "unknown");
  return STATUS_OK;
}

static enum status load_header(struct mask_input *in, struct mask_set *set, struct error *err) {
  enum status status = check_version(in->file, err);
  const char *key;
  json_t *value;
  json_t *header = (json_t *)(uintptr_t)safetensors_metadata_all(in->file);
  if (status) return status;
  json_object_foreach(header, key, value) {
    const char *text = json_string_value(value);
    if (!text) return error_set(err, STATUS_REFUSED, "metadata \"%.60s\" is not a string", key);
    if (!strncmp(key, "matrix:", 7))
      status = load_matrix(in, set, key + 7, text, err);
    else if (!mask_key_reserved(key))
      status = mask_set_meta(set, key, text, err);
    if (status) return status;
  }
  if (in->claimed != safetensors_size(in->file))
    return error_set(err, STATUS_REFUSED, "%zu tensors belong to no matrix",
                     safetensors_size(in->file) - in->claimed);
  return STATUS_OK;
}

enum status mask_load(struct mask_set *set, const char *path, struct error *err) {
  struct safetensors *file = NULL;
  if (npz_recognise(path)) return mask_npz_load(set, path, err);
  *set = (struct mask_set){0};
  enum status status = safetensors_open(&file, path, err);
  if (status) return status;
  struct mask_input in = {.file = file};
  status = load_header(&in, set, err);
  if (status) {
    mask_set_free(set);
    error_prefix(err, "%s", path);
  }
  safetensors_close(file);
  return status;
}
