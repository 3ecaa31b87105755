/* Random models: see synthetic.h. A packed matrix is filled as it lies: its kept values and codes
 * are as random as those of a matrix that was masked, and nothing is made twice. */
#include "model/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "base/strbuf.h"
#include "model/config_check.h"
#include "model/internal.h"
#include "model/synthetic_fill.h"

enum { TILE = 128, CONTEXT_LENGTH = 1 << 17 };
/* Standard deviations of bytes and of nibbles about 8, all values as likely. */
static const float I8_DEVIATION = 73.9f, I4_DEVIATION = 4.64f;
static const double LEAST_DENSE_BYTES = 512.0 * 1024 * 1024;

static const struct shape {
  const char *name;
  const struct model_family *family;
  int64_t hidden_size, intermediate_size, head_dim;
  int heads, kv_heads, layers;
  double theta;
} shapes[] = {
    {"llama2-7b", &family_llama, 4096, 11008, 128, 32, 32, 32, 1e4},
    {"llama2-13b", &family_llama, 5120, 13824, 128, 40, 40, 40, 1e4},
    {"llama3.1-8b", &family_llama, 4096, 14336, 128, 32, 8, 32, 5e5},
    {"llama3.2-1b", &family_llama, 2048, 8192, 64, 32, 8, 16, 5e5},
    {"mistral-7b", &family_mistral, 4096, 14336, 128, 32, 8, 32, 1e4},
    {"qwen2.5-0.5b", &family_qwen2, 896, 4864, 64, 14, 2, 24, 1e6},
    {"qwen2.5-7b", &family_qwen2, 3584, 18944, 128, 28, 4, 28, 1e6},
    {"qwen3-8b", &family_qwen3, 4096, 12288, 128, 32, 8, 36, 1e6},
    {"smollm2-135m", &family_llama, 576, 1536, 64, 9, 3, 30, 1e5},
    {"smollm2-1.7b", &family_llama, 2048, 8192, 64, 32, 32, 24, 1.3e5},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

const char *synthetic_shape_names(void) {
  static char names[256];
  size_t used = 0;
  for (int i = 0; i < SHAPES && used < sizeof names; i++)
    used +=
        (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", shapes[i].name);
  return names;
}

static const struct shape *shape_named(const char *name) {
  for (int i = 0; i < SHAPES; i++)
    if (!strcmp(shapes[i].name, name)) return &shapes[i];
  return NULL;
}

static struct model_config config_of(const struct shape *shape, int layers) {
  struct model_config c = config_blank(shape->family);
  c.hidden_size = shape->hidden_size;
  c.intermediate_size = shape->intermediate_size;
  c.head_dim = shape->head_dim;
  c.heads = shape->heads;
  c.kv_heads = shape->kv_heads;
  c.layers = layers;
  c.context_length = CONTEXT_LENGTH;
  c.rope.theta = shape->theta;
  c.sliding_window = 0;
  c.vocab_size = 1;
  c.tied_embeddings = true;
  config_settle(&c);
  return c;
}

/* Weights of one block. */
static int64_t block_weights(const struct model_config *c) {
  int64_t sum = 0, rows, cols;
  for (int role = 0; role < SITE_ROLES; role++) {
    site_shape(c, (enum site_role)role, &rows, &cols);
    sum += rows * cols;
  }
  return sum;
}

static bool is_integers(enum dtype dtype) { return dtype == DTYPE_I8 || dtype == DTYPE_U8; }

/* Bytes of a weight in a dense or a 2:4 tile: two kept of four and half a byte of code, and of
 * integers a 32nd of a scale. */
static double weight_bytes(enum dtype dtype, bool sparse) {
  const double element = dtype == DTYPE_U8 ? 0.5 : (double)synthetic_element_bytes(dtype);
  const double scale = is_integers(dtype) ? 2.0 / QUANT_GROUP : 0;
  return (sparse ? element / 2 + 1.0 / 8 : element) + scale;
}

enum status synthetic_settle(struct synthetic_model *request, struct error *err) {
  const struct shape *shape = shape_named(request->shape);
  if (!shape)
    return error_set(err, STATUS_USAGE, "there is no synthetic model \"%s\"; there are %s",
                     request->shape, synthetic_shape_names());
  if (request->layers < 0 || request->layers > shape->layers)
    return error_set(err, STATUS_USAGE, "%s has %d layers; %d cannot be made", shape->name,
                     shape->layers, request->layers);
  if (!(request->density >= 0.5 && request->density <= 1))
    return error_set(err, STATUS_USAGE, "a density lies between 0.5 and 1; %g does not",
                     request->density);
  if (!dtype_is_native(request->dtype) && !is_integers(request->dtype))
    return error_set(err, STATUS_USAGE, "synthetic weights are f32, f16, bf16, int8, int4, not %s",
                     dtype_traits(request->dtype)->name);
  struct model_config config = config_of(shape, 1);
  double block_bytes = (double)block_weights(&config) * weight_bytes(request->dtype, false);
  if (!request->layers)
    request->layers = (int)fmin(shape->layers, ceil(LEAST_DENSE_BYTES / block_bytes));
  return STATUS_OK;
}

size_t synthetic_bytes(const struct synthetic_model *request) {
  struct model_config c = config_of(shape_named(request->shape), 1);
  double weights = (double)block_weights(&c) * request->layers, sparse = 2 * (1 - request->density);
  return (size_t)(weights * ((1 - sparse) * weight_bytes(request->dtype, false) +
                             sparse * weight_bytes(request->dtype, true)));
}

/* --- which tiles are 2:4 --- */

static struct hybrid_matrix empty_hybrid(const struct linear_site *site, enum dtype dtype) {
  return (struct hybrid_matrix){.rows = site->weight.dense.rows,
                                .cols = site->weight.dense.cols,
                                .tile_rows = TILE,
                                .tile_cols = TILE,
                                .dtype = dtype};
}

static int64_t tile_count(const struct hybrid_matrix *h) {
  return hybrid_tile_rows(h) * hybrid_tile_cols(h);
}

/* All tiles of a model, site after site. */
struct tile_draw {
  int64_t count;
  uint8_t *dense; /* (count) what became of each: 1 = dense */
  int32_t *drops; /* (count) weights that go when it becomes 2:4 */
  int64_t *order; /* (count) a shuffle */
};

static void draw_release(struct tile_draw *d) {
  mem_free(d->dense);
  mem_free(d->drops);
  mem_free(d->order);
}

static enum status draw_init(struct tile_draw *d, const struct model *m, struct error *err) {
  for (int s = 0; s < model_site_count(m); s++) {
    struct hybrid_matrix h = empty_hybrid(&m->sites[s], DTYPE_BF16);
    d->count += tile_count(&h);
  }
  d->dense = mem_alloc((size_t)d->count, sizeof *d->dense, err);
  d->drops = mem_alloc((size_t)d->count, sizeof *d->drops, err);
  d->order = mem_alloc((size_t)d->count, sizeof *d->order, err);
  if (!d->dense || !d->drops || !d->order) return STATUS_FAILED;
  int64_t at = 0;
  for (int s = 0; s < model_site_count(m); s++) {
    struct hybrid_matrix h = empty_hybrid(&m->sites[s], DTYPE_BF16);
    for (int64_t t = 0; t < tile_count(&h); t++, at++) {
      struct tile_box box = hybrid_tile_box(&h, t);
      d->drops[at] = (int32_t)(box.rows * box.cols / 2); /* columns are multiples of 4 */
    }
  }
  return STATUS_OK;
}

/* Shuffles the tiles and makes them 2:4 one after the other, until the next one would lead further
 * away from the density that is wanted. */
static void draw_tiles(struct tile_draw *d, double density, uint64_t seed) {
  struct rng rng = rng_make(seed, STREAM_TILES);
  int64_t dropped = 0, all = 0;
  for (int64_t i = 0; i < d->count; i++) {
    d->dense[i] = 1;
    d->order[i] = i;
    all += 2 * d->drops[i];
  }
  for (int64_t i = d->count - 1; i > 0; i--) {
    int64_t j = (int64_t)rng_below(&rng, (uint64_t)i + 1), swapped = d->order[i];
    d->order[i] = d->order[j];
    d->order[j] = swapped;
  }
  for (int64_t i = 0; i < d->count; i++) {
    int64_t tile = d->order[i];
    double gap = (1 - density) * (double)all - (double)dropped;
    if (gap < (double)d->drops[tile] / 2) break;
    d->dense[tile] = 0;
    dropped += d->drops[tile];
  }
}

/* --- the model --- */

struct build {
  struct model *model;
  struct tile_draw draw;
  int64_t tile; /* the first of the site at hand */
  struct synthetic_fill fill;
  enum status status;
  struct error *err;
};

/* Zeroed memory that the model owns; NULL with the build's status set when there is none. */
static void *own(struct build *b, size_t bytes) {
  struct model *m = b->model;
  void *memory = b->status ? NULL : mem_alloc(bytes, 1, b->err);
  if (memory)
    b->status = mem_grow((void **)&m->owned, &m->owned_capacity, m->owned_count + 1,
                         sizeof *m->owned, b->err);
  else if (!b->status)
    b->status = STATUS_FAILED;
  if (b->status) {
    mem_free(memory);
    return NULL;
  }
  m->owned[m->owned_count++] = memory;
  return memory;
}

/* Memory of a site's weights, which lives and dies with them. */
static uint8_t *own_site(struct build *b, const struct linear_site *site, size_t bytes) {
  void *memory = b->status ? NULL : mem_alloc(bytes, 1, b->err);
  if (!memory && !b->status) b->status = STATUS_FAILED;
  b->model->site_memory[site->index] = memory;
  return memory;
}

static void build_dense(struct build *b, struct linear_site *site) {
  struct matrix_view *w = &site->weight.dense;
  uint8_t *memory =
      own_site(b, site, (size_t)(w->rows * w->cols) * synthetic_element_bytes(b->fill.dtype));
  if (!memory) return;
  *w = (struct matrix_view){memory, b->fill.dtype, w->rows, w->cols};
  b->fill.stream = STREAM_WEIGHTS;
  synthetic_fill(&b->fill, SYNTHETIC_WEIGHTS, w->rows * w->cols, memory);
}

/* The tile map of a site, from the draw. */
static const uint8_t *build_map(struct build *b, const struct linear_site *site) {
  const struct hybrid_matrix h = empty_hybrid(site, DTYPE_BF16);
  uint8_t *map = own(b, (size_t)(tile_count(&h) + 7) / 8);
  for (int64_t t = 0; map && t < tile_count(&h); t++)
    map[t / 8] |= (uint8_t)(b->draw.dense[b->tile++] << t % 8);
  return map;
}

/* Dense tiles, kept values and codes lie one behind the other. */
static void build_hybrid(struct build *b, struct linear_site *site) {
  struct hybrid_matrix *h = &b->model->hybrids[site->index];
  struct hybrid_sizes sizes;
  *h = empty_hybrid(site, b->fill.dtype);
  const uint8_t *map = build_map(b, site);
  if (!map) return;
  b->status = hybrid_measure(h->rows, h->cols, TILE, TILE, h->dtype, map, &sizes, b->err);
  uint8_t *memory = own_site(b, site, sizes.dense_bytes + sizes.values_bytes + sizes.codes_bytes);
  if (!memory) return;
  h->tile_map = map;
  h->dense = memory;
  h->values = memory + sizes.dense_bytes;
  h->codes = memory + sizes.dense_bytes + sizes.values_bytes;
  b->fill.stream = STREAM_WEIGHTS;
  synthetic_fill(&b->fill, SYNTHETIC_WEIGHTS, sizes.dense_count + sizes.values_count, memory);
  b->fill.stream = STREAM_CODES;
  synthetic_fill(&b->fill, SYNTHETIC_CODES, (int64_t)sizes.codes_bytes,
                 memory + sizes.dense_bytes + sizes.values_bytes);
  b->status = hybrid_index(h, b->err);
  site->weight.hybrid = h;
  b->model->kept[site->index] = hybrid_kept(h);
}

/* Scales, dense tiles, kept integers and codes lie one behind the other. Shapes are multiples of
 * four, so every tile ends on a byte. */
static void build_integers(struct build *b, struct linear_site *site, enum quant_type type) {
  struct quant_matrix *q = &b->model->quants[site->index];
  struct quant_sizes sizes = {0};
  *q = (struct quant_matrix){.rows = site->weight.dense.rows,
                             .cols = site->weight.dense.cols,
                             .tile_rows = TILE,
                             .tile_cols = TILE,
                             .type = type,
                             .group = QUANT_GROUP};
  if (b->draw.count)
    q->tile_map = build_map(b, site);
  else
    quant_whole_tile(q->rows, q->cols, &q->tile_rows, &q->tile_cols);
  if (!b->status) b->status = quant_measure(q, &sizes, b->err);
  const size_t scales = 2 * (size_t)sizes.scales, kept = sizes.dense_bytes + sizes.values_bytes;
  uint8_t *memory = own_site(b, site, scales + kept + sizes.codes_bytes);
  if (!memory) return;
  q->scales = (const uint16_t *)(const void *)memory;
  q->dense = memory + scales;
  q->values = q->dense + sizes.dense_bytes;
  q->codes = q->values + sizes.values_bytes;
  const struct synthetic_fill plain = b->fill;
  b->fill.stream = STREAM_SCALES;
  b->fill.dtype = DTYPE_F16;
  b->fill.scale = plain.scale / (type == QUANT_I8 ? I8_DEVIATION : I4_DEVIATION);
  synthetic_fill(&b->fill, SYNTHETIC_WEIGHTS, sizes.scales, memory);
  b->fill = plain;
  b->fill.stream = STREAM_WEIGHTS;
  synthetic_fill(&b->fill, SYNTHETIC_BYTES, (int64_t)kept, memory + scales);
  b->fill.stream = STREAM_CODES;
  synthetic_fill(&b->fill, SYNTHETIC_CODES, (int64_t)sizes.codes_bytes, memory + scales + kept);
  b->status = quant_index(q, b->err);
  site->weight = (struct linear_weight){.integers = q};
  if (!q->tile_map) return;
  const struct hybrid_matrix tiles = quant_tiles(q);
  b->model->kept[site->index] = hybrid_kept(&tiles);
}

static void list_site(struct build *b, const struct linear_site *site) {
  struct model *m = b->model;
  if (!b->status)
    b->status = mem_grow((void **)&m->tensors, &m->tensor_capacity, m->tensor_count + 1,
                         sizeof *m->tensors, b->err);
  if (!b->status)
    b->status = mem_grow((void **)&m->origins, &m->origin_capacity, m->tensor_count + 1,
                         sizeof *m->origins, b->err);
  if (b->status) return;
  m->tensors[m->tensor_count] =
      (struct model_tensor){site->name,
                            2,
                            {linear_rows(&site->weight), linear_cols(&site->weight)},
                            b->fill.dtype,
                            site->weight.integers,
                            site->index};
  m->origins[m->tensor_count++] = (struct tensor_origin){0};
}

static void build_site(struct build *b, int layer, enum site_role role, const float *zeros) {
  struct model *m = b->model;
  int index = model_block_site(layer) + (int)role;
  struct linear_site *site = &m->sites[index];
  char *name = own(b, SITE_NAME_BYTES);
  if (!name) return;
  site_tensor_name(name, layer, role, "weight");
  *site = (struct linear_site){.index = index, .layer = layer, .role = role, .name = name};
  site_shape(&m->config, role, &site->weight.dense.rows, &site->weight.dense.cols);
  m->kept[index] = site->weight.dense.rows * site->weight.dense.cols;
  if (m->config.qkv_bias && role <= SITE_V) site->bias = zeros;
  b->fill.site = (uint32_t)index;
  b->fill.scale = (float)sqrt(3.0 / (double)site->weight.dense.cols); /* variance 1 / cols */
  if (is_integers(b->fill.dtype))
    build_integers(b, site, b->fill.dtype == DTYPE_I8 ? QUANT_I8 : QUANT_I4);
  else if (b->draw.count)
    build_hybrid(b, site);
  else
    build_dense(b, site);
  list_site(b, site);
}

/* The vocabulary's rows, and norms that multiply by one. */
static void build_ends(struct build *b, float *ones) {
  struct model *m = b->model;
  int64_t width = m->config.hidden_size, vocab = m->config.vocab_size;
  const struct synthetic_fill linears = b->fill;
  if (is_integers(linears.dtype)) b->fill.dtype = DTYPE_BF16;
  void *rows = own(b, (size_t)(vocab * width) * synthetic_element_bytes(b->fill.dtype));
  if (!rows) return;
  b->fill.stream = STREAM_WEIGHTS;
  b->fill.site = (uint32_t)model_site_count(m);
  b->fill.scale = vocab == 1 ? 1 : (float)sqrt(3.0 / (double)width);
  synthetic_fill(&b->fill, SYNTHETIC_WEIGHTS, vocab * width, rows);
  m->embed.dense = (struct matrix_view){rows, b->fill.dtype, vocab, width};
  b->fill = linears;
  m->lm_head = m->embed;
  m->final_norm = ones;
}

static void build_model(struct build *b) {
  struct model *m = b->model;
  int64_t width = m->config.hidden_size;
  float *ones = own(b, (size_t)width * sizeof *ones);
  float *zeros = own(b, (size_t)config_q_width(&m->config) * sizeof *zeros);
  for (int64_t i = 0; ones && i < width; i++) ones[i] = 1;
  build_ends(b, ones);
  for (int layer = 0; layer < m->config.layers && !b->status; layer++) {
    struct block_norms *norms = &m->blocks[layer];
    norms->before_attention = norms->before_mlp = ones;
    if (m->config.qk_norm) norms->q = norms->k = ones;
    for (int role = 0; role < SITE_ROLES && !b->status; role++)
      build_site(b, layer, (enum site_role)role, zeros);
  }
}

/* Shapes are needed before the sites are built: the draw is over all of them. */
static enum status draw_for(struct build *b, const struct synthetic_model *request) {
  struct model *m = b->model;
  for (int i = 0; i < model_site_count(m); i++) {
    struct matrix_view *w = &m->sites[i].weight.dense;
    site_shape(&m->config, (enum site_role)(i % SITE_ROLES), &w->rows, &w->cols);
  }
  if (request->density == 1) return STATUS_OK;
  enum status status = draw_init(&b->draw, m, b->err);
  if (!status) draw_tiles(&b->draw, request->density, request->seed);
  return status;
}

enum status synthetic_open(struct model **out, const struct synthetic_model *request,
                           struct error *err) {
  struct model *m = mem_alloc(1, sizeof *m, err);
  if (!m) return STATUS_FAILED;
  m->backend = backend_cpu();
  struct build b = {.model = m,
                    .fill = {.key = {(uint32_t)request->seed, (uint32_t)(request->seed >> 32)},
                             .dtype = request->dtype},
                    .err = err};
  struct strbuf path = {0};
  m->config = config_of(shape_named(request->shape), request->layers);
  if (request->vocabulary > 0) m->config.vocab_size = request->vocabulary;
  strbuf_printf(&path, "%s, %d layer%s", request->shape, request->layers,
                request->layers == 1 ? "" : "s");
  m->store.path = mem_strdup(strbuf_text(&path), err);
  strbuf_free(&path);
  b.status = m->store.path ? model_make_tables(m, err) : STATUS_FAILED;
  if (!b.status) b.status = draw_for(&b, request);
  if (!b.status) build_model(&b);
  draw_release(&b.draw);
  if (b.status)
    model_close(m);
  else
    *out = m;
  return b.status;
}
