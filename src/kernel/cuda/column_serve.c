/* The CUDA column's side of decoding: see kernel/serve.h. Weights keep a short list of products
 * that were prepared for them; everything else is a launch. */
#include "kernel/cuda/column_serve.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/column_internal.h"

enum { RANGES_MAX = 24, PREPARED_MAX = 32, TIMED_RUNS = 20 };
enum { PIECE_ALL = 1 << 30 /* longer than any text */ };

struct serve_weight {
  struct gpu_matrix matrix;
  size_t bytes;
  void *dense;   /* (rows, cols) bf16, where a dense product was asked for; or NULL */
  bool borrowed; /* the matrix is that of another weight */
  struct range {
    int64_t first, last;
    char name[SERVE_NAME_MAX];
  } ranges[RANGES_MAX];
  int range_count;
  struct prepared {
    uint32_t most; /* tokens */
    char name[SERVE_NAME_MAX];
    struct serve_product *product;
  } prepared[PREPARED_MAX];
  int prepared_count;
};

static const struct serve_runtime *runtime(void) { return cuda_column.runtime->serve; }
static void *context(void) { return cuda_column.runtime->ctx; }
static bool failed(void) { return cuda_column.first.status != STATUS_OK; }

static void launch(enum serve_kernel kernel, uint32_t blocks, uint32_t threads, uint32_t shared,
                   const void *args) {
  struct error err = {0};
  if (!blocks || failed()) return;
  column_note(runtime()->launch(context(), kernel, blocks, threads, shared, args, &err), &err);
}

/* --- weights --- */

static enum status copy(const void *from, size_t bytes, void **out, struct error *err) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  enum status status = rt->alloc(rt->ctx, bytes, out, err);
  return status ? status : rt->upload(rt->ctx, *out, from, bytes, err);
}

/* The table of strips stays on the host, for plans. */
static enum status copy_matrix(struct gpu_matrix *m, const struct fragment_matrix *f,
                               struct error *err) {
  const size_t strips = (size_t)f->strips, tiles = strips * (size_t)f->tiles_per_strip;
  m->host = *f;
  m->host.columns = NULL;
  m->host.tiles = NULL;
  m->host.row_scales = NULL;
  m->host.strip = mem_alloc(strips, sizeof *f->strip, err);
  if (!m->host.strip) return STATUS_FAILED;
  memcpy(m->host.strip, f->strip, strips * sizeof *f->strip);
  enum status status = copy(f->tiles, f->tile_bytes, &m->tiles, err);
  if (!status) status = copy(f->columns, tiles * sizeof *f->columns, &m->columns, err);
  if (!status && f->row_scales)
    status = copy(f->row_scales, strips * FRAGMENT_STRIP_ROWS * sizeof(float), &m->row_scales, err);
  if (status) return status;
  const size_t places = (size_t)(fragment_order_strips(f) * f->tiles_per_strip);
  m->host_order = mem_alloc(places, sizeof *m->host_order, err);
  if (!m->host_order) return STATUS_FAILED;
  status = fragment_order(f, m->host_order, err);
  return status ? status : copy(m->host_order, places * sizeof *m->host_order, &m->order, err);
}

static void weight_free(struct serve_weight *w) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  if (!w) return;
  for (int i = 0; i < w->prepared_count; i++)
    runtime()->product_free(context(), w->prepared[i].product);
  rt->free(rt->ctx, w->dense);
  if (!w->borrowed) {
    rt->free(rt->ctx, w->matrix.tiles);
    rt->free(rt->ctx, w->matrix.columns);
    rt->free(rt->ctx, w->matrix.order);
    rt->free(rt->ctx, w->matrix.row_scales);
    mem_free(w->matrix.host_order);
    mem_free(w->matrix.host.strip);
  }
  mem_free(w);
}

static enum status weight_new(const struct fragment_matrix *f, enum product_pair pair,
                              struct serve_weight **out, struct error *err) {
  struct serve_weight *w = mem_alloc(1, sizeof *w, err);
  if (!w) return STATUS_FAILED;
  enum status status = copy_matrix(&w->matrix, f, err);
  w->matrix.pair = pair;
  w->matrix.rows = pair ? f->rows - f->strips / 2 * FRAGMENT_STRIP_ROWS : f->rows;
  w->bytes = f->tile_bytes + (size_t)(f->strips * f->tiles_per_strip) *
                                 (sizeof *f->columns + (w->matrix.order ? sizeof(uint32_t) : 0));
  if (f->row_scales) w->bytes += (size_t)f->strips * FRAGMENT_STRIP_ROWS * sizeof(float);
  if (status)
    weight_free(w);
  else
    *out = w;
  return status;
}

static enum status weight_plain(const struct serve_weight *pair, struct serve_weight **out,
                                struct error *err) {
  struct serve_weight *w = mem_alloc(1, sizeof *w, err);
  if (!w) return STATUS_FAILED;
  w->matrix = pair->matrix;
  w->matrix.pair = PAIR_NONE;
  w->matrix.rows = w->matrix.host.rows;
  w->borrowed = true;
  *out = w;
  return STATUS_OK;
}

static size_t dense_bytes(const struct serve_weight *w) {
  return (size_t)(w->matrix.rows * w->matrix.host.cols) * sizeof(uint16_t);
}

static size_t weight_bytes(const struct serve_weight *w) { return w->bytes; }
static size_t copy_bytes(const struct serve_weight *w) { return w->dense ? dense_bytes(w) : 0; }

static const uint8_t *weight_tiles(const struct serve_weight *w) {
  INVARIANT(w->matrix.host.form.kind == FRAGMENT_BF16);
  return w->matrix.tiles;
}

static struct serve_shape weight_shape(const struct serve_weight *w) {
  const struct fragment_matrix *f = &w->matrix.host;
  struct serve_shape shape = {.kind = f->form.kind,
                              .pair = w->matrix.pair != PAIR_NONE,
                              .rows = f->rows,
                              .cols = f->cols,
                              .tiles = f->strips * f->tiles_per_strip};
  for (int64_t s = 0; s < f->strips; s++) shape.sparse_tiles += f->strip[s].sparse_tiles;
  return shape;
}

/* --- products --- */

static uint64_t evictions; /* of products that records may use */

static int variants(const struct serve_weight *w, int64_t tokens,
                    char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX]) {
  return runtime()->variants(context(), &w->matrix, (uint32_t)tokens, names);
}

/* Plans serve all numbers of tokens that fill the same panels. */
static uint32_t rounded(int64_t tokens) {
  uint32_t most = 8;
  while (most < tokens && most < 64) most *= 2;
  return tokens <= 64 ? most : (uint32_t)((tokens + 127) / 128 * 128);
}

/* The matrix as rows of bf16, from its tiles. */
static enum status make_dense(struct serve_weight *w, struct error *err) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  const struct gpu_matrix *m = &w->matrix;
  if (m->pair || m->host.form.kind != FRAGMENT_BF16)
    return error_set(err, STATUS_FAILED, "pairs and integers have no dense product");
  if (w->dense) return STATUS_OK;
  enum status status = rt->alloc(rt->ctx, dense_bytes(w), &w->dense, err);
  if (status) return status;
  struct serve_expand_args args = {.tiles = m->tiles,
                                   .order = m->order,
                                   .out = w->dense,
                                   .count = (uint64_t)m->rows * (uint64_t)((m->host.cols + 3) / 4),
                                   .cols = (uint32_t)m->host.cols,
                                   .tiles_per_strip = (uint32_t)m->host.tiles_per_strip};
  args.blocks = column_blocks(args.count, SERVE_THREADS);
  launch(SERVE_serve_expand, args.blocks, SERVE_THREADS, 0, &args);
  return STATUS_OK;
}

/* The prepared product by the kernel `name`, made where there is none. */
static enum status prepare(struct serve_weight *w, int64_t tokens, const char *name,
                           struct serve_product **out, struct error *err) {
  const uint32_t most = rounded(tokens);
  for (int i = 0; i < w->prepared_count; i++)
    if (w->prepared[i].most == most && !strcmp(w->prepared[i].name, name)) {
      *out = w->prepared[i].product;
      return STATUS_OK;
    }
  if (w->prepared_count == PREPARED_MAX) { /* the oldest makes room */
    evictions++;
    runtime()->product_free(context(), w->prepared[0].product);
    memmove(w->prepared, w->prepared + 1, --w->prepared_count * sizeof *w->prepared);
  }
  const bool dense = !strcmp(name, SERVE_DENSE);
  enum status status = dense ? make_dense(w, err) : STATUS_OK;
  if (!status)
    status = runtime()->product_new(context(), &w->matrix, w->dense, most, name, out, err);
  if (status) return status;
  struct prepared *p = &w->prepared[w->prepared_count++];
  *p = (struct prepared){.most = most, .product = *out};
  snprintf(p->name, sizeof p->name, "%s", name);
  return STATUS_OK;
}

static enum status choose(struct serve_weight *w, int64_t first, int64_t last, const char *name,
                          struct error *err) {
  struct range range = {.first = first, .last = last};
  snprintf(range.name, sizeof range.name, "%s", name);
  for (int i = 0; i < w->range_count; i++)
    if (w->ranges[i].first == first) {
      w->ranges[i] = range;
      return STATUS_OK;
    }
  if (w->range_count == RANGES_MAX)
    return error_set(err, STATUS_FAILED, "more than %d choices for one matrix", RANGES_MAX);
  w->ranges[w->range_count++] = range;
  return STATUS_OK;
}

static const struct range *range_of(const struct serve_weight *w, int64_t tokens) {
  for (int i = 0; i < w->range_count; i++)
    if (tokens >= w->ranges[i].first && tokens <= w->ranges[i].last) return &w->ranges[i];
  return NULL;
}

static bool joins(const struct serve_weight *pair, int64_t tokens) {
  char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX];
  const struct range *range = range_of(pair, tokens);
  return range ? strcmp(range->name, SERVE_DENSE) != 0 : variants(pair, tokens, names) > 0;
}

static enum status product_of(struct serve_weight *w, int64_t tokens, struct serve_product **out,
                              struct error *err) {
  char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX];
  const struct range *range = range_of(w, tokens);
  if (range) return prepare(w, tokens, range->name, out, err);
  if (!variants(w, tokens, names))
    return error_set(err, STATUS_REFUSED,
                     "this build has no kernel for a product of %lld tokens on this GPU",
                     (long long)tokens);
  return prepare(w, tokens, names[0], out, err);
}

static struct gpu_operands operands_of(const struct serve_product_call *call) {
  return (struct gpu_operands){.x = call->x,
                               .x_stride = (uint64_t)call->x_stride,
                               .y = call->y,
                               .y_stride = (uint64_t)call->y_stride,
                               .bias = call->bias,
                               .y_wide = call->y_wide};
}

static void product(const struct serve_product_call *call) {
  struct serve_product *p = NULL;
  struct error err = {0};
  if (failed()) return;
  /* what is prepared for a weight is no part of what it is */
  struct serve_weight *w = (struct serve_weight *)(uintptr_t)call->weight;
  const struct gpu_operands operands = operands_of(call);
  enum status status = product_of(w, call->tokens, &p, &err);
  if (!status)
    status = runtime()->product_run(context(), p, &operands, (uint32_t)call->tokens, &err);
  column_note(status, &err);
}

/* On operands of zeros: the time does not depend on them. */
static enum status time_product(struct serve_weight *w, int64_t tokens, const char *name,
                                double *seconds, struct error *err) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  const int64_t x_stride = (w->matrix.host.cols + 7) / 8 * 8;
  struct serve_product *p = NULL;
  void *x = NULL, *y = NULL;
  enum status status = prepare(w, tokens, name, &p, err);
  if (!status) status = rt->alloc(rt->ctx, (size_t)(tokens * x_stride) * 2, &x, err);
  if (!status) status = rt->alloc(rt->ctx, (size_t)(tokens * w->matrix.rows) * 2, &y, err);
  const struct gpu_operands operands = {
      .x = x, .x_stride = (uint64_t)x_stride, .y = y, .y_stride = (uint64_t)w->matrix.rows};
  for (int i = -2; i < TIMED_RUNS && !status; i++) {
    status = runtime()->product_run(context(), p, &operands, (uint32_t)tokens, err);
    if (!status && i == -1) status = runtime()->lap(context(), seconds, err);
  }
  if (!status) status = runtime()->lap(context(), seconds, err);
  *seconds /= TIMED_RUNS;
  rt->free(rt->ctx, x);
  rt->free(rt->ctx, y);
  return status;
}

static bool is_chosen(const struct serve_weight *w, const char *name) {
  for (int i = 0; i < w->range_count; i++)
    if (!strcmp(w->ranges[i].name, name)) return true;
  return false;
}

static void settle(struct serve_weight *w) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  int kept = 0;
  for (int i = 0; i < w->prepared_count; i++)
    if (is_chosen(w, w->prepared[i].name))
      w->prepared[kept++] = w->prepared[i];
    else
      runtime()->product_free(context(), w->prepared[i].product);
  w->prepared_count = kept;
  if (is_chosen(w, SERVE_DENSE)) return;
  rt->free(rt->ctx, w->dense);
  w->dense = NULL;
}

static void machine(char card[256], char text[512]) { runtime()->machine(context(), card, text); }

/* --- rows --- */

static void embed(struct serve_embed_args args) {
  args.blocks = column_blocks(args.count, SERVE_THREADS);
  launch(SERVE_serve_embed, args.blocks, SERVE_THREADS, 0, &args);
}

static void norm(struct serve_norm_args args, int64_t rows) {
  launch(SERVE_serve_norm, (uint32_t)rows, SERVE_THREADS, 8 * LEARN_WARPS, &args);
}

static void rotate(struct serve_rotate_args args) {
  const uint64_t heads = (uint64_t)args.rows * (args.heads + 2 * args.cache.kv_heads);
  args.blocks = column_blocks(heads, LEARN_WARPS);
  launch(SERVE_serve_rotate, args.blocks, SERVE_THREADS, 0, &args);
}

static void glu(struct serve_glu_args args) {
  args.blocks = column_blocks(args.count, SERVE_THREADS);
  launch(SERVE_serve_glu, args.blocks, SERVE_THREADS, 0, &args);
}

static void sample(struct serve_sample_args args, int64_t rows) {
  launch(SERVE_serve_sample, (uint32_t)rows, SERVE_THREADS, 8 * LEARN_WARPS, &args);
}

/* --- attention --- */

struct attend_shape {
  enum serve_kernel kernel;
  uint32_t lanes, rows, items;
};

/* As many query rows as share a key head, up to what a kernel takes; tokens of one text fill up
 * what heads leave. A prompt keeps the card busy without pieces. */
static struct attend_shape shape_attend(struct serve_attend_args *a, int64_t run, int64_t longest) {
  static const struct attend_shape kernels[] = {
#define ATTEND_ROW(lanes, rows) {SERVE_attend_##lanes##x##rows, lanes, rows, 0},
      ATTEND_KERNELS(ATTEND_ROW)};
  const uint32_t group = a->heads / a->cache.kv_heads;
  const size_t count = sizeof kernels / sizeof *kernels;
  struct attend_shape s = {0};
  for (size_t k = 0; k < count; k++) {
    if (a->cache.stride > 8 * kernels[k].lanes || (s.lanes && s.lanes != kernels[k].lanes))
      continue;
    if (s.lanes && group == 1 && run == 1) continue; /* one row is all there is */
    s = kernels[k];
  }
  INVARIANT(s.lanes);
  a->item_heads = group < s.rows ? group : s.rows;
  a->head_items = (group + a->item_heads - 1) / a->item_heads;
  a->item_tokens = s.rows / a->item_heads;
  while (a->rows != run && run % a->item_tokens) a->item_tokens--; /* no item has two texts */
  a->piece = run >= SERVE_WHOLE_ROWS ? PIECE_ALL : SERVE_PIECE;
  const int64_t seen =
      a->window && a->window < longest ? a->window + (int64_t)(s.rows + SERVE_PIECE) : longest;
  a->pieces = a->piece == PIECE_ALL ? 1 : (uint32_t)((seen + SERVE_PIECE - 1) / SERVE_PIECE);
  s.items = (a->rows + a->item_tokens - 1) / a->item_tokens * a->head_items * a->cache.kv_heads;
  return s;
}

static void attend(struct serve_attend_args args, int64_t run, int64_t longest) {
  const struct attend_shape s = shape_attend(&args, run, longest);
  launch(s.kernel, s.items * args.pieces, ATTEND_THREADS, attend_shared_bytes(s.lanes, s.rows),
         &args);
}

static void attend_scratch(struct serve_attend_args args, int64_t run, int64_t longest,
                           size_t *partials, size_t *counters) {
  const struct attend_shape s = shape_attend(&args, run, longest);
  *partials = sizeof(float) * s.items * args.pieces * attend_partial_floats(s.lanes, s.rows);
  *counters = sizeof(uint32_t) * s.items;
}

/* --- records --- */

static enum status record_begin(struct error *err) {
  return runtime()->record_begin(context(), err);
}
static enum status record_end(struct serve_record **out, struct error *err) {
  return runtime()->record_end(context(), out, err);
}
static enum status record_run(const struct serve_record *record, struct error *err) {
  return runtime()->record_run(context(), record, err);
}
static void record_free(struct serve_record *record) {
  if (record) runtime()->record_free(context(), record);
}
static uint64_t record_epoch(void) { return runtime()->record_epoch(context()) + evictions; }

const struct serve_ops *column_serve_ops(void) {
  static const struct serve_ops ops = {.weight_new = weight_new,
                                       .weight_plain = weight_plain,
                                       .weight_free = weight_free,
                                       .weight_bytes = weight_bytes,
                                       .copy_bytes = copy_bytes,
                                       .weight_tiles = weight_tiles,
                                       .weight_shape = weight_shape,
                                       .variants = variants,
                                       .choose = choose,
                                       .joins = joins,
                                       .time = time_product,
                                       .settle = settle,
                                       .machine = machine,
                                       .product = product,
                                       .embed = embed,
                                       .norm = norm,
                                       .rotate = rotate,
                                       .glu = glu,
                                       .attend = attend,
                                       .sample = sample,
                                       .attend_scratch = attend_scratch,
                                       .record_begin = record_begin,
                                       .record_end = record_end,
                                       .record_run = record_run,
                                       .record_free = record_free,
                                       .record_epoch = record_epoch};
  return &ops;
}
