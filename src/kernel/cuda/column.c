/* The CUDA column: see column.h. Products, rows and losses; masks and attention are in
 * column_mask.c and column_attention.c. */
#include "kernel/cuda/column.h"

#include "base/error.h"
#include "kernel/cuda/column_internal.h"
#include "kernel/cuda/record.h"

struct cuda_column cuda_column;

/* --- what all operations share --- */

void column_note(enum status status, const struct error *err) {
  if (status != STATUS_OK && cuda_column.first.status == STATUS_OK) cuda_column.first = *err;
}

void *column_scratch(enum column_scratch which, size_t bytes) {
  struct column_room *room = &cuda_column.scratch[which];
  const struct cuda_runtime *rt = cuda_column.runtime;
  struct error err = {0};
  if (bytes <= room->bytes) return room->memory;
  rt->free(rt->ctx, room->memory);
  *room = (struct column_room){0};
  const enum status status = rt->alloc(rt->ctx, bytes, &room->memory, &err);
  column_note(status, &err);
  if (status != STATUS_OK) return NULL;
  room->bytes = bytes;
  return room->memory;
}

void column_launch(enum learn_kernel kernel, uint32_t blocks, uint32_t threads,
                   uint32_t shared_bytes, const void *args) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  struct error err = {0};
  if (!blocks || cuda_column.first.status != STATUS_OK) return;
  column_note(rt->launch(rt->ctx, kernel, blocks, threads, shared_bytes, args, &err), &err);
}

uint32_t column_blocks(uint64_t items, uint32_t per_block) {
  const uint64_t needed = (items + per_block - 1) / per_block;
  const uint64_t most = (uint64_t)cuda_column.runtime->multiprocessors * COLUMN_WAVES;
  return (uint32_t)(needed < most ? needed : most);
}

uint32_t column_element(enum dtype dtype) {
  INVARIANT(dtype_is_native(dtype));
  return dtype == DTYPE_F32 ? ELEMENT_F32 : dtype == DTYPE_BF16 ? ELEMENT_BF16 : ELEMENT_F16;
}

/* Host memory of a call, in the column's scratch. */
static void *bring(enum column_scratch which, const void *from, size_t bytes) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  struct error err = {0};
  void *to = column_scratch(which, bytes);
  if (to) column_note(rt->upload(rt->ctx, to, from, bytes, &err), &err);
  return to;
}

/* --- memory --- */

static enum status failed_before(struct error *err) {
  if (cuda_column.first.status == STATUS_OK) return STATUS_OK;
  *err = cuda_column.first;
  return err->status;
}

static enum status alloc(size_t bytes, void **out, struct error *err) {
  return cuda_column.runtime->alloc(cuda_column.runtime->ctx, bytes, out, err);
}
static void free_memory(void *memory) {
  if (memory) cuda_column.runtime->free(cuda_column.runtime->ctx, memory);
}
static enum status upload(void *to, const void *from, size_t bytes, struct error *err) {
  return cuda_column.runtime->upload(cuda_column.runtime->ctx, to, from, bytes, err);
}
static enum status download(void *to, const void *from, size_t bytes, struct error *err) {
  enum status status = failed_before(err);
  if (status != STATUS_OK) return status;
  return cuda_column.runtime->download(cuda_column.runtime->ctx, to, from, bytes, err);
}
static enum status wait(struct error *err) {
  enum status status = failed_before(err);
  return status != STATUS_OK ? status : cuda_column.runtime->wait(cuda_column.runtime->ctx, err);
}
static void clear(void *memory, size_t bytes) {
  struct error err = {0};
  column_note(cuda_column.runtime->clear(cuda_column.runtime->ctx, memory, bytes, &err), &err);
}
static void copy(float *to, const float *from, int64_t n) {
  struct error err = {0};
  const size_t bytes = (size_t)n * sizeof *to;
  column_note(cuda_column.runtime->copy(cuda_column.runtime->ctx, to, from, bytes, &err), &err);
}

/* --- beside the work --- */

static enum status alloc_host(size_t bytes, void **out, struct error *err) {
  return cuda_column.runtime->alloc_host(cuda_column.runtime->ctx, bytes, out, err);
}
static void free_host(void *memory) {
  if (memory) cuda_column.runtime->free_host(cuda_column.runtime->ctx, memory);
}
static void fetch(int buffer, void *to, const void *from, size_t bytes) {
  struct error err = {0};
  const struct cuda_runtime *rt = cuda_column.runtime;
  column_note(rt->fetch(rt->ctx, buffer, to, from, bytes, &err), &err);
}
static void arrive(int buffer) {
  struct error err = {0};
  column_note(cuda_column.runtime->arrive(cuda_column.runtime->ctx, buffer, &err), &err);
}
static void put(int buffer, void *to, const void *from, size_t bytes) {
  struct error err = {0};
  const struct cuda_runtime *rt = cuda_column.runtime;
  column_note(rt->put(rt->ctx, buffer, to, from, bytes, &err), &err);
}

static void copy_aside(void *to, const void *from, size_t bytes) {
  struct error err = {0};
  const struct cuda_runtime *rt = cuda_column.runtime;
  column_note(rt->copy_aside(rt->ctx, to, from, bytes, &err), &err);
  cuda_column.aside = true;
}
static void await_aside(void) {
  struct error err = {0};
  if (!cuda_column.aside) return;
  cuda_column.aside = false;
  column_note(cuda_column.runtime->await_aside(cuda_column.runtime->ctx, &err), &err);
}

static enum status record(bool on, struct error *err) {
  struct cuda_column *c = &cuda_column;
  enum status status = STATUS_OK;
  if (on == (c->plain != NULL)) return STATUS_OK;
  if (on) {
    const struct cuda_runtime *recording;
    status = record_open(&recording, c->runtime, err);
    if (status != STATUS_OK) return status;
    c->plain = c->runtime;
    c->runtime = recording;
    return STATUS_OK;
  }
  status = c->runtime->wait(c->runtime->ctx, err);
  record_close();
  c->runtime = c->plain;
  c->plain = NULL;
  return status;
}

/* --- products --- */

/* `n` elements in what the product wants, in place or through scratch. */
static const void *operand(enum column_scratch which, const void *from, enum dtype dtype, int64_t n,
                           bool bf16) {
  if (dtype == (bf16 ? DTYPE_BF16 : DTYPE_F32)) return from;
  struct convert_args args = {.from = from,
                              .to = column_scratch(which, (size_t)n * (bf16 ? 2 : 4)),
                              .n = (uint64_t)n,
                              .type = column_element(dtype),
                              .to_type = bf16 ? ELEMENT_BF16 : ELEMENT_F32,
                              .blocks = column_blocks((uint64_t)n, LEARN_THREADS)};
  if (args.to) column_launch(LEARN_convert_elements, args.blocks, LEARN_THREADS, 0, &args);
  return args.to;
}

void column_multiply(struct dense_product p) {
  const struct cuda_runtime *rt = cuda_column.runtime;
  struct error err = {0};
  if (!p.a || !p.b || cuda_column.first.status != STATUS_OK || p.m <= 0) return;
  column_note(rt->multiply(rt->ctx, &p, &err), &err);
}

static void forward(const struct linear_weight *w, const float *bias, const float *x,
                    int64_t tokens, enum precision precision, float *y) {
  const int64_t rows = w->dense.rows, cols = w->dense.cols;
  const bool bf16 = precision == PRECISION_BF16;
  INVARIANT(!w->hybrid && !w->strips && !w->quant && !w->integers);
  column_multiply((struct dense_product){
      .m = tokens,
      .n = rows,
      .k = cols,
      .a = operand(COLUMN_OPERAND_A, x, DTYPE_F32, tokens * cols, bf16),
      .b = operand(COLUMN_OPERAND_B, w->dense.data, w->dense.dtype, rows * cols, bf16),
      .b_transposed = true,
      .bf16 = bf16,
      .c = y});
  if (!bias) return;
  struct element_args args = {.a = bias,
                              .out = y,
                              .n = (uint64_t)(tokens * rows),
                              .period = (uint32_t)rows,
                              .blocks = column_blocks((uint64_t)(tokens * rows), LEARN_THREADS)};
  column_launch(LEARN_add_bias, args.blocks, LEARN_THREADS, 0, &args);
}

static void backward_input(const struct linear_weight *w, const float *dy, int64_t tokens,
                           enum precision precision, float *dx, bool accumulate) {
  const int64_t rows = w->dense.rows, cols = w->dense.cols;
  const bool bf16 = precision == PRECISION_BF16;
  INVARIANT(!w->hybrid && !w->strips && !w->quant && !w->integers);
  column_multiply((struct dense_product){
      .m = tokens,
      .n = cols,
      .k = rows,
      .a = operand(COLUMN_OPERAND_A, dy, DTYPE_F32, tokens * rows, bf16),
      .b = operand(COLUMN_OPERAND_B, w->dense.data, w->dense.dtype, rows * cols, bf16),
      .accumulate = accumulate,
      .bf16 = bf16,
      .c = dx});
}

static void backward_weight(const float *dy, const float *x, int64_t tokens, int64_t rows,
                            int64_t cols, enum precision precision, float *dw, bool accumulate) {
  const bool bf16 = precision == PRECISION_BF16;
  column_multiply(
      (struct dense_product){.m = rows,
                             .n = cols,
                             .k = tokens,
                             .a = operand(COLUMN_OPERAND_A, dy, DTYPE_F32, tokens * rows, bf16),
                             .b = operand(COLUMN_OPERAND_B, x, DTYPE_F32, tokens * cols, bf16),
                             .a_transposed = true,
                             .accumulate = accumulate,
                             .bf16 = bf16,
                             .c = dw});
}

/* --- rows --- */

static void embed(const struct linear_weight *table, const int32_t *ids, int64_t tokens,
                  float scale, float *hidden) {
  const uint64_t count = (uint64_t)(tokens * table->dense.cols);
  INVARIANT(!table->hybrid && !table->strips);
  struct embed_args args = {
      .table = table->dense.data,
      .ids = bring(COLUMN_IDS, ids, (size_t)tokens * sizeof *ids),
      .hidden = hidden,
      .count = count,
      .n = (uint32_t)table->dense.cols,
      .type = column_element(table->dense.dtype),
      .blocks = column_blocks(count, LEARN_THREADS),
      .scale = scale,
  };
  column_launch(LEARN_embed_rows, args.blocks, LEARN_THREADS, 0, &args);
}

static void norm(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                 int64_t n, float *y, float *inverse) {
  struct rmsnorm_args args = {.x = x,
                              .weight = weight,
                              .y = y,
                              .inverse = inverse,
                              .rows = (uint32_t)rows,
                              .n = (uint32_t)n,
                              .blocks = column_blocks((uint64_t)rows, LEARN_WARPS),
                              .plus_one = plus_one,
                              .eps = (float)eps};
  column_launch(LEARN_rmsnorm_rows, args.blocks, LEARN_THREADS, 0, &args);
}

static void norm_backward(const float *dy, const float *x, const float *weight, bool plus_one,
                          const float *inverse, int64_t rows, int64_t n, float *dx,
                          bool accumulate) {
  struct rmsnorm_args args = {.x = x,
                              .weight = weight,
                              .dy = dy,
                              .y = dx,
                              .inverse = (float *)inverse,
                              .rows = (uint32_t)rows,
                              .n = (uint32_t)n,
                              .blocks = column_blocks((uint64_t)rows, LEARN_WARPS),
                              .plus_one = plus_one,
                              .accumulate = accumulate};
  column_launch(LEARN_rmsnorm_back, args.blocks, LEARN_THREADS, 0, &args);
}

static void rotate(float *x, int64_t rows, int64_t length, const int64_t *starts, int64_t heads,
                   int64_t head_dim, const float *cos, const float *sin, int direction) {
  const uint64_t pairs = (uint64_t)(rows * heads * (head_dim / 2));
  INVARIANT(!starts);
  struct rope_args args = {.x = x,
                           .cos = cos,
                           .sin = sin,
                           .pairs = pairs,
                           .length = (uint32_t)length,
                           .heads = (uint32_t)heads,
                           .half = (uint32_t)(head_dim / 2),
                           .blocks = column_blocks(pairs, LEARN_THREADS),
                           .sign = direction < 0 ? -1.0f : 1.0f};
  column_launch(LEARN_rope_pairs, args.blocks, LEARN_THREADS, 0, &args);
}

static void elements(enum learn_kernel kernel, struct element_args args) {
  args.blocks = column_blocks(args.n, LEARN_THREADS);
  column_launch(kernel, args.blocks, LEARN_THREADS, 0, &args);
}

static void glu(bool gelu, const float *gate, const float *up, int64_t n, float *out) {
  elements(LEARN_glu_elements,
           (struct element_args){.a = gate, .b = up, .out = out, .n = (uint64_t)n, .gelu = gelu});
}
static void glu_gradient(bool gelu, const float *gate, const float *up, const float *dout,
                         int64_t n, float *dgate, float *dup) {
  elements(LEARN_glu_back, (struct element_args){.a = gate,
                                                 .b = up,
                                                 .c = dout,
                                                 .out = dgate,
                                                 .out2 = dup,
                                                 .n = (uint64_t)n,
                                                 .gelu = gelu});
}
static void add(float *x, const float *y, int64_t n) {
  elements(LEARN_add_elements, (struct element_args){.a = y, .out = x, .n = (uint64_t)n});
}
static void softcap(float *x, int64_t n, double cap) {
  elements(LEARN_softcap_elements,
           (struct element_args){.out = x, .n = (uint64_t)n, .cap = (float)cap});
}
static void softcap_gradient(float *dx, const float *y, int64_t n, double cap) {
  elements(LEARN_softcap_back,
           (struct element_args){.a = y, .out = dx, .n = (uint64_t)n, .cap = (float)cap});
}

/* --- losses --- */

static void losses(struct loss_args args, const int32_t *targets) {
  if (targets) args.targets = bring(COLUMN_IDS, targets, args.rows * sizeof *targets);
  column_launch(LEARN_loss_rows, args.rows, LEARN_THREADS, 12 * LEARN_WARPS, &args);
}

static void entropy(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                    float scale, float *nll, float *dlogits) {
  losses((struct loss_args){.logits = logits,
                            .nll = nll,
                            .dlogits = dlogits,
                            .rows = (uint32_t)rows,
                            .vocab = (uint32_t)vocab,
                            .scale = scale},
         targets);
}

static void score(const float *logits, const int32_t *targets, int64_t rows, int64_t vocab,
                  float *nll, uint8_t *likeliest) {
  losses((struct loss_args){.logits = logits,
                            .nll = nll,
                            .agree = likeliest,
                            .rows = (uint32_t)rows,
                            .vocab = (uint32_t)vocab},
         targets);
}

static void divergence(const float *reference, const float *model, int64_t rows, int64_t vocab,
                       float *kl, uint8_t *agree) {
  losses((struct loss_args){.logits = model,
                            .teacher = reference,
                            .kl = kl,
                            .agree = agree,
                            .rows = (uint32_t)rows,
                            .vocab = (uint32_t)vocab},
         NULL);
}

static void distill(const float *logits, const float *teacher, const int32_t *targets, int64_t rows,
                    int64_t vocab, struct distill_rule rule, float scale, float *nll, float *kl,
                    float *dlogits) {
  INVARIANT(rule.kind == DISTILL_FORWARD); /* learner_init refuses the others */
  losses((struct loss_args){.logits = logits,
                            .teacher = teacher,
                            .nll = nll,
                            .kl = kl,
                            .dlogits = dlogits,
                            .rows = (uint32_t)rows,
                            .vocab = (uint32_t)vocab,
                            .weight = (float)rule.weight,
                            .scale = scale},
         targets);
}

/* --- the column --- */

const struct backend *cuda_column_open(const struct cuda_runtime *runtime) {
  static struct backend column = {
      .name = "cuda",
      .is_host = false,
      .logit_elements = CUDA_LOGIT_ELEMENTS,
      .alloc = alloc,
      .free = free_memory,
      .upload = upload,
      .download = download,
      .wait = wait,
      .clear = clear,
      .copy_floats = copy,
      .alloc_host = alloc_host,
      .free_host = free_host,
      .fetch = fetch,
      .arrive = arrive,
      .put = put,
      .copy_aside = copy_aside,
      .await_aside = await_aside,
      .record = record,
      .linear_forward = forward,
      .linear_backward_input = backward_input,
      .linear_backward_weight = backward_weight,
      .embed = embed,
      .rmsnorm_forward = norm,
      .rmsnorm_backward = norm_backward,
      .rope_apply = rotate,
      .glu_forward = glu,
      .glu_backward = glu_gradient,
      .add_inplace = add,
      .softcap_forward = softcap,
      .softcap_backward = softcap_gradient,
      .attention_forward = column_attention_forward,
      .attention_backward = column_attention_backward,
      .cross_entropy = entropy,
      .score_targets = score,
      .softmax_kl = divergence,
      .distill_loss = distill,
      .mask_sample = column_mask_sample,
      .mask_backward = column_mask_backward,
      .mask_gradient_squares = column_mask_gradient_squares,
      .mask_adamw_step = column_mask_adamw_step,
      .mask_compact_step = column_mask_compact_step,
      .mask_harden = column_mask_harden,
      .mask_keep = column_mask_keep,
  };
  INVARIANT(!cuda_column.runtime);
  cuda_column = (struct cuda_column){.runtime = runtime};
  column.sparsegpt = &column_sparsegpt_ops;
  column.serve = runtime->serve ? column_serve_ops() : NULL;
  return &column;
}

void cuda_column_close(void) {
  struct error err;
  if (!cuda_column.runtime) return;
  record(false, &err); /* what failed no longer matters */
  for (int i = 0; i < COLUMN_SCRATCHES; i++) free_memory(cuda_column.scratch[i].memory);
  cuda_column = (struct cuda_column){0};
}
