/* The packed directory of quantized matrices. A matrix's integers and scales are made together but
 * lie apart in the file (scales, of two or four bytes, before single bytes), so all matrices are
 * made first and wait in memory: packing takes as much of it as its output is large. */
#include <stdio.h>
#include <stdlib.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "base/mem.h"
#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"
#include "sparse/packed.h"

static const struct quant_form embedding_form = {QUANT_I8, QUANT_GROUP, false};

struct packed_matrix {
  struct quant_owned quant;
  int64_t layout[PACKED_QUANT_LAYOUT_COUNT];
  char names[PACKED_QUANT_PARTS][MASK_NAME_MAX + 16];
};

struct packing {
  const struct model *model;
  const struct mask_set *masks;
  const struct pack_quant_settings *settings;
  struct packed_matrix *matrices; /* (tensors); of vectors zeroed */
  struct weight_stream *streams;  /* (tensors); of vectors alone */
  struct tensor_source *sources;  /* (tensors * PACKED_QUANT_PARTS) */
  size_t source_count;
};

/* --- the matrices --- */

static struct quant_form form_of(const struct packing *k, const struct model_tensor *t) {
  struct quant_form form = t->site < 0 ? embedding_form : k->settings->form, blocks;
  if (t->quant || !quant_form_of_blocks(t->dtype, &blocks)) return form;
  if (t->site < 0) return blocks;
  const bool same = blocks.type == form.type && blocks.group == form.group;
  if (same && k->settings->blocks_mins) form.mins = blocks.mins;
  return form;
}

static enum status make_matrix(struct packing *k, int index, struct error *err) {
  const struct model_tensor *t = model_tensor(k->model, index);
  struct packed_matrix *p = &k->matrices[index];
  const struct quant_form form = form_of(k, t);
  const struct mask_matrix *mask =
      k->masks && t->site >= 0 ? mask_set_find(k->masks, t->name) : NULL;
  enum status status = weights_quantize(&p->quant, k->model, index, &form, mask, err);
  if (status) return status;
  const struct quant_matrix *q = &p->quant.matrix;
  const int64_t layout[] = {
      q->rows, q->cols, q->tile_rows, q->tile_cols, q->type == QUANT_I8 ? 8 : 4, q->group};
  memcpy(p->layout, layout, sizeof layout);
  for (int i = 0; i < PACKED_QUANT_PARTS; i++)
    snprintf(p->names[i], sizeof p->names[i], "%s%s", t->name, packed_suffix[i]);
  return STATUS_OK;
}

static enum status make_matrices(struct packing *k, struct error *err) {
  const int count = model_tensor_count(k->model);
  struct progress progress = {0};
  enum status status = STATUS_OK;
  progress_begin(&progress, "quantizing", "tensors", count);
  for (int i = 0; i < count && !status; i++) {
    status = interrupt_check(err);
    if (!status && model_tensor(k->model, i)->rank == 2) status = make_matrix(k, i, err);
    progress_add(&progress, 1);
  }
  progress_end(&progress);
  return status;
}

/* --- the list of all tensors, in the order of the file --- */

static void add(struct packing *k, struct packed_matrix *p, enum packed_part part, enum dtype dtype,
                int64_t count, const void *data) {
  k->sources[k->source_count++] = (struct tensor_source){
      .name = p->names[part], .dtype = dtype, .rank = 1, .shape = {count}, .data = data};
}

/* Those of one matrix whose elements are as wide as `bytes`. */
static void add_parts(struct packing *k, struct packed_matrix *p, int bytes) {
  const struct quant_matrix *q = &p->quant.matrix;
  const struct quant_sizes *s = &p->quant.sizes;
  const enum dtype integers = q->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  if (bytes == 8) add(k, p, PACKED_LAYOUT, DTYPE_I64, PACKED_QUANT_LAYOUT_COUNT, p->layout);
  if (bytes == 4 && !q->group) add(k, p, PACKED_SCALES, DTYPE_F32, s->scales, q->row_scales);
  if (bytes == 2 && q->group) add(k, p, PACKED_SCALES, DTYPE_F16, s->scales, q->scales);
  if (bytes == 2 && q->mins) add(k, p, PACKED_MINS, DTYPE_F16, s->scales, q->mins);
  if (bytes != 1) return;
  add(k, p, PACKED_DENSE, integers, (int64_t)s->dense_bytes, q->dense);
  if (!q->tile_map) return;
  add(k, p, PACKED_VALUES, integers, (int64_t)s->values_bytes, q->values);
  add(k, p, PACKED_TILE_MAP, DTYPE_U8, (int64_t)s->map_bytes, q->tile_map);
  add(k, p, PACKED_CODES, DTYPE_U8, (int64_t)s->codes_bytes, q->codes);
}

static void list_sources(struct packing *k) {
  for (int bytes = 8; bytes; bytes /= 2)
    for (int i = 0; i < model_tensor_count(k->model); i++) {
      const struct model_tensor *t = model_tensor(k->model, i);
      if (t->rank == 2) {
        add_parts(k, &k->matrices[i], bytes);
      } else if (bytes == 4) {
        k->streams[i] = (struct weight_stream){.model = k->model, .tensor = i, .dtype = DTYPE_F32};
        k->sources[k->source_count++] = weight_source(&k->streams[i], t->name);
      }
    }
}

/* --- the directory --- */

static enum status write_weights(struct packing *k, const char *directory, struct error *err) {
  json_t *metadata = json_pack("{s:s}", "format", "pt");
  char *path = path_join(directory, "model.safetensors");
  list_sources(k);
  enum status status = safetensors_write(path, k->sources, k->source_count, metadata, err);
  free(path);
  json_decref(metadata);
  return status;
}

static json_t *sparsity_config(const struct packing *k, double density) {
  const struct quant_form *form = &k->settings->form;
  json_int_t matrices = 0;
  for (int i = 0; i < model_tensor_count(k->model); i++)
    matrices += model_tensor(k->model, i)->rank == 2;
  return json_pack("{s:s, s:i, s:f, s:I, s:s, s:I}", "format", PACKED_FORMAT, "version",
                   PACKED_VERSION_QUANT, "density", density, "matrices", matrices, "weights",
                   quant_type_name(form->type), "group", (json_int_t)form->group);
}

static void describe(const struct packing *k, double density, struct strbuf *out) {
  const struct quant_form *form = &k->settings->form;
  strbuf_printf(out,
                "Packed with tessera: the weights of the linear layers are quantized to %s, with a "
                "scale for ",
                quant_type_name(form->type));
  if (form->group)
    strbuf_printf(out, "each %lld of a row", (long long)form->group);
  else
    strbuf_puts(out, "each row");
  strbuf_printf(out, "; %.4f of them are kept.", density);
  if (density < 1) strbuf_puts(out, " Pruned layers are stored as dense and 2:4 tiles.");
  strbuf_puts(out,
              " tessera reads this form; `tessera export` makes an ordinary checkpoint of the "
              "quantized values.\n");
}

static enum status write_directory(struct packing *k, const char *directory, struct error *err) {
  const double density = weights_density(k->model, k->masks);
  struct strbuf text = {0};
  json_t *config = directory_config(k->model, weights_torch_name(DTYPE_BF16));
  json_object_set_new(config, "sparsity_config", sparsity_config(k, density));
  describe(k, density, &text);
  enum status status = write_weights(k, directory, err);
  if (!status) status = directory_write(k->model, config, strbuf_text(&text), directory, err);
  json_decref(config);
  strbuf_free(&text);
  return status;
}

enum status convert_pack_quant(const struct model *model, const struct mask_set *masks,
                               const char *out, const struct pack_quant_settings *settings,
                               struct error *err) {
  const size_t tensors = (size_t)model_tensor_count(model);
  struct packing k = {.model = model, .masks = masks, .settings = settings};
  struct dir_writer writer;
  enum status status = weights_check_masks(model, masks, err);
  if (!status) status = weights_check_hybrid(masks, err);
  if (status) return status;
  k.matrices = mem_alloc(tensors, sizeof *k.matrices, err);
  k.streams = mem_alloc(tensors, sizeof *k.streams, err);
  k.sources = mem_alloc(tensors * PACKED_QUANT_PARTS, sizeof *k.sources, err);
  status = k.matrices && k.streams && k.sources ? STATUS_OK : STATUS_FAILED;
  if (!status) status = dir_writer_open(&writer, out, settings->replace, err);
  if (!status) {
    status = make_matrices(&k, err);
    if (!status) status = write_directory(&k, writer.temporary, err);
    if (!status)
      status = dir_writer_commit(&writer, err);
    else
      dir_writer_abort(&writer);
  }
  for (size_t i = 0; k.matrices && i < tensors; i++) quant_owned_free(&k.matrices[i].quant);
  mem_free(k.matrices);
  mem_free(k.streams);
  mem_free(k.sources);
  return status;
}
