/* See weights.h. A chunk of rows is converted on all threads, then written. */
#include "convert/weights.h"

#include <string.h>

#include "base/interrupt.h"
#include "base/mem.h"
#include "base/parallel.h"

enum { CHUNK_ELEMENTS = 1 << 20 };

/* --- one tensor --- */

struct chunk {
  const struct weight_stream *stream;
  int64_t rows, cols, first; /* of the tensor as it is written */
  size_t row_bytes;
  float *scratch; /* (threads, 2, cols) */
  uint8_t *out;   /* (chunk rows, row_bytes) */
};

/* Where Hugging Face's order has the row that GGUF keeps at `row`: pairs (i, i + half) of a head
 * stand side by side there. */
static int64_t row_from_interleaved(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, within = row % head_dim;
  return head * head_dim + within % 2 * (head_dim / 2) + within / 2;
}

static void expand_row(const struct chunk *c, int64_t row, float *out) {
  const struct weight_stream *s = c->stream;
  const struct model_tensor *t = model_tensor(s->model, s->tensor);
  if (t->rank == 1) { /* a vector is one row, and its elements are what is reordered */
    for (int64_t i = 0; i < c->cols; i++)
      model_tensor_expand(s->model, s->tensor,
                          s->interleaved ? row_from_interleaved(i, s->interleaved) : i, 1, out + i);
    return;
  }
  if (s->interleaved) row = row_from_interleaved(row, s->interleaved);
  model_tensor_expand(s->model, s->tensor, row, 1, out);
  if (!s->mask) return;
  float *keep = out + c->cols;
  mask_row(s->mask, row, keep);
  for (int64_t i = 0; i < c->cols; i++)
    if (keep[i] == 0) out[i] = 0;
}

static void convert_row(void *ctx, int64_t item, int worker) {
  const struct chunk *c = ctx;
  float *row = c->scratch + worker * 2 * c->cols;
  expand_row(c, c->first + item, row);
  if (c->stream->shift != 0)
    for (int64_t i = 0; i < c->cols; i++) row[i] += c->stream->shift;
  dtype_from_f32(c->stream->dtype, row, c->cols, c->out + (size_t)item * c->row_bytes);
}

static enum status chunk_init(struct chunk *c, const struct weight_stream *stream,
                              int64_t *chunk_rows, struct error *err) {
  const struct model_tensor *t = model_tensor(stream->model, stream->tensor);
  *c = (struct chunk){.stream = stream,
                      .rows = t->rank == 1 ? 1 : t->shape[0],
                      .cols = t->rank == 1 ? t->shape[0] : t->shape[1]};
  INVARIANT(dtype_bytes(stream->dtype, (uint64_t)c->cols, &c->row_bytes));
  *chunk_rows = CHUNK_ELEMENTS / c->cols + 1;
  if (*chunk_rows > c->rows) *chunk_rows = c->rows;
  c->scratch = mem_alloc((size_t)parallel_threads() * 2, (size_t)c->cols * sizeof *c->scratch, err);
  c->out = mem_alloc((size_t)*chunk_rows, c->row_bytes, err);
  return c->scratch && c->out ? STATUS_OK : STATUS_FAILED;
}

static enum status produce(void *ctx, struct file_writer *out, struct error *err) {
  struct chunk c;
  int64_t chunk_rows;
  enum status status = chunk_init(&c, ctx, &chunk_rows, err);
  for (; c.first < c.rows && !status; c.first += chunk_rows) {
    const int64_t count = c.rows - c.first < chunk_rows ? c.rows - c.first : chunk_rows;
    parallel_for(count, convert_row, &c);
    status = interrupt_check(err);
    if (!status) status = file_writer_put(out, c.out, (size_t)count * c.row_bytes, err);
  }
  mem_free(c.scratch);
  mem_free(c.out);
  return status;
}

struct tensor_source weight_source(struct weight_stream *stream, const char *name) {
  const struct model_tensor *t = model_tensor(stream->model, stream->tensor);
  return (struct tensor_source){.name = name,
                                .dtype = stream->dtype,
                                .rank = t->rank,
                                .shape = {t->shape[0], t->shape[1]},
                                .produce = produce,
                                .ctx = stream};
}

/* --- quantized --- */

struct tensor_rows {
  const struct model *model;
  int tensor;
};

static void row_of_tensor(void *ctx, int64_t row, float *out) {
  const struct tensor_rows *t = ctx;
  model_tensor_expand(t->model, t->tensor, row, 1, out);
}

static const void *blocks_of_tensor(void *ctx, int64_t row) {
  const struct tensor_rows *t = ctx;
  return model_tensor_blocks(t->model, t->tensor, row);
}

enum status weights_quantize(struct quant_owned *out, const struct model *model, int tensor,
                             const struct quant_form *form, const struct mask_matrix *mask,
                             struct error *err) {
  const struct model_tensor *t = model_tensor(model, tensor);
  struct tensor_rows rows = {model, tensor};
  struct quant_source source = {.ctx = &rows, .row = row_of_tensor, .dtype = t->dtype};
  struct quant_form of_blocks;
  if (!t->quant && quant_form_of_blocks(t->dtype, &of_blocks) && of_blocks.type == form->type &&
      of_blocks.group == form->group && of_blocks.mins == form->mins)
    source.blocks = blocks_of_tensor;
  return quant_make(out, form, mask, t->shape[0], t->shape[1], &source, t->name, err);
}

/* --- all of them --- */

static const struct linear_site *site_named(const struct model *model, const char *name) {
  for (int i = 0; i < model_site_count(model); i++)
    if (!strcmp(model_site(model, i)->name, name)) return model_site(model, i);
  return NULL;
}

static enum status check_mask(const struct model *model, const struct mask_matrix *mask,
                              struct error *err) {
  const struct linear_site *site = site_named(model, mask->name);
  if (!site)
    return error_set(err, STATUS_REFUSED,
                     "the mask names %s, which is no prunable weight of %s; was it made for "
                     "another model?",
                     mask->name, model_path(model));
  if (site->weight.hybrid || site->weight.integers)
    return error_set(err, STATUS_REFUSED,
                     "%s of %s is packed already; masks apply to the dense model", mask->name,
                     model_path(model));
  if (mask->rows != linear_rows(&site->weight) || mask->cols != linear_cols(&site->weight))
    return error_set(err, STATUS_REFUSED,
                     "the mask of %s is %lld x %lld, the weight in %s %lld x %lld; was it made for "
                     "another model?",
                     mask->name, (long long)mask->rows, (long long)mask->cols, model_path(model),
                     (long long)linear_rows(&site->weight), (long long)linear_cols(&site->weight));
  return STATUS_OK;
}

enum status weights_check_masks(const struct model *model, const struct mask_set *masks,
                                struct error *err) {
  enum status status = STATUS_OK;
  for (size_t i = 0; masks && i < masks->count && !status; i++)
    status = check_mask(model, &masks->items[i], err);
  return status;
}

enum status weights_check_hybrid(const struct mask_set *masks, struct error *err) {
  for (size_t i = 0; masks && i < masks->count; i++)
    if (masks->items[i].kind != MASK_HYBRID)
      return error_set(err, STATUS_REFUSED,
                       "the mask of %s is unstructured or of another n:m; only 2:4 and hybrid "
                       "masks can be packed, and `tessera export` writes any as zeros",
                       masks->items[i].name);
  return STATUS_OK;
}

double weights_density(const struct model *model, const struct mask_set *masks) {
  return masks ? mask_set_density(masks, model_prunable_weights(model)) : model_density(model);
}

enum dtype weights_natural_dtype(const struct model *model) {
  enum dtype found = DTYPE_COUNT;
  for (int i = 0; i < model_tensor_count(model); i++) {
    const struct model_tensor *t = model_tensor(model, i);
    if (t->rank != 2) continue;
    if (!dtype_is_native(t->dtype) || (found != DTYPE_COUNT && t->dtype != found))
      return DTYPE_BF16;
    found = t->dtype;
  }
  return found == DTYPE_COUNT ? DTYPE_BF16 : found;
}

const char *weights_torch_name(enum dtype dtype) {
  switch (dtype) {
    case DTYPE_F32:
      return "float32";
    case DTYPE_F16:
      return "float16";
    case DTYPE_BF16:
      return "bfloat16";
    default:
      return "unknown";
  }
}
