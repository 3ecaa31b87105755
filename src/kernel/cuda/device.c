/* See device.h. State: the card's number and stream, and for each kernel how many of its blocks a
 * multiprocessor takes, which is asked for once. */
#include "kernel/cuda/device.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

/* In product.cu: the kernel for panels of so many tokens, or NULL. */
const void *product_kernel(uint32_t panel_tokens);

struct kernel_facts {
  uint32_t panel_tokens, threads, stages, shared_bytes;
  int blocks; /* on one multiprocessor; 0: does not run on this card */
};
static const struct kernel_facts known_kernels[] = {
#define KERNEL_ROW(tokens, threads) {tokens, threads, 0, 0, 0},
    PRODUCT_KERNELS(KERNEL_ROW)};
enum { KERNELS = sizeof known_kernels / sizeof *known_kernels };

struct gpu {
  int index;
  cudaStream_t stream;
  struct gpu_facts facts;
  struct kernel_facts kernels[KERNELS];
};

static enum status failed(struct error *err, cudaError_t code, const char *what) {
  return error_set(err, STATUS_FAILED, "the GPU could not %s: %s (%s)", what,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

static enum status check(struct error *err, cudaError_t code, const char *what) {
  return code == cudaSuccess ? STATUS_OK : failed(err, code, what);
}

/* --- opening --- */

static int attribute(int index, enum cudaDeviceAttr which) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, index) == cudaSuccess ? value : 0;
}

static enum status read_facts(int index, struct gpu_facts *facts, struct error *err) {
  struct cudaDeviceProp properties;
  enum status status =
      check(err, cudaGetDeviceProperties(&properties, index), "say what card it is");
  if (status) return status;
  snprintf(facts->name, sizeof facts->name, "%s", properties.name);
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->multiprocessors = properties.multiProcessorCount;
  facts->block_shared_bytes = (uint32_t)properties.sharedMemPerBlockOptin;
  facts->memory_bytes = properties.totalGlobalMem;
  facts->l2_bytes = (size_t)properties.l2CacheSize;
  facts->clock_mhz = attribute(index, cudaDevAttrClockRate) / 1000.0;
  if (facts->major < 8)
    return error_set(err, STATUS_REFUSED,
                     "%s has compute capability %d.%d; hybrid products need 8.0 or later",
                     facts->name, facts->major, facts->minor);
  return STATUS_OK;
}

static enum status read_kernel(const struct gpu_facts *facts, struct kernel_facts *kernel,
                               struct error *err) {
  const void *code = product_kernel(kernel->panel_tokens);
  kernel->stages = product_stages(kernel->panel_tokens, facts->block_shared_bytes);
  if (!code || !kernel->stages) return STATUS_OK; /* left out: blocks stays 0 */
  kernel->shared_bytes = product_shared_bytes(kernel->panel_tokens, kernel->stages);
  enum status status = check(err,
                             cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)kernel->shared_bytes),
                             "give a kernel its shared memory");
  return status ? status
                : check(err,
                        cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                            &kernel->blocks, code, (int)kernel->threads, kernel->shared_bytes),
                        "load the kernels of this build");
}

static enum status read_kernels(struct gpu *gpu, struct error *err) {
  memcpy(gpu->kernels, known_kernels, sizeof known_kernels);
  for (int k = 0; k < KERNELS; k++) {
    enum status status = read_kernel(&gpu->facts, &gpu->kernels[k], err);
    if (status) return status;
  }
  return STATUS_OK;
}

static enum status find_card(int index, struct error *err) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice || (!code && !count))
    return error_set(err, STATUS_REFUSED,
                     "no NVIDIA GPU is at hand (%s); look at nvidia-smi, or work on the CPU",
                     code ? cudaGetErrorString(code) : "the driver lists none");
  if (code) return failed(err, code, "be found");
  if (index < 0 || index >= count)
    return error_set(err, STATUS_USAGE, "there is no GPU %d: the driver lists %d, from 0 on", index,
                     count);
  return check(err, cudaSetDevice(index), "be opened");
}

enum status gpu_open(struct gpu **out, int index, struct error *err) {
  enum status status = find_card(index, err);
  if (status) return status;
  struct gpu *gpu = mem_alloc(1, sizeof *gpu, err);
  if (!gpu) return STATUS_FAILED;
  gpu->index = index;
  status = read_facts(index, &gpu->facts, err);
  if (!status)
    status =
        check(err, cudaStreamCreateWithFlags(&gpu->stream, cudaStreamNonBlocking), "make a stream");
  if (!status) status = read_kernels(gpu, err);
  if (status) {
    gpu_close(gpu);
    return status;
  }
  *out = gpu;
  return STATUS_OK;
}

void gpu_close(struct gpu *gpu) {
  if (!gpu) return;
  if (gpu->stream) cudaStreamDestroy(gpu->stream);
  mem_free(gpu);
}

const struct gpu_facts *gpu_facts(const struct gpu *gpu) { return &gpu->facts; }
void *gpu_stream(const struct gpu *gpu) { return gpu->stream; }

/* --- memory --- */

enum status gpu_alloc(struct gpu *gpu, size_t bytes, void **out, struct error *err) {
  void *memory = NULL;
  const cudaError_t code = cudaMalloc(&memory, bytes ? bytes : 1);
  if (code == cudaErrorMemoryAllocation) {
    size_t left = 0, total = 0;
    cudaGetLastError(); /* an allocation that failed does not spoil what follows */
    cudaMemGetInfo(&left, &total);
    return error_set(err, STATUS_FAILED,
                     "the GPU has no room for %.1f MiB more: %.1f of its %.1f MiB are free; use "
                     "fewer tokens at a time or a smaller model",
                     (double)bytes / 1048576, (double)left / 1048576, (double)total / 1048576);
  }
  if (code) return failed(err, code, "allocate memory");
  *out = memory;
  return STATUS_OK;
}

void gpu_free(struct gpu *gpu, void *memory) {
  if (memory) cudaFree(memory);
}

enum status gpu_upload(struct gpu *gpu, void *to, const void *from, size_t bytes,
                       struct error *err) {
  /* From memory that is not pinned this returns when the host's side has been read. */
  return check(err, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, gpu->stream),
               "take data from the host");
}

enum status gpu_download(struct gpu *gpu, void *to, const void *from, size_t bytes,
                         struct error *err) {
  enum status status =
      check(err, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, gpu->stream),
            "bring data to the host");
  return status ? status : gpu_wait(gpu, err);
}

enum status gpu_zero(struct gpu *gpu, void *memory, size_t bytes, struct error *err) {
  return check(err, cudaMemsetAsync(memory, 0, bytes, gpu->stream), "clear memory");
}

enum status gpu_wait(struct gpu *gpu, struct error *err) {
  return check(err, cudaStreamSynchronize(gpu->stream), "finish its work");
}

/* Memory on the card with a copy of `from` in it. */
static enum status alloc_copy(struct gpu *gpu, const void *from, size_t bytes, void **out,
                              struct error *err) {
  enum status status = gpu_alloc(gpu, bytes, out, err);
  return status ? status : gpu_upload(gpu, *out, from, bytes, err);
}

/* --- matrices --- */

enum status gpu_matrix_upload(struct gpu *gpu, const struct fragment_matrix *f,
                              struct gpu_matrix *out, struct error *err) {
  struct gpu_matrix m = {.host = *f};
  const size_t strips = (size_t)f->strips, tiles = strips * (size_t)f->tiles_per_strip;
  m.host.columns = NULL;
  m.host.tiles = NULL;
  m.host.strip = mem_alloc(strips, sizeof *m.host.strip, err);
  if (!m.host.strip) return STATUS_FAILED;
  memcpy(m.host.strip, f->strip, strips * sizeof *f->strip);
  enum status status = alloc_copy(gpu, f->tiles, f->tile_bytes, &m.tiles, err);
  if (!status) status = alloc_copy(gpu, f->columns, tiles * sizeof *f->columns, &m.columns, err);
  if (status)
    gpu_matrix_free(gpu, &m);
  else
    *out = m;
  return status;
}

void gpu_matrix_free(struct gpu *gpu, struct gpu_matrix *m) {
  gpu_free(gpu, m->tiles);
  gpu_free(gpu, m->columns);
  fragment_release(&m->host);
  *m = (struct gpu_matrix){0};
}

/* --- products --- */

static const struct kernel_facts *choose_kernel(const struct gpu *gpu, uint32_t tokens,
                                                uint32_t panel_tokens) {
  const struct kernel_facts *best = NULL;
  for (int k = 0; k < KERNELS; k++) {
    const struct kernel_facts *kernel = &gpu->kernels[k];
    if (!kernel->blocks) continue;
    if (panel_tokens ? kernel->panel_tokens == panel_tokens : !best || best->panel_tokens < tokens)
      best = kernel;
  }
  return best;
}

/* Decoding is bound by the bytes of the weights; in prefill a 2:4 tile takes half of a dense tile's
 * instructions and, as the activations cost the same, some three fifths of its time. */
static struct product_costs costs_of(uint32_t panel_tokens) {
  if (panel_tokens > 64) return (struct product_costs){3, 5};
  return (struct product_costs){FRAGMENT_SPARSE_TILE_BYTES, FRAGMENT_DENSE_TILE_BYTES};
}

static enum status upload_plan(struct gpu *gpu, struct gpu_product *p, struct error *err) {
  const struct product_plan *plan = &p->plan;
  const size_t slot_bytes = (size_t)plan->panel_tokens * FRAGMENT_STRIP_ROWS * sizeof(float);
  const size_t counter_bytes = plan->outputs * sizeof(uint32_t);
  enum status status =
      alloc_copy(gpu, plan->segment, plan->segments * sizeof *plan->segment, &p->segments, err);
  if (!status)
    status = alloc_copy(gpu, plan->first_segment,
                        ((size_t)plan->blocks + 1) * sizeof *plan->first_segment, &p->first_segment,
                        err);
  if (!status) status = gpu_alloc(gpu, plan->slots * slot_bytes, &p->partials, err);
  if (!status) status = gpu_alloc(gpu, counter_bytes, &p->counters, err);
  return status ? status : gpu_zero(gpu, p->counters, counter_bytes, err);
}

enum status gpu_product_prepare(struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                                uint32_t panel_tokens, struct gpu_product *out, struct error *err) {
  const struct kernel_facts *kernel = choose_kernel(gpu, tokens, panel_tokens);
  if (!kernel)
    return error_set(err, STATUS_USAGE,
                     "no kernel of this build takes panels of %u tokens on %s; build with its "
                     "architecture in TSR_CUDA_ARCHITECTURES",
                     panel_tokens, gpu->facts.name);
  struct gpu_product p = {.shared_bytes = kernel->shared_bytes};
  const uint32_t blocks = (uint32_t)(gpu->facts.multiprocessors * kernel->blocks);
  enum status status = product_plan_make(&p.plan, &m->host, tokens, kernel->panel_tokens, blocks,
                                         costs_of(kernel->panel_tokens), err);
  if (!status) status = upload_plan(gpu, &p, err);
  if (status) {
    gpu_product_free(gpu, &p);
    return status;
  }
  p.args = (struct product_args){.tiles = m->tiles,
                                 .columns = m->columns,
                                 .segments = p.segments,
                                 .first_segment = p.first_segment,
                                 .tokens = tokens,
                                 .rows = (uint32_t)m->host.rows,
                                 .cols = (uint32_t)m->host.cols,
                                 .stages = kernel->stages,
                                 .partials = p.partials,
                                 .counters = p.counters};
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

enum status gpu_product_run(struct gpu *gpu, const struct gpu_product *p,
                            const struct gpu_operands *operands, struct error *err) {
  const struct kernel_facts *kernel = choose_kernel(gpu, p->args.tokens, p->plan.panel_tokens);
  struct product_args args = p->args;
  INVARIANT(kernel && operands->x_stride % 8 == 0 && (uintptr_t)operands->x % 16 == 0);
  args.x = operands->x;
  args.x_stride = operands->x_stride;
  args.y = operands->y;
  args.y_stride = operands->y_stride;
  args.bias = operands->bias;
  args.residual = operands->residual;
  void *parameters[] = {&args};
  return check(
      err,
      cudaLaunchKernel(product_kernel(kernel->panel_tokens), (dim3){p->plan.blocks, 1, 1},
                       (dim3){kernel->threads, 1, 1}, parameters, p->shared_bytes, gpu->stream),
      "start a hybrid product");
}
