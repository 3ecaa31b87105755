/* The packed directory. Weights of a masked linear are expanded once, packed, and written as two
 * neighbouring tensors; its codes come later in the file and need no weights. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"
#include "sparse/packed.h"

struct packed_linear {
  const struct model *model;
  int site;
  const struct mask_matrix *mask;
  enum dtype dtype;
  int64_t layout[4];
  uint8_t *tile_map;
  struct hybrid_sizes sizes;
  uint8_t *dense, *values; /* between the writing of .dense and that of .values */
  char names[PACKED_PARTS][MASK_NAME_MAX + 16];
};

struct packing {
  const struct model *model;
  const struct mask_set *masks;
  enum dtype dtype;
  struct packed_linear *linears; /* (linear_count) */
  struct weight_stream *streams; /* (tensors) */
  struct tensor_source *sources;
  size_t linear_count, source_count;
};

/* --- the tensors of one linear --- */

static enum status pack_weights(struct packed_linear *p, struct error *err) {
  const size_t count = (size_t)p->mask->rows * (size_t)p->mask->cols;
  float *w = mem_alloc(count, sizeof *w, err);
  p->dense = mem_alloc(p->sizes.dense_bytes, 1, err);
  p->values = mem_alloc(p->sizes.values_bytes, 1, err);
  const bool had_memory = w && p->dense && p->values;
  if (had_memory) {
    model_site_expand(p->model, p->site, w);
    hybrid_pack(p->mask, w, p->dtype, NULL, p->dense, p->values, NULL);
  }
  mem_free(w);
  return had_memory ? STATUS_OK : STATUS_FAILED;
}

static enum status produce_dense(void *ctx, struct file_writer *out, struct error *err) {
  struct packed_linear *p = ctx;
  enum status status = pack_weights(p, err);
  if (!status) status = file_writer_put(out, p->dense, p->sizes.dense_bytes, err);
  mem_free(p->dense);
  p->dense = NULL;
  return status;
}

static enum status produce_values(void *ctx, struct file_writer *out, struct error *err) {
  struct packed_linear *p = ctx;
  INVARIANT(p->values != NULL);
  enum status status = file_writer_put(out, p->values, p->sizes.values_bytes, err);
  mem_free(p->values);
  p->values = NULL;
  return status;
}

static enum status produce_codes(void *ctx, struct file_writer *out, struct error *err) {
  struct packed_linear *p = ctx;
  uint8_t *codes = mem_alloc(p->sizes.codes_bytes, 1, err);
  if (!codes) return STATUS_FAILED;
  hybrid_pack(p->mask, NULL, p->dtype, NULL, NULL, NULL, codes);
  enum status status = file_writer_put(out, codes, p->sizes.codes_bytes, err);
  mem_free(codes);
  return status;
}

static enum status linear_init(struct packed_linear *p, const struct packing *k, int site,
                               const struct mask_matrix *mask, struct error *err) {
  *p = (struct packed_linear){.model = k->model,
                              .site = site,
                              .mask = mask,
                              .dtype = k->dtype,
                              .layout = {mask->rows, mask->cols, mask->tile_rows, mask->tile_cols}};
  p->tile_map = mem_alloc((size_t)(mask_tile_count(mask) + 7) / 8, 1, err);
  if (!p->tile_map) return STATUS_FAILED;
  hybrid_pack(mask, NULL, k->dtype, p->tile_map, NULL, NULL, NULL);
  for (int i = 0; i < PACKED_PARTS; i++)
    snprintf(p->names[i], sizeof p->names[i], "%s%s", mask->name, packed_suffix[i]);
  return hybrid_measure(mask->rows, mask->cols, mask->tile_rows, mask->tile_cols, k->dtype,
                        p->tile_map, &p->sizes, err);
}

/* --- the list of all tensors, in the order of the file --- */

static void add_source(struct packing *k, struct tensor_source source) {
  k->sources[k->source_count++] = source;
}

static void add_vector(struct packing *k, struct packed_linear *p, enum packed_part part,
                       enum dtype dtype, size_t count, const void *data,
                       enum status (*produce)(void *, struct file_writer *, struct error *)) {
  add_source(k, (struct tensor_source){.name = p->names[part],
                                       .dtype = dtype,
                                       .rank = 1,
                                       .shape = {(int64_t)count},
                                       .data = data,
                                       .produce = produce,
                                       .ctx = p});
}

static enum status init_linears(struct packing *k, struct error *err) {
  for (int i = 0; i < model_site_count(k->model); i++) {
    const struct mask_matrix *mask = mask_set_find(k->masks, model_site(k->model, i)->name);
    if (!mask) continue;
    enum status status = linear_init(&k->linears[k->linear_count++], k, i, mask, err);
    if (status) return status;
  }
  return STATUS_OK;
}

static struct packed_linear *linear_of(struct packing *k, int site) {
  for (size_t i = 0; site >= 0 && i < k->linear_count; i++)
    if (k->linears[i].site == site) return &k->linears[i];
  return NULL;
}

static void list_sources(struct packing *k) {
  for (size_t i = 0; i < k->linear_count; i++)
    add_vector(k, &k->linears[i], PACKED_LAYOUT, DTYPE_I64, 4, k->linears[i].layout, NULL);
  for (int i = 0; i < model_tensor_count(k->model); i++) {
    const struct model_tensor *t = model_tensor(k->model, i);
    struct packed_linear *p = linear_of(k, t->site);
    if (p) {
      add_vector(k, p, PACKED_DENSE, k->dtype, (size_t)p->sizes.dense_count, NULL, produce_dense);
      add_vector(k, p, PACKED_VALUES, k->dtype, (size_t)p->sizes.values_count, NULL,
                 produce_values);
      continue;
    }
    k->streams[i] = (struct weight_stream){.model = k->model, .tensor = i, .dtype = k->dtype};
    add_source(k, weight_source(&k->streams[i], t->name));
  }
  for (size_t i = 0; i < k->linear_count; i++) {
    struct packed_linear *p = &k->linears[i];
    add_vector(k, p, PACKED_TILE_MAP, DTYPE_U8, p->sizes.map_bytes, p->tile_map, NULL);
    add_vector(k, p, PACKED_CODES, DTYPE_U8, p->sizes.codes_bytes, NULL, produce_codes);
  }
}

static void packing_free(struct packing *k) {
  for (size_t i = 0; i < k->linear_count; i++) {
    mem_free(k->linears[i].tile_map);
    mem_free(k->linears[i].dense);
    mem_free(k->linears[i].values);
  }
  mem_free(k->linears);
  mem_free(k->streams);
  mem_free(k->sources);
}

static enum status write_weights(struct packing *k, const char *directory, struct error *err) {
  json_t *metadata = json_pack("{s:s}", "format", "pt");
  char *path = path_join(directory, "model.safetensors");
  list_sources(k);
  enum status status = safetensors_write(path, k->sources, k->source_count, metadata, err);
  free(path);
  json_decref(metadata);
  return status;
}

static enum status write_directory(struct packing *k, const char *directory, struct error *err) {
  const double density = weights_density(k->model, k->masks);
  struct strbuf text = {0};
  json_t *config = directory_config(k->model, weights_torch_name(k->dtype));
  json_object_set_new(
      config, "sparsity_config",
      json_pack("{s:s, s:i, s:f, s:I}", "format", PACKED_FORMAT, "version", PACKED_VERSION,
                "density", density, "matrices", (json_int_t)k->linear_count));
  strbuf_printf(&text,
                "Packed with tessera: %.4f of the weights of the linear layers are kept. Pruned "
                "layers are stored as dense and 2:4 tiles, which tessera reads; `tessera export` "
                "makes an ordinary checkpoint of them.\n",
                density);
  enum status status = write_weights(k, directory, err);
  if (!status) status = directory_write(k->model, config, strbuf_text(&text), directory, err);
  json_decref(config);
  strbuf_free(&text);
  return status;
}

enum status convert_pack(const struct model *model, const struct mask_set *masks, const char *out,
                         enum dtype dtype, bool replace, struct error *err) {
  const size_t tensors = (size_t)model_tensor_count(model);
  struct packing k = {.model = model, .masks = masks, .dtype = dtype};
  struct dir_writer writer;
  INVARIANT(dtype_is_native(dtype));
  enum status status = weights_check_masks(model, masks, err);
  if (!status) status = weights_check_hybrid(masks, err);
  if (status) return status;
  status = STATUS_FAILED;
  k.linears = mem_alloc(masks->count, sizeof *k.linears, err);
  k.streams = mem_alloc(tensors, sizeof *k.streams, err);
  k.sources = mem_alloc(tensors + PACKED_PARTS * masks->count, sizeof *k.sources, err);
  if (!k.linears || !k.streams || !k.sources) goto out;
  status = init_linears(&k, err);
  if (!status) status = dir_writer_open(&writer, out, replace, err);
  if (status) goto out;
  status = write_directory(&k, writer.temporary, err);
  if (!status)
    status = dir_writer_commit(&writer, err);
  else
    dir_writer_abort(&writer);
out:
  packing_free(&k);
  return status;
}
