/* See device.h: the card, its memory, weights on it. Products are in device_product.c. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "kernel/cuda/device_internal.h"

static enum status gpu_failed(struct error *err, cudaError_t code, const char *what) {
  return error_set(err, STATUS_FAILED, "the GPU could not %s: %s (%s)", what,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

enum status gpu_check(struct error *err, cudaError_t code, const char *what) {
  return code == cudaSuccess ? STATUS_OK : gpu_failed(err, code, what);
}

/* --- opening --- */

static int attribute(int index, enum cudaDeviceAttr which) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, index) == cudaSuccess ? value : 0;
}

static enum status read_facts(int index, struct gpu_facts *facts, struct error *err) {
  struct cudaDeviceProp properties;
  enum status status =
      gpu_check(err, cudaGetDeviceProperties(&properties, index), "say what card it is");
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

static enum status find_card(int index, struct error *err) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice || (!code && !count))
    return error_set(err, STATUS_REFUSED,
                     "no NVIDIA GPU is at hand (%s); look at nvidia-smi, or work on the CPU",
                     code ? cudaGetErrorString(code) : "the driver lists none");
  if (code) return gpu_failed(err, code, "be found");
  if (index < 0 || index >= count)
    return error_set(err, STATUS_USAGE, "there is no GPU %d: the driver lists %d, from 0 on", index,
                     count);
  return gpu_check(err, cudaSetDevice(index), "be opened");
}

enum status gpu_open(struct gpu **out, int index, struct error *err) {
  enum status status = find_card(index, err);
  if (status) return status;
  struct gpu *gpu = mem_alloc(1, sizeof *gpu, err);
  if (!gpu) return STATUS_FAILED;
  gpu->index = index;
  status = read_facts(index, &gpu->facts, err);
  if (!status)
    status = gpu_check(err, cudaStreamCreateWithFlags(&gpu->stream, cudaStreamNonBlocking),
                       "make a stream");
  if (!status) status = gpu_products_open(gpu, err);
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
  if (code) return gpu_failed(err, code, "allocate memory");
  *out = memory;
  return STATUS_OK;
}

void gpu_free(struct gpu *gpu, void *memory) {
  if (memory) cudaFree(memory);
}

enum status gpu_upload(struct gpu *gpu, void *to, const void *from, size_t bytes,
                       struct error *err) {
  /* From memory that is not pinned this returns when the host's side has been read. */
  return gpu_check(err, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, gpu->stream),
                   "take data from the host");
}

enum status gpu_download(struct gpu *gpu, void *to, const void *from, size_t bytes,
                         struct error *err) {
  enum status status =
      gpu_check(err, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, gpu->stream),
                "bring data to the host");
  return status ? status : gpu_wait(gpu, err);
}

enum status gpu_zero(struct gpu *gpu, void *memory, size_t bytes, struct error *err) {
  return gpu_check(err, cudaMemsetAsync(memory, 0, bytes, gpu->stream), "clear memory");
}

enum status gpu_wait(struct gpu *gpu, struct error *err) {
  return gpu_check(err, cudaStreamSynchronize(gpu->stream), "finish its work");
}

enum status gpu_alloc_copy(struct gpu *gpu, const void *from, size_t bytes, void **out,
                           struct error *err) {
  enum status status = gpu_alloc(gpu, bytes, out, err);
  return status ? status : gpu_upload(gpu, *out, from, bytes, err);
}

/* --- matrices --- */

static enum status upload_order(struct gpu *gpu, const struct fragment_matrix *f,
                                struct gpu_matrix *m, struct error *err) {
  const size_t tiles = (size_t)(fragment_order_strips(f) * f->tiles_per_strip);
  m->host_order = mem_alloc(tiles, sizeof *m->host_order, err);
  if (!m->host_order) return STATUS_FAILED;
  enum status status = fragment_order(f, m->host_order, err);
  return status ? status
                : gpu_alloc_copy(gpu, m->host_order, tiles * sizeof *m->host_order, &m->order, err);
}

static enum status upload_matrix(struct gpu *gpu, const struct fragment_matrix *f,
                                 enum product_pair pair, struct gpu_matrix *out,
                                 struct error *err) {
  struct gpu_matrix m = {.host = *f, .pair = pair};
  const size_t strips = (size_t)f->strips, tiles = strips * (size_t)f->tiles_per_strip;
  m.host.columns = NULL;
  m.host.tiles = NULL;
  m.host.row_scales = NULL;
  m.rows = f->rows;
  m.host.strip = mem_alloc(strips, sizeof *m.host.strip, err);
  enum status status = m.host.strip ? STATUS_OK : STATUS_FAILED;
  if (!status) memcpy(m.host.strip, f->strip, strips * sizeof *f->strip);
  if (!status) status = gpu_alloc_copy(gpu, f->tiles, f->tile_bytes, &m.tiles, err);
  if (!status)
    status = gpu_alloc_copy(gpu, f->columns, tiles * sizeof *f->columns, &m.columns, err);
  if (!status) status = upload_order(gpu, f, &m, err);
  if (!status && f->row_scales)
    status =
        gpu_alloc_copy(gpu, f->row_scales, strips * FRAGMENT_STRIP_ROWS * sizeof *f->row_scales,
                       &m.row_scales, err);
  if (status)
    gpu_matrix_free(gpu, &m);
  else
    *out = m;
  return status;
}

enum status gpu_matrix_upload(struct gpu *gpu, const struct fragment_matrix *f,
                              struct gpu_matrix *out, struct error *err) {
  return upload_matrix(gpu, f, PAIR_NONE, out, err);
}

enum status gpu_matrix_upload_pair(struct gpu *gpu, const struct fragment_matrix *gate,
                                   const struct fragment_matrix *up, enum product_pair activation,
                                   struct gpu_matrix *out, struct error *err) {
  struct fragment_matrix joined;
  enum status status = fragment_join(&joined, gate, up, err);
  if (status) return status;
  status = upload_matrix(gpu, &joined, activation, out, err);
  if (!status) out->rows = gate->rows;
  fragment_release(&joined);
  return status;
}

void gpu_matrix_free(struct gpu *gpu, struct gpu_matrix *m) {
  gpu_free(gpu, m->tiles);
  gpu_free(gpu, m->columns);
  gpu_free(gpu, m->order);
  gpu_free(gpu, m->row_scales);
  mem_free(m->host_order);
  fragment_release(&m->host);
  *m = (struct gpu_matrix){0};
}
