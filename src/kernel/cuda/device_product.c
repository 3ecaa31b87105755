/* See device.h: which kernels a card can run, and products on it. */
#include <stdio.h>
#include <string.h>

#include "kernel/cuda/device_internal.h"

/* In product.cu, quant.cu, cluster.cu and tall.cu: the kernel for panels of so many tokens, or
 * NULL. */
const void *product_kernel(uint32_t panel_tokens);
const void *quant_kernel(uint32_t bits, uint32_t panel_tokens);
const void *cluster_kernel(enum fragment_kind kind, bool pair, uint32_t panel_tokens);
const void *tall_kernel(enum fragment_kind kind, bool pair, uint32_t panel_tokens);

/* --- what the card can run --- */

static const struct kernel_facts known_kernels[GPU_KERNELS] = {
#define KERNEL_ROW(tokens, threads) {FRAGMENT_BF16, false, tokens, threads, 0, 0, 0},
    PRODUCT_KERNELS(KERNEL_ROW)
#define QUANT_ROW(bits, tokens) \
  {(bits) == 8 ? FRAGMENT_I8 : FRAGMENT_I4, false, tokens, 256, 0, 0, 0},
        QUANT_KERNELS(QUANT_ROW)};
static const struct cluster_facts known_cluster_kernels[GPU_CLUSTER_KERNELS] = {
#define CLUSTER_ROW(kind, pair, name, tokens) {FRAGMENT_##kind, pair, tokens, 0, 0, {0}},
    CLUSTER_KERNELS(CLUSTER_ROW)};

static const struct kernel_facts known_tall_kernels[GPU_TALL_KERNELS] = {
#define TALL_ROW(kind, pair, name, tokens) {FRAGMENT_##kind, pair, tokens, TALL_THREADS, 0, 0, 0},
    TALL_KERNELS(TALL_ROW)};

static enum status allow_shared(const void *code, uint32_t bytes, struct error *err) {
  return gpu_check(
      err, cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
      "give a kernel its shared memory");
}

static const void *kernel_code(const struct kernel_facts *kernel) {
  if (kernel->kind == FRAGMENT_BF16) return product_kernel(kernel->panel_tokens);
  return quant_kernel(kernel->kind == FRAGMENT_I8 ? 8 : 4, kernel->panel_tokens);
}

/* The kernel's shared memory, and how many of its blocks a multiprocessor takes; left at 0 where
 * not even the least number of stages fits. */
static enum status read_kernel(struct kernel_facts *kernel, const void *code, uint32_t stages,
                               uint32_t shared_bytes, struct error *err) {
  if (!code || !stages) return STATUS_OK;
  kernel->stages = stages;
  kernel->shared_bytes = shared_bytes;
  enum status status = allow_shared(code, shared_bytes, err);
  return status ? status
                : gpu_check(err,
                            cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                &kernel->blocks, code, (int)kernel->threads, shared_bytes),
                            "load the kernels of this build");
}

#ifdef TSR_CUDA_SM90A
/* A launch of clusters; `attribute` must live as long. */
static cudaLaunchConfig_t cluster_launch(const struct gpu *gpu, const struct cluster_facts *kernel,
                                         uint32_t clusters, uint32_t cluster,
                                         cudaLaunchAttribute *attribute) {
  *attribute = (cudaLaunchAttribute){.id = cudaLaunchAttributeClusterDimension};
  attribute->val.clusterDim.x = cluster;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  return (cudaLaunchConfig_t){.gridDim = {clusters * cluster, 1, 1},
                              .blockDim = {CLUSTER_THREADS, 1, 1},
                              .dynamicSmemBytes = kernel->shared_bytes,
                              .stream = gpu->stream,
                              .attrs = attribute,
                              .numAttrs = 1};
}

/* The driver's function is asked for by name, so that the program starts where there is none. */
static enum status find_encoder(struct gpu *gpu, struct error *err) {
  void *found = NULL;
  enum cudaDriverEntryPointQueryResult result;
  enum status status =
      gpu_check(err,
                cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                 cudaEnableDefault, &result),
                "find the driver's tensor maps");
  if (!status && result == cudaDriverEntryPointSuccess)
    memcpy(&gpu->encode_map, &found, sizeof found);
  return status;
}

static enum status read_cluster_kernel(struct gpu *gpu, struct cluster_facts *kernel,
                                       struct error *err) {
  const void *code = cluster_kernel(kernel->kind, kernel->pair, kernel->panel_tokens);
  kernel->stages = cluster_stages(kernel->kind, kernel->pair, kernel->panel_tokens,
                                  gpu->facts.block_shared_bytes);
  if (!code || !kernel->stages) return STATUS_OK;
  kernel->shared_bytes =
      cluster_shared_bytes(kernel->kind, kernel->pair, kernel->panel_tokens, kernel->stages);
  enum status status = allow_shared(code, kernel->shared_bytes, err);
  for (int size = 0; size < CLUSTER_SIZES && !status; size++) {
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t launch = cluster_launch(gpu, kernel, 1, 1u << size, &attribute);
    status = gpu_check(err, cudaOccupancyMaxActiveClusters(&kernel->clusters[size], code, &launch),
                       "load the kernels of this build");
  }
  return status;
}

static enum status read_cluster_kernels(struct gpu *gpu, struct error *err) {
  if (gpu->facts.major != 9 || gpu->facts.minor != 0) return STATUS_OK;
  enum status status = find_encoder(gpu, err);
  for (int k = 0; k < GPU_CLUSTER_KERNELS && gpu->encode_map && !status; k++)
    status = read_cluster_kernel(gpu, &gpu->cluster_kernels[k], err);
  return status;
}
#else
static enum status read_cluster_kernels(struct gpu *gpu, struct error *err) { return STATUS_OK; }
#endif

enum status gpu_products_open(struct gpu *gpu, struct error *err) {
  memcpy(gpu->kernels, known_kernels, sizeof known_kernels);
  memcpy(gpu->cluster_kernels, known_cluster_kernels, sizeof known_cluster_kernels);
  memcpy(gpu->tall_kernels, known_tall_kernels, sizeof known_tall_kernels);
  const uint32_t most = gpu->facts.block_shared_bytes;
  enum status status = STATUS_OK;
  for (int k = 0; k < GPU_KERNELS && !status; k++) {
    struct kernel_facts *kernel = &gpu->kernels[k];
    const uint32_t stages = product_stages(kernel->kind, kernel->panel_tokens, most);
    status = read_kernel(kernel, kernel_code(kernel), stages,
                         product_shared_bytes(kernel->kind, kernel->panel_tokens, stages), err);
  }
  for (int k = 0; k < GPU_TALL_KERNELS && gpu->facts.major < 9 && !status; k++) {
    struct kernel_facts *kernel = &gpu->tall_kernels[k];
    const uint32_t stages = tall_stages(kernel->kind, kernel->panel_tokens, most);
    status =
        read_kernel(kernel, tall_kernel(kernel->kind, kernel->pair, kernel->panel_tokens), stages,
                    tall_shared_bytes(kernel->kind, kernel->panel_tokens, stages), err);
  }
  if (status) return status;
  return read_cluster_kernels(gpu, err);
}

/* --- which to take --- */

static const struct kernel_facts *find_kernel(const struct gpu *gpu, enum fragment_kind kind,
                                              uint32_t panel_tokens) {
  for (int k = 0; k < GPU_KERNELS; k++) {
    const struct kernel_facts *kernel = &gpu->kernels[k];
    if (kernel->kind == kind && kernel->panel_tokens == panel_tokens && kernel->blocks)
      return kernel;
  }
  return NULL;
}

static const struct kernel_facts *find_tall_kernel(const struct gpu *gpu, enum fragment_kind kind,
                                                   bool pair, uint32_t panel_tokens) {
  for (int k = 0; k < GPU_TALL_KERNELS; k++) {
    const struct kernel_facts *kernel = &gpu->tall_kernels[k];
    if (kernel->kind == kind && kernel->pair == pair && kernel->panel_tokens == panel_tokens &&
        kernel->blocks)
      return kernel;
  }
  return NULL;
}

/* Clusters first, large ones before small ones: they ask the least of the second-level cache; then
 * two strips a block. Then the panel that holds all tokens or, when none does, the largest, and two
 * smaller ones, which waste less of the last panel. */
static int list_variants(const struct gpu *gpu, enum fragment_kind kind, bool pair, int64_t strips,
                         uint32_t tokens, struct gpu_variant out[GPU_VARIANTS_MAX]) {
  int count = 0;
  for (int k = GPU_CLUSTER_KERNELS - 1; k >= 0 && tokens > 64; k--) {
    const struct cluster_facts *kernel = &gpu->cluster_kernels[k];
    if (kernel->kind != kind || kernel->pair != pair) continue;
    if (kernel->panel_tokens > 128 && tokens <= 128) continue;
    /* A pair's two halves are in one cluster. */
    for (int size = CLUSTER_SIZES - 1; size >= (pair ? 1 : 0); size--)
      if (kernel->clusters[size] && strips >= 1 << size)
        out[count++] = (struct gpu_variant){kernel->panel_tokens, 1u << size, false};
  }
  for (int k = 0; k < GPU_TALL_KERNELS && tokens > 64 && strips > 1; k++) {
    const struct kernel_facts *kernel = &gpu->tall_kernels[k];
    if (kernel->kind == kind && kernel->pair == pair && kernel->blocks)
      out[count++] = (struct gpu_variant){kernel->panel_tokens, 0, true};
  }
  uint32_t panel = 8;
  while (panel < tokens && find_kernel(gpu, kind, 2 * panel) &&
         !(pair && 2 * panel > PRODUCT_PAIR_PANEL_MAX))
    panel *= 2;
  for (int i = 0; i < 3 && panel >= 8; i++, panel /= 2)
    if (find_kernel(gpu, kind, panel)) out[count++] = (struct gpu_variant){panel, 0, false};
  return count;
}

int gpu_variants(const struct gpu *gpu, struct fragment_form form, int64_t strips, uint32_t tokens,
                 struct gpu_variant out[GPU_VARIANTS_MAX]) {
  return list_variants(gpu, form.kind, false, strips, tokens, out);
}

int gpu_matrix_variants(const struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                        struct gpu_variant out[GPU_VARIANTS_MAX]) {
  return list_variants(gpu, m->host.form.kind, m->pair != PAIR_NONE, m->host.strips, tokens, out);
}

static const struct cluster_facts *find_cluster_kernel(const struct gpu *gpu,
                                                       enum fragment_kind kind, bool pair,
                                                       struct gpu_variant variant, int *clusters) {
  for (int k = 0; k < GPU_CLUSTER_KERNELS; k++)
    for (int size = 0; size < CLUSTER_SIZES; size++) {
      const struct cluster_facts *kernel = &gpu->cluster_kernels[k];
      *clusters = kernel->clusters[size];
      if (kernel->kind == kind && kernel->pair == pair &&
          kernel->panel_tokens == variant.panel_tokens && variant.cluster == 1u << size &&
          *clusters && !(pair && variant.cluster == 1))
        return kernel;
    }
  return NULL;
}

void gpu_variant_name(struct gpu_variant variant, char out[32]) {
  if (variant.cluster)
    snprintf(out, 32, "cluster_%ux%u", variant.panel_tokens, variant.cluster);
  else
    snprintf(out, 32, "%s_%u", variant.tall ? "tall" : "product", variant.panel_tokens);
}

bool gpu_variant_runs(const struct gpu *gpu, struct fragment_form form,
                      struct gpu_variant variant) {
  int clusters;
  if (variant.tall) return find_tall_kernel(gpu, form.kind, false, variant.panel_tokens) != NULL;
  if (!variant.cluster) return find_kernel(gpu, form.kind, variant.panel_tokens) != NULL;
  return find_cluster_kernel(gpu, form.kind, false, variant, &clusters) != NULL;
}

/* --- products --- */

/* Decoding is bound by the bytes of the weights; in prefill a 2:4 tile takes half of a dense tile's
 * instructions and, as the activations cost the same, some three fifths of its time. */
static struct product_costs costs_of(struct fragment_form form, uint32_t panel_tokens) {
  if (panel_tokens > 64) return (struct product_costs){3, 5};
  return (struct product_costs){fragment_tile_bytes(form, true), fragment_tile_bytes(form, false)};
}

static enum status plan_product(struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                                struct gpu_product *p, struct error *err) {
  const struct gpu_variant v = p->variant;
  const struct product_costs costs = costs_of(m->host.form, v.panel_tokens);
  int clusters;
  const bool by_columns = v.cluster || v.tall, pair = m->pair != PAIR_NONE;
  const struct kernel_facts *kernel = NULL;
  if (by_columns && v.cluster) {
    const struct cluster_facts *facts =
        find_cluster_kernel(gpu, m->host.form.kind, pair, v, &clusters);
    if (!facts) goto unknown;
    p->args.product.stages = facts->stages;
    return (pair ? product_plan_make_pair_clusters : product_plan_make_clusters)(
        &p->plan, &m->host, m->host_order, tokens, v.panel_tokens, (uint32_t)clusters, v.cluster,
        costs, err);
  }
  if (by_columns)
    kernel = find_tall_kernel(gpu, m->host.form.kind, pair, v.panel_tokens);
  else if (!(pair && v.panel_tokens > PRODUCT_PAIR_PANEL_MAX))
    kernel = find_kernel(gpu, m->host.form.kind, v.panel_tokens);
  if (!kernel) goto unknown;
  p->args.product.stages = kernel->stages;
  const uint32_t blocks = (uint32_t)(gpu->facts.multiprocessors * kernel->blocks);
  if (by_columns)
    return (pair ? product_plan_make_pair_clusters : product_plan_make_clusters)(
        &p->plan, &m->host, m->host_order, tokens, v.panel_tokens, blocks, TALL_STRIPS, costs, err);
  return (pair ? product_plan_make_pair : product_plan_make)(&p->plan, &m->host, tokens,
                                                             v.panel_tokens, blocks, costs, err);
unknown:
  return error_set(err, STATUS_USAGE,
                   "no kernel of this build takes panels of %u tokens in clusters of %u on %s; "
                   "build with its architecture in TSR_CUDA_ARCHITECTURES",
                   v.panel_tokens, v.cluster, gpu->facts.name);
}

static enum status upload_plan(struct gpu *gpu, struct gpu_product *p, struct error *err) {
  const struct product_plan *plan = &p->plan;
  const size_t counter_bytes = product_plan_counters(plan) * sizeof(uint32_t);
  enum status status =
      gpu_alloc_copy(gpu, plan->segment, plan->segments * sizeof *plan->segment, &p->segments, err);
  if (!status)
    status = gpu_alloc_copy(gpu, plan->first_segment,
                            ((size_t)plan->blocks + 1) * sizeof *plan->first_segment,
                            &p->first_segment, err);
  if (!status) status = gpu_alloc(gpu, product_plan_slot_bytes(plan), &p->partials, err);
  if (!status) status = gpu_alloc(gpu, counter_bytes, &p->counters, err);
  return status ? status : gpu_zero(gpu, p->counters, counter_bytes, err);
}

static void fill_args(struct gpu_product *p, const struct gpu_matrix *m, uint32_t tokens) {
  struct product_args *args = &p->args.product;
  args->tiles = m->tiles;
  args->columns = m->columns;
  args->segments = p->segments;
  args->first_segment = p->first_segment;
  args->tokens = tokens;
  args->rows = (uint32_t)m->rows;
  args->cols = (uint32_t)m->host.cols;
  args->partials = p->partials;
  args->counters = p->counters;
  args->activation = m->pair;
  args->gate_strips = m->pair ? (uint32_t)m->host.strips / 2 : 0;
  args->sparse_step_bytes = fragment_step_bytes(m->host.form, true);
  args->dense_step_bytes = fragment_step_bytes(m->host.form, false);
  args->scales = m->host.form.scales;
  args->mins = m->host.form.mins;
  args->row_scales = m->row_scales;
  p->args.order = m->order;
  p->args.tiles_per_strip = (uint32_t)m->host.tiles_per_strip;
  p->args.cluster = p->variant.cluster;
}

enum status gpu_product_prepare(struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                                const struct gpu_variant *variant, struct gpu_product *out,
                                struct error *err) {
  struct gpu_variant known[GPU_VARIANTS_MAX];
  struct gpu_product p = {0};
  if (!variant && !gpu_matrix_variants(gpu, m, tokens, known))
    return error_set(err, STATUS_USAGE,
                     "this build has no kernels for %s; build with its architecture in "
                     "TSR_CUDA_ARCHITECTURES",
                     gpu->facts.name);
  p.variant = variant ? *variant : known[0];
  p.kind = m->host.form.kind;
  enum status status = plan_product(gpu, m, tokens, &p, err);
  if (!status) status = upload_plan(gpu, &p, err);
  if (status) {
    gpu_product_free(gpu, &p);
    return status;
  }
  fill_args(&p, m, tokens);
  *out = p;
  return STATUS_OK;
}

void gpu_product_free(struct gpu *gpu, struct gpu_product *p) {
  gpu_free(gpu, p->segments);
  gpu_free(gpu, p->first_segment);
  gpu_free(gpu, p->partials);
  gpu_free(gpu, p->counters);
  product_plan_release(&p->plan);
  *p = (struct gpu_product){0};
}

static bool is_pair(const struct gpu_product *p) { return p->args.product.activation != PAIR_NONE; }

#ifdef TSR_CUDA_SM90A
/* The activations as the copy engine sees them: boxes of 64 columns and a block's share of a
 * panel, chunks swizzled within 128 bytes, zeros past the edges. */
static enum status encode_map(const struct gpu *gpu, const struct gpu_product *p,
                              struct cluster_args *args, struct error *err) {
  CUtensorMap map;
  const struct product_args *product = &args->product;
  const cuuint64_t size[2] = {product->cols, product->tokens};
  const cuuint64_t stride[1] = {product->x_stride * sizeof(uint16_t)};
  const cuuint32_t box[2] = {FRAGMENT_STEP_COLS, p->variant.panel_tokens / args->cluster};
  const cuuint32_t step[2] = {1, 1};
  const CUresult code = gpu->encode_map(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)product->x, size, stride, box,
      step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code)
    return error_set(err, STATUS_FAILED,
                     "the GPU's driver refuses activations of %u columns, %llu apart (code %d)",
                     product->cols, (unsigned long long)product->x_stride, (int)code);
  _Static_assert(sizeof map == sizeof args->x, "the driver's map");
  memcpy(&args->x, &map, sizeof map);
  return STATUS_OK;
}

static enum status run_clusters(struct gpu *gpu, const struct gpu_product *p,
                                struct cluster_args *args, struct error *err) {
  int clusters;
  const struct cluster_facts *kernel =
      find_cluster_kernel(gpu, p->kind, is_pair(p), p->variant, &clusters);
  cudaLaunchAttribute attribute;
  void *parameters[] = {args};
  INVARIANT(kernel);
  enum status status = encode_map(gpu, p, args, err);
  if (status) return status;
  const cudaLaunchConfig_t launch =
      cluster_launch(gpu, kernel, p->plan.blocks, args->cluster, &attribute);
  return gpu_check(
      err,
      cudaLaunchKernelExC(&launch, cluster_kernel(p->kind, is_pair(p), p->variant.panel_tokens),
                          parameters),
      "start a hybrid product");
}
#else
static enum status run_clusters(struct gpu *gpu, const struct gpu_product *p,
                                struct cluster_args *args, struct error *err) {
  INVARIANT(!"a product of clusters cannot be prepared in this build");
  return STATUS_FAILED;
}
#endif

enum status gpu_product_run(struct gpu *gpu, const struct gpu_product *p,
                            const struct gpu_operands *operands, struct error *err) {
  struct cluster_args args = p->args;
  INVARIANT(operands->x_stride % 8 == 0 && (uintptr_t)operands->x % 16 == 0);
  args.product.x = operands->x;
  args.product.x_stride = operands->x_stride;
  args.product.y = operands->y;
  args.product.y_stride = operands->y_stride;
  args.product.y_wide = operands->y_wide;
  args.product.bias = operands->bias;
  args.product.residual = operands->residual;
  if (p->variant.cluster) return run_clusters(gpu, p, &args, err);
  const bool tall = p->variant.tall;
  const uint32_t panel = p->variant.panel_tokens;
  const struct kernel_facts *kernel =
      tall ? find_tall_kernel(gpu, p->kind, is_pair(p), panel) : find_kernel(gpu, p->kind, panel);
  void *parameters[] = {tall ? (void *)&args : (void *)&args.product};
  INVARIANT(kernel);
  return gpu_check(
      err,
      cudaLaunchKernel(tall ? tall_kernel(p->kind, is_pair(p), panel) : kernel_code(kernel),
                       (dim3){p->plan.blocks, 1, 1}, (dim3){kernel->threads, 1, 1}, parameters,
                       kernel->shared_bytes, gpu->stream),
      "start a hybrid product");
}
