/* The emulated card's side of decoding: products by the kernels themselves, launches, and records,
 * which keep a copy of each launch's arguments. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel/cuda/plan.h"
#include "kernel/gemm.h"
#include "support/cuda_emulated_internal.h"
#include "support/simt.h"
/* needs the vocabulary above */
#include "kernel/cuda/product_kernels.h"
#include "kernel/cuda/quant_kernels.h"
#include "kernel/cuda/serve_kernels.h"
#include "kernel/cuda/tall_kernels.h"
#include "support/support.h"

enum { BLOCKS = 3, LAUNCHES_MAX = 4096 };

typedef void (*kernel)(const void *);

/* --- launches and records --- */

struct launch {
  kernel run;
  const char *name;
  uint32_t blocks, threads, shared_bytes;
  void *args;
};
struct serve_record {
  struct launch launches[LAUNCHES_MAX];
  int count;
};

static struct {
  struct serve_record *recording;
  void *partials, *counters; /* shared by all products */
  size_t partial_bytes, counter_bytes;
  uint64_t epoch;
  double seconds; /* the card's clock: as many as products read bytes */
} serve;

/* What a library would compute. */
static void multiply_dense(const void *call) {
  const struct product_args *a = call;
  const struct gemm_operand x = {a->x, DTYPE_BF16, (int64_t)a->x_stride, false};
  const struct gemm_operand w = {a->tiles, DTYPE_BF16, a->cols, true};
  float *sums = test_malloc((size_t)a->tokens * a->rows * sizeof *sums);
  emulated_reach(true);
  gemm(a->tokens, a->rows, a->cols, 1, x, w, 0, sums, a->rows);
  for (uint64_t t = 0; t < a->tokens; t++)
    for (uint64_t r = 0; r < a->rows; r++) {
      const float sum = sums[t * a->rows + r] + (a->bias ? bf16_to_f32(a->bias[r]) : 0);
      if (a->y_wide)
        a->y_wide[t * a->y_stride + r] = sum;
      else
        a->y[t * a->y_stride + r] = bf16_from_f32(sum);
    }
  emulated_reach(false);
  test_free(sums);
}

static void run(const struct launch *l) {
  if (l->run)
    emulated_launch(l->run, l->name, l->blocks, l->threads, l->shared_bytes, l->args);
  else
    multiply_dense(l->args);
}

static void start(kernel code, const char *name, uint32_t blocks, uint32_t threads, uint32_t shared,
                  const void *args, size_t arg_bytes) {
  struct serve_record *r = serve.recording;
  if (!r) {
    run(&(struct launch){code, name, blocks, threads, shared, (void *)(uintptr_t)args});
    return;
  }
  assert_true(r->count < LAUNCHES_MAX);
  struct launch *l = &r->launches[r->count++];
  *l = (struct launch){code,    name,   blocks,
                       threads, shared, aligned_alloc(64, (arg_bytes + 63) / 64 * 64)};
  memcpy(l->args, args, arg_bytes);
}

static enum status record_begin(void *ctx, struct error *err) {
  (void)ctx, (void)err;
  assert_null(serve.recording);
  serve.recording = calloc(1, sizeof *serve.recording);
  return STATUS_OK;
}
static enum status record_end(void *ctx, struct serve_record **out, struct error *err) {
  (void)ctx, (void)err;
  *out = serve.recording;
  serve.recording = NULL;
  return STATUS_OK;
}
static enum status record_run(void *ctx, const struct serve_record *r, struct error *err) {
  (void)ctx, (void)err;
  for (int i = 0; i < r->count; i++) {
    run(&r->launches[i]);
    emulated_card.recorded_launches++;
  }
  return STATUS_OK;
}
static void record_free(void *ctx, struct serve_record *r) {
  (void)ctx;
  for (int i = 0; i < r->count; i++) free(r->launches[i].args);
  free(r);
}
static uint64_t record_epoch(void *ctx) {
  (void)ctx;
  return serve.epoch;
}

static enum status launch_serve(void *ctx, enum serve_kernel which, uint32_t blocks,
                                uint32_t threads, uint32_t shared_bytes, const void *args,
                                struct error *err) {
  static const struct {
    kernel run;
    const char *name;
    size_t arg_bytes;
  } kernels[] = {
#define SERVE_ENTRY(name, type) [SERVE_##name] = {name, #name, sizeof(type)},
      SERVE_KERNELS(SERVE_ENTRY)
#define ATTEND_ENTRY(lanes, rows)                                                         \
  [SERVE_attend_##lanes##x##rows] = {attend_##lanes##x##rows, "attend_" #lanes "x" #rows, \
                                     sizeof(struct serve_attend_args)},
          ATTEND_KERNELS(ATTEND_ENTRY)};
  (void)ctx, (void)err;
  start(kernels[which].run, kernels[which].name, blocks, threads, shared_bytes, args,
        kernels[which].arg_bytes);
  emulated_card.serves[which]++;
  return STATUS_OK;
}

/* --- products --- */

double emulated_dense_cost = 1;
bool emulated_idle;

static const struct panel_kernel {
  enum fragment_kind kind;
  uint32_t panel, threads;
  kernel run;
  bool tall, pair; /* the pair is one of tall kernels only: others take both */
} panel_kernels[] = {
#define PANEL_ENTRY(tokens, threads) \
  {FRAGMENT_BF16, tokens, threads, product_##tokens, false, false},
    PRODUCT_KERNELS(PANEL_ENTRY)
#define QUANT_ENTRY(bits, tokens) \
  {(bits) == 8 ? FRAGMENT_I8 : FRAGMENT_I4, tokens, 256, product_i##bits##_##tokens, false, false},
        QUANT_KERNELS(QUANT_ENTRY)
#define TALL_ENTRY(kind, pair, name, tokens) \
  {FRAGMENT_##kind, tokens, TALL_THREADS, name, true, pair},
            TALL_KERNELS(TALL_ENTRY)};

struct serve_product {
  const struct panel_kernel *kernel;
  struct product_plan plan;
  struct cluster_args args; /* `product` alone for a kernel that is not tall */
  uint32_t most, shared_bytes;
  size_t bytes;      /* of weights */
  const void *dense; /* bf16 (rows, cols): a library's product in place of a kernel's */
  void *segments, *first_segment;
};

static const struct panel_kernel *find(enum fragment_kind kind, uint32_t panel) {
  for (size_t i = 0; i < sizeof panel_kernels / sizeof *panel_kernels; i++)
    if (!panel_kernels[i].tall && panel_kernels[i].kind == kind && panel_kernels[i].panel == panel)
      return &panel_kernels[i];
  return NULL;
}

static const struct panel_kernel *find_tall(enum fragment_kind kind, bool pair) {
  for (size_t i = 0; i < sizeof panel_kernels / sizeof *panel_kernels; i++)
    if (panel_kernels[i].tall && panel_kernels[i].kind == kind && panel_kernels[i].pair == pair)
      return &panel_kernels[i];
  return NULL;
}

/* The panel that holds all tokens, or the largest, and the one below it; for pairs of more tokens
 * than theirs hold, two strips a block. */
static int variants(void *ctx, const struct gpu_matrix *m, uint32_t tokens,
                    char names[SERVE_VARIANTS_MAX][SERVE_NAME_MAX]) {
  (void)ctx;
  const enum fragment_kind kind = m->host.form.kind;
  uint32_t panel = 8;
  int count = 0;
  if (m->pair && tokens > PRODUCT_PAIR_PANEL_MAX) {
    snprintf(names[0], SERVE_NAME_MAX, "tall_%u", find_tall(kind, true)->panel);
    return 1;
  }
  while (panel < tokens && find(kind, 2 * panel)) panel *= 2;
  for (int i = 0; i < 2 && find(kind, panel); i++, panel /= 2)
    snprintf(names[count++], SERVE_NAME_MAX, "product_%u", panel);
  return count;
}

/* What all products share, for at least so much; zeroed anew. */
static enum status share(size_t partials, size_t counters, struct error *err) {
  enum status status = STATUS_OK;
  if (partials > serve.partial_bytes) {
    emulated_free(NULL, serve.partials);
    serve.epoch++;
    status = emulated_alloc(NULL, serve.partial_bytes = partials, &serve.partials, err);
  }
  if (status || counters <= serve.counter_bytes) return status;
  emulated_free(NULL, serve.counters);
  serve.epoch++;
  return emulated_alloc(NULL, serve.counter_bytes = counters, &serve.counters, err);
}

static enum status copy(const void *from, size_t bytes, void **out, struct error *err) {
  must(emulated_alloc(NULL, bytes, out, err), *err);
  return emulated_upload(NULL, *out, from, bytes, err);
}

/* The plan and the kernel that `name` names; returns how many stages it has. */
static uint32_t make_plan(struct serve_product *p, const struct gpu_matrix *m, uint32_t tokens,
                          const char *name, struct error *err) {
  const struct fragment_matrix *f = &m->host;
  const struct product_costs costs = {fragment_tile_bytes(f->form, true),
                                      fragment_tile_bytes(f->form, false)};
  const uint32_t most = emulated_card.block_shared_bytes;
  uint32_t panel = 0, stages;
  if (sscanf(name, "tall_%u", &panel) == 1) {
    assert_non_null(p->kernel = find_tall(f->form.kind, m->pair != PAIR_NONE));
    must((m->pair ? product_plan_make_pair_clusters : product_plan_make_clusters)(
             &p->plan, f, m->host_order, tokens, panel, BLOCKS, TALL_STRIPS, costs, err),
         *err);
    stages = tall_stages(f->form.kind, panel, most);
    p->shared_bytes = tall_shared_bytes(f->form.kind, panel, stages);
    return stages;
  }
  assert_int_equal(sscanf(name, "product_%u", &panel), 1);
  assert_non_null(p->kernel = find(f->form.kind, panel));
  must((m->pair ? product_plan_make_pair : product_plan_make)(&p->plan, f, tokens, panel, BLOCKS,
                                                              costs, err),
       *err);
  stages = product_stages(f->form.kind, panel, most);
  p->shared_bytes = product_shared_bytes(f->form.kind, panel, stages);
  return stages;
}

static enum status product_new(void *ctx, const struct gpu_matrix *m, const void *dense,
                               uint32_t tokens, const char *name, struct serve_product **out,
                               struct error *err) {
  const struct fragment_matrix *f = &m->host;
  struct serve_product *p = aligned_alloc(64, sizeof *p);
  memset(p, 0, sizeof *p);
  (void)ctx;
  assert_null(serve.recording); /* nothing may be made while a record is taken */
  p->most = tokens;
  if (!strcmp(name, SERVE_DENSE)) {
    assert_non_null(p->dense = dense);
    p->args.product = (struct product_args){.rows = (uint32_t)m->rows, .cols = (uint32_t)f->cols};
    p->bytes = (size_t)(m->rows * f->cols) * 2;
    *out = p;
    return STATUS_OK;
  }
  const uint32_t stages = make_plan(p, m, tokens, name, err);
  p->bytes = f->tile_bytes;
  must(copy(p->plan.segment, p->plan.segments * sizeof *p->plan.segment, &p->segments, err), *err);
  must(copy(p->plan.first_segment, (p->plan.blocks + 1) * sizeof *p->plan.first_segment,
            &p->first_segment, err),
       *err);
  must(share(product_plan_slot_bytes(&p->plan) + 1,
             product_plan_counters(&p->plan) * sizeof(uint32_t), err),
       *err);
  p->args.order = m->order;
  p->args.tiles_per_strip = (uint32_t)f->tiles_per_strip;
  p->args.cluster = TALL_STRIPS;
  p->args.product = (struct product_args){.tiles = m->tiles,
                                          .columns = m->columns,
                                          .segments = p->segments,
                                          .first_segment = p->first_segment,
                                          .rows = (uint32_t)m->rows,
                                          .cols = (uint32_t)f->cols,
                                          .stages = stages,
                                          .activation = m->pair,
                                          .gate_strips = m->pair ? (uint32_t)f->strips / 2 : 0,
                                          .sparse_step_bytes = fragment_step_bytes(f->form, true),
                                          .dense_step_bytes = fragment_step_bytes(f->form, false),
                                          .scales = f->form.scales,
                                          .mins = f->form.mins,
                                          .row_scales = m->row_scales};
  *out = p;
  return STATUS_OK;
}

static void product_free(void *ctx, struct serve_product *p) {
  (void)ctx;
  emulated_free(NULL, p->segments);
  emulated_free(NULL, p->first_segment);
  product_plan_release(&p->plan);
  free(p);
}

static enum status product_run(void *ctx, struct serve_product *p, const struct gpu_operands *o,
                               uint32_t tokens, struct error *err) {
  (void)ctx, (void)err;
  struct cluster_args whole = p->args;
  struct product_args *args = &whole.product;
  assert_true(tokens <= p->most && o->x_stride % 8 == 0 && (uintptr_t)o->x % 16 == 0);
  if (p->dense) args->tiles = p->dense;
  args->x = o->x;
  args->x_stride = o->x_stride;
  args->tokens = tokens;
  args->y = o->y;
  args->y_stride = o->y_stride;
  args->y_wide = o->y_wide;
  args->bias = o->bias;
  args->residual = o->residual;
  args->partials = serve.partials;
  args->counters = serve.counters;
  if (!emulated_idle && p->dense)
    start(NULL, "dense", 0, 0, 0, args, sizeof *args);
  else if (!emulated_idle)
    start(p->kernel->run, "product", p->plan.blocks, p->kernel->threads, p->shared_bytes, &whole,
          sizeof whole);
  serve.seconds += 1e-9 * (double)p->bytes * (p->dense ? emulated_dense_cost : p->plan.panels);
  emulated_card.dense_products += p->dense != NULL;
  emulated_card.packed_products++;
  return STATUS_OK;
}

static enum status lap(void *ctx, double *seconds, struct error *err) {
  (void)ctx, (void)err;
  *seconds = serve.seconds;
  emulated_card.timings++;
  serve.seconds = 0;
  return STATUS_OK;
}

static void machine(void *ctx, char card[256], char text[512]) {
  (void)ctx;
  snprintf(card, 256, "emulated");
  snprintf(text, 512, "emulated, no driver");
}

const struct serve_runtime *emulated_serve(void) {
  static const struct serve_runtime runtime = {.launch = launch_serve,
                                               .variants = variants,
                                               .product_new = product_new,
                                               .product_free = product_free,
                                               .product_run = product_run,
                                               .lap = lap,
                                               .machine = machine,
                                               .record_begin = record_begin,
                                               .record_end = record_end,
                                               .record_run = record_run,
                                               .record_free = record_free,
                                               .record_epoch = record_epoch};
  return &runtime;
}

void emulated_serve_close(void) {
  assert_null(serve.recording);
  emulated_free(NULL, serve.partials);
  emulated_free(NULL, serve.counters);
  memset(&serve, 0, sizeof serve);
}
