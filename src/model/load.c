/* From stored tensors to the weights of a model.
 *
 * Matrices of f32, f16 and bf16 stay where they are mapped; block types are expanded to fp32 on all
 * threads, or stay mapped too where the model is only to run. Vectors are small and always become
 * fp32. GGUF files of LLaMA's architecture interleave the halves of each head of q and k, for a
 * rotation of neighbours; rows are put back here, which for mapped types costs a copy. The loader
 * keeps the first error, so that names can be listed one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "model/family.h"
#include "model/internal.h"
#include "sparse/packed.h"

const char *const site_role_name[SITE_ROLES] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
static const char *const site_parent[SITE_ROLES] = {
    "self_attn", "self_attn", "self_attn", "self_attn", "mlp", "mlp", "mlp"};
enum { NAME_BYTES = SITE_NAME_BYTES, EXPAND_ITEM_ELEMENTS = 1 << 16 };

struct loader {
  struct model *model;
  enum status status;
  struct error *err;
};

static void *keep(struct loader *in, void *memory) {
  struct model *m = in->model;
  if (memory && in->status == STATUS_OK)
    in->status = mem_grow((void **)&m->owned, &m->owned_capacity, m->owned_count + 1,
                          sizeof *m->owned, in->err);
  if (memory && in->status == STATUS_OK) {
    m->owned[m->owned_count++] = memory;
    return memory;
  }
  mem_free(memory);
  if (in->status == STATUS_OK) in->status = STATUS_FAILED;
  return NULL;
}

static char *keep_name(struct loader *in, const char *name) {
  size_t bytes = strlen(name) + 1;
  char *copy = keep(in, mem_alloc(bytes, 1, in->err));
  if (copy) memcpy(copy, name, bytes);
  return copy;
}

/* --- taking tensors out of the store --- */

static void describe_shape(const int64_t *shape, int rank, char out[96]) {
  size_t used = 0;
  *out = 0;
  for (int i = 0; i < rank && used < 80; i++)
    used += (size_t)snprintf(out + used, 96 - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
}

static bool usable_dtype(enum dtype dtype) {
  return dtype_is_native(dtype) || dtype_traits(dtype)->block_length > 1;
}

static const struct stored_tensor *take(struct loader *in, const char *name, int rank,
                                        const int64_t shape[2]) {
  char want[96], have[96];
  if (in->status != STATUS_OK) return NULL;
  const struct stored_tensor *t = store_take(&in->model->store, name);
  if (!t) {
    in->status = error_set(in->err, STATUS_REFUSED, "%s: the tensor \"%s\" is missing",
                           in->model->store.path, name);
    return NULL;
  }
  if (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0) {
    describe_shape(shape, rank, want);
    describe_shape(t->shape, t->rank, have);
    in->status = error_set(in->err, STATUS_REFUSED,
                           "%s: tensor \"%s\" has shape [%s] where the configuration wants [%s]",
                           in->model->store.path, name, have, want);
    return NULL;
  }
  if (!usable_dtype(t->dtype)) {
    in->status = error_set(in->err, STATUS_REFUSED,
                           "%s: tensor \"%s\" is of type %s, which tessera does not compute with",
                           in->model->store.path, name, dtype_traits(t->dtype)->name);
    return NULL;
  }
  return t;
}

static void list_tensor(struct loader *in, const struct model_tensor *tensor,
                        const struct tensor_origin *origin) {
  struct model *m = in->model;
  if (in->status == STATUS_OK)
    in->status = mem_grow((void **)&m->tensors, &m->tensor_capacity, m->tensor_count + 1,
                          sizeof *m->tensors, in->err);
  if (in->status == STATUS_OK)
    in->status = mem_grow((void **)&m->origins, &m->origin_capacity, m->tensor_count + 1,
                          sizeof *m->origins, in->err);
  if (in->status != STATUS_OK) return;
  m->tensors[m->tensor_count] = *tensor;
  m->origins[m->tensor_count++] = *origin;
}

/* --- expanding --- */

/* Where GGUF keeps row `row` of Hugging Face's order: (half, i) of a head is at (i, half). */
static int64_t interleaved_row(int64_t row, int64_t head_dim) {
  int64_t head = row / head_dim, within = row % head_dim, half = head_dim / 2;
  return head * head_dim + within % half * 2 + within / half;
}

static const uint8_t *origin_row(const struct tensor_origin *o, int64_t row, size_t row_bytes) {
  if (o->interleaved) row = interleaved_row(row, o->interleaved);
  return o->stored->data + (size_t)row * row_bytes;
}

const void *origin_stored_row(const struct tensor_origin *o, int64_t cols, int64_t row) {
  size_t row_bytes = 0;
  INVARIANT(o->stored && dtype_bytes(o->stored->dtype, (uint64_t)cols, &row_bytes));
  return origin_row(o, row, row_bytes);
}

void origin_rows(const struct tensor_origin *o, int64_t cols, int64_t first, int64_t rows,
                 float *out) {
  size_t row_bytes = 0;
  for (int64_t r = 0; r < rows && o->quant; r++) quant_row(o->quant, first + r, out + r * cols);
  if (o->quant) return;
  INVARIANT(dtype_bytes(o->stored->dtype, (uint64_t)cols, &row_bytes));
  for (int64_t r = 0; r < rows; r++)
    dtype_to_f32(o->stored->dtype, origin_row(o, first + r, row_bytes), cols, out + r * cols);
  if (o->shift != 0)
    for (int64_t i = 0; i < rows * cols; i++) out[i] += o->shift;
}

struct expansion {
  const struct tensor_origin *origin;
  int64_t rows, cols, item_rows;
  size_t row_bytes; /* of the target when it is a copy of the stored type, else 0 */
  void *out;
};

static void expand_item(void *ctx, int64_t item, int worker) {
  const struct expansion *e = ctx;
  int64_t first = item * e->item_rows, last = first + e->item_rows;
  if (last > e->rows) last = e->rows;
  if (!e->row_bytes) {
    origin_rows(e->origin, e->cols, first, last - first, (float *)e->out + first * e->cols);
    return;
  }
  for (int64_t r = first; r < last; r++)
    memcpy((char *)e->out + (size_t)r * e->row_bytes, origin_row(e->origin, r, e->row_bytes),
           e->row_bytes);
}

/* Whether products can read the elements as they are stored. */
static bool stays(const struct loader *in, enum dtype dtype) {
  return dtype_is_native(dtype) || in->model->keep_blocks;
}

/* A matrix in memory of its own: fp32, or a reordered copy when the type can be multiplied. */
static void *copy_matrix(struct loader *in, const struct tensor_origin *origin, int64_t rows,
                         int64_t cols, enum dtype *dtype) {
  struct expansion e = {.origin = origin, .rows = rows, .cols = cols};
  size_t row_bytes = 0;
  *dtype = stays(in, origin->stored->dtype) ? origin->stored->dtype : DTYPE_F32;
  INVARIANT(dtype_bytes(*dtype, (uint64_t)cols, &row_bytes));
  if (*dtype == origin->stored->dtype) e.row_bytes = row_bytes;
  e.out = mem_alloc((size_t)rows, row_bytes, in->err);
  if (!e.out) {
    in->status = STATUS_FAILED;
    return NULL;
  }
  e.item_rows = EXPAND_ITEM_ELEMENTS / cols + 1;
  parallel_for((rows + e.item_rows - 1) / e.item_rows, expand_item, &e);
  return e.out;
}

/* --- vectors and matrices --- */

/* The norm weights of a family that stores w - 1 hold w in its GGUF files. */
static float norm_shift(const struct model *m) {
  return m->config.family->norm_plus_one && !m->config.norm_plus_one ? -1.0f : 0.0f;
}

static const float *load_vector(struct loader *in, const char *name, int64_t n, int64_t interleaved,
                                float shift) {
  int64_t shape[2] = {n, 0};
  const struct stored_tensor *t = take(in, name, 1, shape);
  if (!t) return NULL;
  if (dtype_traits(t->dtype)->block_length > 1) {
    in->status = error_set(in->err, STATUS_REFUSED, "%s: the vector \"%s\" is of block type %s",
                           in->model->store.path, name, dtype_traits(t->dtype)->name);
    return NULL;
  }
  struct tensor_origin origin = {t, NULL, interleaved, shift}, plain = {t, NULL, interleaved, 0};
  float *out = keep(in, mem_alloc((size_t)n, sizeof *out, in->err));
  if (!out) return NULL;
  origin_rows(&plain, 1, 0, n, out);
  struct model_tensor listed = {keep_name(in, name), 1, {n, 1}, t->dtype, NULL, -1};
  list_tensor(in, &listed, &origin);
  return out;
}

/* Fills *view; *memory gets what it owns, NULL when it stays mapped. */
static void load_matrix(struct loader *in, const char *name, int64_t rows, int64_t cols,
                        int64_t interleaved, int site, struct matrix_view *view, void **memory) {
  int64_t shape[2] = {rows, cols};
  const struct stored_tensor *t = take(in, name, 2, shape);
  *memory = NULL;
  if (!t) return;
  struct tensor_origin origin = {t, NULL, interleaved, 0};
  struct model_tensor listed = {keep_name(in, name), 2, {rows, cols}, t->dtype, NULL, site};
  list_tensor(in, &listed, &origin);
  *view = (struct matrix_view){t->data, t->dtype, rows, cols};
  bool usable = stays(in, t->dtype) && stored_tensor_is_aligned(t) && !interleaved;
  if (in->model->headers_only || usable || in->status != STATUS_OK) return;
  *memory = copy_matrix(in, &origin, rows, cols, &view->dtype);
  view->data = *memory;
}

/* --- packed matrices --- */

/* The tensor of a part, marked as used when `take`; NULL when there is none. */
static const struct stored_tensor *packed_part(const struct loader *in, const char *name, int part,
                                               bool take) {
  char full[NAME_BYTES];
  snprintf(full, sizeof full, "%s%s", name, packed_suffix[part]);
  if (!store_has(&in->model->store, full)) return NULL;
  return take ? store_take(&in->model->store, full) : store_peek(&in->model->store, full);
}

enum packing { NOT_PACKED, PACKED_HYBRID, PACKED_INTEGERS };

static enum packing packing_of(const struct loader *in, const char *name) {
  const struct stored_tensor *layout = packed_part(in, name, PACKED_LAYOUT, false);
  if (!layout) return NOT_PACKED;
  return packed_is_quant(layout) ? PACKED_INTEGERS : PACKED_HYBRID;
}

int64_t hybrid_kept(const struct hybrid_matrix *h) {
  int64_t kept = 0, tiles = hybrid_tile_rows(h) * hybrid_tile_cols(h);
  for (int64_t t = 0; t < tiles; t++) {
    struct tile_box box = hybrid_tile_box(h, t);
    int64_t rest = box.cols % 4;
    int64_t sparse = box.cols / 4 * 2 + (rest < 2 ? rest : 2);
    kept += box.rows * (hybrid_tile_dense(h, t) ? box.cols : sparse);
  }
  return kept;
}

static enum status check_packed_shape(const char *name, int64_t have_rows, int64_t have_cols,
                                      int64_t rows, int64_t cols, struct error *err) {
  if (have_rows == rows && have_cols == cols) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "\"%s\" is packed as [%lld, %lld] where the configuration wants [%lld, %lld]",
                   name, (long long)have_rows, (long long)have_cols, (long long)rows,
                   (long long)cols);
}

static void load_packed(struct loader *in, struct linear_site *site, int64_t rows, int64_t cols) {
  const struct stored_tensor *parts[PACKED_PARTS];
  struct hybrid_matrix *hybrid = &in->model->hybrids[site->index];
  for (int i = 0; i < PACKED_PARTS; i++) {
    parts[i] = packed_part(in, site->name, i, true);
    if (parts[i]) continue;
    in->status = error_set(in->err, STATUS_REFUSED, "%s: the tensor \"%s%s\" is missing",
                           in->model->store.path, site->name, packed_suffix[i]);
    return;
  }
  in->status = packed_view(hybrid, site->name, parts, in->err);
  if (in->status == STATUS_OK)
    in->status = check_packed_shape(site->name, hybrid->rows, hybrid->cols, rows, cols, in->err);
  if (in->status == STATUS_OK && !in->model->headers_only)
    in->status = hybrid_check(hybrid, site->name, in->err);
  if (in->status != STATUS_OK) {
    error_prefix(in->err, "%s", in->model->store.path);
    return;
  }
  site->weight.hybrid = hybrid;
  in->model->kept[site->index] = hybrid_kept(hybrid);
  struct tensor_origin origin = {0};
  struct model_tensor listed = {site->name, 2, {rows, cols}, hybrid->dtype, NULL, site->index};
  list_tensor(in, &listed, &origin);
}

/* A quantized matrix; `slot` is its place in model->quants, `site` -1 when it is no linear's. */
static void load_integers(struct loader *in, const char *name, int64_t rows, int64_t cols, int slot,
                          int site, struct linear_weight *w) {
  const struct stored_tensor *parts[PACKED_QUANT_PARTS];
  struct quant_matrix *q = &in->model->quants[slot];
  for (int i = 0; i < PACKED_QUANT_PARTS; i++) parts[i] = packed_part(in, name, i, true);
  in->status = packed_quant_view(q, name, parts, in->err);
  if (in->status == STATUS_OK)
    in->status = check_packed_shape(name, q->rows, q->cols, rows, cols, in->err);
  if (in->status == STATUS_OK && !in->model->headers_only)
    in->status = quant_check(q, name, in->err);
  if (in->status != STATUS_OK) {
    error_prefix(in->err, "%s", in->model->store.path);
    return;
  }
  *w = (struct linear_weight){.integers = q};
  struct tensor_origin origin = {.quant = q};
  const enum dtype dtype = q->type == QUANT_I8 ? DTYPE_I8 : DTYPE_U8;
  struct model_tensor listed = {keep_name(in, name), 2, {rows, cols}, dtype, q, site};
  list_tensor(in, &listed, &origin);
}

/* Embeddings or head: integers or a plain matrix. */
static void load_end(struct loader *in, const char *name, int slot, struct linear_weight *w) {
  const struct model_config *c = &in->model->config;
  void *memory = NULL;
  if (packing_of(in, name) == PACKED_INTEGERS)
    load_integers(in, name, c->vocab_size, c->hidden_size, slot, -1, w);
  else
    load_matrix(in, name, c->vocab_size, c->hidden_size, 0, -1, &w->dense, &memory);
  if (memory) keep(in, memory);
}

/* --- blocks --- */

void site_shape(const struct model_config *c, enum site_role role, int64_t *rows, int64_t *cols) {
  *cols = c->hidden_size;
  switch (role) {
    case SITE_Q:
      *rows = config_q_width(c);
      break;
    case SITE_K:
    case SITE_V:
      *rows = config_kv_width(c);
      break;
    case SITE_O:
      *rows = c->hidden_size, *cols = config_q_width(c);
      break;
    case SITE_GATE:
    case SITE_UP:
      *rows = c->intermediate_size;
      break;
    case SITE_DOWN:
      *rows = c->hidden_size, *cols = c->intermediate_size;
      break;
    default:
      INVARIANT(!"a role");
  }
}

static bool site_has_bias(const struct model_config *c, enum site_role role) {
  if (role == SITE_O) return c->o_bias;
  return role < SITE_O ? c->qkv_bias : c->mlp_bias;
}

void site_tensor_name(char out[NAME_BYTES], int layer, enum site_role role, const char *what) {
  snprintf(out, NAME_BYTES, "model.layers.%d.%s.%s.%s", layer, site_parent[role],
           site_role_name[role], what);
}

static void load_site(struct loader *in, int layer, enum site_role role) {
  struct model *m = in->model;
  const struct model_config *c = &m->config;
  char name[NAME_BYTES];
  int64_t rows = 0, cols = 0;
  int index = model_block_site(layer) + (int)role;
  struct linear_site *site = &m->sites[index];
  bool reorder = m->store.gguf && c->family->gguf_interleaves_rope && role <= SITE_K;
  int64_t interleaved = reorder ? c->head_dim : 0;
  site_shape(c, role, &rows, &cols);
  site_tensor_name(name, layer, role, "weight");
  *site = (struct linear_site){.index = index, .layer = layer, .role = role};
  site->name = keep_name(in, name);
  site->weight.dense.rows = rows;
  site->weight.dense.cols = cols;
  m->kept[index] = rows * cols;
  if (in->status != STATUS_OK) return;
  switch (packing_of(in, name)) {
    case PACKED_HYBRID:
      load_packed(in, site, rows, cols);
      break;
    case PACKED_INTEGERS:
      load_integers(in, name, rows, cols, index, index, &site->weight);
      if (in->status == STATUS_OK && m->quants[index].tile_map) {
        const struct hybrid_matrix tiles = quant_tiles(&m->quants[index]);
        m->kept[index] = hybrid_kept(&tiles);
      }
      break;
    default:
      load_matrix(in, name, rows, cols, interleaved, index, &site->weight.dense,
                  &m->site_memory[index]);
  }
  if (!site_has_bias(c, role)) return;
  site_tensor_name(name, layer, role, "bias");
  site->bias = load_vector(in, name, rows, interleaved, 0);
}

static const float *load_norm(struct loader *in, int layer, const char *part, int64_t n) {
  char name[NAME_BYTES];
  snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part);
  return load_vector(in, name, n, 0, norm_shift(in->model));
}

static void load_block(struct loader *in, int layer) {
  const struct model_config *c = &in->model->config;
  struct block_norms *n = &in->model->blocks[layer];
  for (int role = 0; role < SITE_ROLES; role++) load_site(in, layer, (enum site_role)role);
  if (c->qk_norm) {
    n->q = load_norm(in, layer, "self_attn.q_norm", c->head_dim);
    n->k = load_norm(in, layer, "self_attn.k_norm", c->head_dim);
  }
  n->before_attention = load_norm(in, layer, "input_layernorm", c->hidden_size);
  const float *second = load_norm(in, layer, "post_attention_layernorm", c->hidden_size);
  if (!c->sandwich_norms) {
    n->before_mlp = second;
    return;
  }
  n->after_attention = second;
  n->before_mlp = load_norm(in, layer, "pre_feedforward_layernorm", c->hidden_size);
  n->after_mlp = load_norm(in, layer, "post_feedforward_layernorm", c->hidden_size);
}

static void load_ends(struct loader *in) {
  struct model *m = in->model;
  const struct model_config *c = &m->config;
  m->final_norm = load_vector(in, "model.norm.weight", c->hidden_size, 0, norm_shift(m));
  m->lm_head = m->embed;
  if (c->tied_embeddings) return;
  m->lm_head = (struct linear_weight){0};
  load_end(in, "lm_head.weight", model_site_count(m) + 1, &m->lm_head);
}

enum status model_make_tables(struct model *m, struct error *err) {
  size_t layers = (size_t)m->config.layers, sites = layers * SITE_ROLES;
  m->blocks = mem_alloc(layers, sizeof *m->blocks, err);
  m->sites = mem_alloc(sites, sizeof *m->sites, err);
  m->hybrids = mem_alloc(sites, sizeof *m->hybrids, err);
  m->quants = mem_alloc(sites + 2, sizeof *m->quants, err);
  m->site_memory = mem_alloc(sites, sizeof *m->site_memory, err);
  m->kept = mem_alloc(sites, sizeof *m->kept, err);
  bool had_memory = m->blocks && m->sites && m->hybrids && m->quants && m->site_memory && m->kept;
  return had_memory ? STATUS_OK : STATUS_FAILED;
}

enum status model_load(struct model *m, struct error *err) {
  struct loader in = {.model = m, .err = err};
  in.status = model_make_tables(m, err);
  if (in.status != STATUS_OK) return in.status;
  load_end(&in, "model.embed_tokens.weight", model_site_count(m), &m->embed);
  for (int i = 0; i < m->config.layers && in.status == STATUS_OK; i++) load_block(&in, i);
  load_ends(&in);
  if (in.status == STATUS_OK)
    in.status = store_check_all_used(&m->store, m->config.tied_embeddings, err);
  return in.status;
}
