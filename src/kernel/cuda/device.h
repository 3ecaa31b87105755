/* One card and one stream: memory, copies, and hybrid products on it. Built with TSR_CUDA=ON only;
 * plain C, no type of CUDA's.
 *
 * Everything is queued on the card's stream, in order; only downloads and gpu_wait wait. An error
 * of a kernel therefore shows at the next of these. Nothing is allocated by gpu_product_run. */
#ifndef TSR_KERNEL_CUDA_DEVICE_H
#define TSR_KERNEL_CUDA_DEVICE_H

#include "kernel/cuda/plan.h"
#include "sparse/fragments.h"

struct gpu;

struct gpu_facts {
  char name[256];
  int major, minor; /* compute capability */
  int multiprocessors;
  uint32_t block_shared_bytes; /* that one block may use */
  size_t memory_bytes, l2_bytes;
  double clock_mhz;
};

/* Opens card `index` (as CUDA_VISIBLE_DEVICES shows them). STATUS_REFUSED when there is none, its
 * driver is too old for this build, or it is below compute capability 8.0 and lacks the
 * instructions. */
enum status gpu_open(struct gpu **out, int index, struct error *err);
void gpu_close(struct gpu *gpu); /* NULL is fine; what was allocated on it is to be freed before */
const struct gpu_facts *gpu_facts(const struct gpu *gpu);
/* The stream, a cudaStream_t, for callers that queue work of other libraries. */
void *gpu_stream(const struct gpu *gpu);

/* `bytes` bytes on the card, 256-byte aligned, contents undefined. */
enum status gpu_alloc(struct gpu *gpu, size_t bytes, void **out, struct error *err);
void gpu_free(struct gpu *gpu, void *memory); /* NULL is fine */
/* Copies; the host's side may be reused on return. */
enum status gpu_upload(struct gpu *gpu, void *to, const void *from, size_t bytes,
                       struct error *err);
enum status gpu_download(struct gpu *gpu, void *to, const void *from, size_t bytes,
                         struct error *err);
enum status gpu_zero(struct gpu *gpu, void *memory, size_t bytes, struct error *err);
/* Waits until all that was queued is done; says what went wrong, if anything did. */
enum status gpu_wait(struct gpu *gpu, struct error *err);

/* A weight on the card. `host` keeps the table of strips, which plans are made from, as is the
 * order by columns; its tiles and columns are left behind. */
struct gpu_matrix {
  struct fragment_matrix host;
  uint32_t *host_order; /* fragment_order */
  void *tiles, *columns, *order, *row_scales;
  enum product_pair pair; /* of a joined pair: what is made of its two sums */
  int64_t rows;           /* of the product's output: for a pair, of one of its matrices */
};
enum status gpu_matrix_upload(struct gpu *gpu, const struct fragment_matrix *f,
                              struct gpu_matrix *out, struct error *err);
/* A pair of equal shape and form as one: y = f(x gate^T) * (x up^T), at every batch. Decoding, in
 * panels of up to 64 tokens, passes all sums through the workspace; prefill (clusters of 2 or 4, or
 * two strips a block) makes the output in the block that has both sums. Bias: (2 rows). */
enum status gpu_matrix_upload_pair(struct gpu *gpu, const struct fragment_matrix *gate,
                                   const struct fragment_matrix *up, enum product_pair activation,
                                   struct gpu_matrix *out, struct error *err);
void gpu_matrix_free(struct gpu *gpu, struct gpu_matrix *m);

/* A kernel and how it is launched. */
struct gpu_variant {
  uint32_t panel_tokens;
  uint32_t cluster; /* 0: no clusters; else a kernel of CLUSTER_KERNELS, so many blocks */
  bool tall;        /* a kernel of TALL_KERNELS; else, without clusters, of PRODUCT_KERNELS */
};
/* What the card can run for `tokens` tokens of a matrix of this form and so many strips: first the
 * one to take when nothing was measured. Returns how many there are, at most GPU_VARIANTS_MAX. */
enum { GPU_VARIANTS_MAX = 12 };
int gpu_variants(const struct gpu *gpu, struct fragment_form form, int64_t strips, uint32_t tokens,
                 struct gpu_variant out[GPU_VARIANTS_MAX]);
/* The same for a matrix on the card, which may be a pair. */
int gpu_matrix_variants(const struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                        struct gpu_variant out[GPU_VARIANTS_MAX]);
/* "product_16", "tall_128", "cluster_256x4". */
void gpu_variant_name(struct gpu_variant variant, char out[32]);
bool gpu_variant_runs(const struct gpu *gpu, struct fragment_form form, struct gpu_variant variant);

/* A product of one shape, ready to run: the plan, on the card, and its workspace. Products that run
 * at the same time need one each. */
struct gpu_product {
  struct product_plan plan;
  struct cluster_args args; /* `product` alone for a kernel without clusters */
  struct gpu_variant variant;
  enum fragment_kind kind;
  void *segments, *first_segment, *partials, *counters;
};
/* For `tokens` tokens, by the kernel `variant` (NULL: the first of gpu_matrix_variants). The matrix
 * must outlive the product. */
enum status gpu_product_prepare(struct gpu *gpu, const struct gpu_matrix *m, uint32_t tokens,
                                const struct gpu_variant *variant, struct gpu_product *out,
                                struct error *err);
void gpu_product_free(struct gpu *gpu, struct gpu_product *p);

/* Where a product reads and writes, on the card; as in product_args. */
struct gpu_operands {
  const uint16_t *x;
  uint64_t x_stride;
  uint16_t *y;
  uint64_t y_stride;
  const uint16_t *bias, *residual; /* or NULL */
  float *y_wide;                   /* or NULL: fp32 in place of y */
};
/* Queues y = x W^T (+ bias) (+ residual). */
enum status gpu_product_run(struct gpu *gpu, const struct gpu_product *p,
                            const struct gpu_operands *operands, struct error *err);

#endif
