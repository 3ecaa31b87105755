/* The timing half of gpu_check: hybrid products against cuBLASLt on the same card, layer by layer.
 *
 * Weights are cold, as in a model whose layers follow each other: each timing goes round several
 * copies that together exceed the second-level cache. The weights are one random tile of each kind,
 * repeated: what they are does not matter, that they are not zeros does (zeros save power). */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gpu.h"
#include "gpu_layers.h"
#include "model/choice.h"

enum { COPIES_MAX = 64, ROUNDS = 5, ALGORITHMS = 8, TOKENS_MAX = 8192 };

static void cuda_must(int code, const char *what) {
  if (!code) return;
  fprintf(stderr, "gpu_check: %s failed with code %d\n", what, code);
  exit(EXIT_FAILURE);
}

/* --- weights --- */

/* A kind of weights that is timed. */
struct timed_form {
  const char *name;
  struct fragment_form form;
};
static const struct timed_form forms[] = {
    {"bf16", {FRAGMENT_BF16, false, false}},
    {"int8", {FRAGMENT_I8, false, false}},
    {"int4_g32", {FRAGMENT_I4, true, false}},
};

/* Codes, then weights, then scales (f16, 2^-7) of each row block. */
static void fill_tile(uint8_t *tile, struct fragment_form form, bool sparse, struct rng *rng) {
  const size_t bytes = fragment_tile_bytes(form, sparse);
  const size_t block = fragment_step_bytes(form, sparse) / FRAGMENT_BLOCKS;
  const size_t scales = form.scales ? FRAGMENT_SCALE_BYTES : 0;
  for (size_t i = 0; i < bytes; i += 2) {
    const size_t at = i % block;
    uint16_t word = form.kind == FRAGMENT_BF16 ? bf16_from_f32(0.05f * (float)rng_normal(rng))
                                               : (uint16_t)rng_below(rng, 1 << 16);
    if (at >= block - scales) word = 0x2000;
    if (sparse && at < FRAGMENT_META_BYTES) {
      word = 0;
      for (int g = 0; g < 4; g++)
        word |= (uint16_t)(sparse_candidate_code[rng_below(rng, SPARSE_CANDIDATES)] << (4 * g));
    }
    memcpy(tile + i, &word, 2);
  }
}

static void make_fragments(struct fragment_matrix *f, struct fragment_form form, int64_t rows,
                           int64_t cols, double sparse_share) {
  static uint8_t tiles[2][FRAGMENT_DENSE_TILE_BYTES];
  struct rng rng = rng_make(1, 9);
  struct error err = {0};
  fill_tile(tiles[0], form, false, &rng);
  fill_tile(tiles[1], form, true, &rng);
  *f = (struct fragment_matrix){.rows = rows, .cols = cols, .form = form};
  f->strips = (rows + FRAGMENT_STRIP_ROWS - 1) / FRAGMENT_STRIP_ROWS;
  f->tiles_per_strip = (cols + FRAGMENT_TILE_COLS - 1) / FRAGMENT_TILE_COLS;
  const size_t count = (size_t)(f->strips * f->tiles_per_strip);
  const size_t padded_rows = (size_t)f->strips * FRAGMENT_STRIP_ROWS;
  f->strip = mem_alloc((size_t)f->strips, sizeof *f->strip, &err);
  f->columns = mem_alloc(count, sizeof *f->columns, &err);
  f->tiles = mem_alloc(count, FRAGMENT_DENSE_TILE_BYTES, &err);
  gpu_must(f->strip && f->columns && f->tiles ? STATUS_OK : STATUS_FAILED, &err);
  if (form.kind != FRAGMENT_BF16 && !form.scales) {
    f->row_scales = mem_alloc(padded_rows, sizeof *f->row_scales, &err);
    gpu_must(f->row_scales ? STATUS_OK : STATUS_FAILED, &err);
    for (size_t r = 0; r < padded_rows; r++) f->row_scales[r] = 0x1p-7f;
  }
  for (int64_t s = 0; s < f->strips; s++) {
    uint16_t *columns = f->columns + s * f->tiles_per_strip;
    int64_t sparse = 0, dense = f->tiles_per_strip;
    for (int64_t t = 0; t < f->tiles_per_strip; t++)
      columns[rng_uniform(&rng) < sparse_share ? sparse++ : --dense] = (uint16_t)t;
    f->strip[s] = (struct fragment_strip){f->tile_bytes, (uint32_t)sparse};
    for (int64_t i = 0; i < f->tiles_per_strip; i++)
      memcpy(f->tiles + fragment_tile_offset(f, s, i), tiles[i < sparse],
             fragment_tile_bytes(form, i < sparse));
    f->tile_bytes = fragment_tile_offset(f, s, f->tiles_per_strip);
  }
}

/* --- cuBLASLt: Y^T (rows, tokens) = W X^T, all column-major for it --- */

struct blas {
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t w, x, y;
  cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
  int count, best;
  void *workspace;
};
static const size_t workspace_bytes = 32 << 20;

static void blas_open(struct blas *b, int64_t rows, int64_t cols, int64_t tokens) {
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulPreference_t preference;
  cuda_must((int)cublasLtMatmulDescCreate(&b->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
            "cublasLtMatmulDescCreate");
  cublasLtMatmulDescSetAttribute(b->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                 sizeof transposed);
  cublasLtMatrixLayoutCreate(&b->w, CUDA_R_16BF, (uint64_t)cols, (uint64_t)rows, cols);
  cublasLtMatrixLayoutCreate(&b->x, CUDA_R_16BF, (uint64_t)cols, (uint64_t)tokens, cols);
  cublasLtMatrixLayoutCreate(&b->y, CUDA_R_16BF, (uint64_t)rows, (uint64_t)tokens, rows);
  cublasLtMatmulPreferenceCreate(&preference);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace_bytes, sizeof workspace_bytes);
  cuda_must((int)cublasLtMatmulAlgoGetHeuristic(b->handle, b->operation, b->w, b->x, b->y, b->y,
                                                preference, ALGORITHMS, b->found, &b->count),
            "cublasLtMatmulAlgoGetHeuristic");
  cublasLtMatmulPreferenceDestroy(preference);
  b->best = 0;
}

static void blas_close(struct blas *b) {
  cublasLtMatrixLayoutDestroy(b->w);
  cublasLtMatrixLayoutDestroy(b->x);
  cublasLtMatrixLayoutDestroy(b->y);
  cublasLtMatmulDescDestroy(b->operation);
}

/* --- timing --- */

struct contest {
  const struct gpu_run *run;
  struct blas blas;
  struct gpu_product products[COPIES_MAX];
  struct gpu_matrix *matrices; /* (copies) */
  struct choice *choice;
  uint16_t *dense; /* (copies, rows, cols) */
  int64_t rows, cols;
  int copies;
  uint16_t *x, *y;
  cudaEvent_t start, stop;
};

static void run_once(struct contest *c, bool ours, int copy, int algorithm) {
  struct error err = {0};
  if (ours) {
    const struct gpu_operands operands = {
        c->x, (uint64_t)c->cols, c->y, (uint64_t)c->rows, NULL, NULL, NULL};
    gpu_must(gpu_product_run(c->run->gpu, &c->products[copy], &operands, &err), &err);
    return;
  }
  const float one = 1, zero = 0;
  struct blas *b = &c->blas;
  cuda_must((int)cublasLtMatmul(
                b->handle, b->operation, &one, c->dense + (int64_t)copy * c->rows * c->cols, b->w,
                c->x, b->x, &zero, c->y, b->y, c->y, b->y, &b->found[algorithm].algo, b->workspace,
                workspace_bytes, (cudaStream_t)gpu_stream(c->run->gpu)),
            "cublasLtMatmul");
}

/* Milliseconds a product takes over `count` of them in a row. */
static double time_run(struct contest *c, bool ours, int count, int algorithm) {
  cudaStream_t stream = gpu_stream(c->run->gpu);
  float ms = 0;
  cudaEventRecord(c->start, stream);
  for (int i = 0; i < count; i++) run_once(c, ours, i % c->copies, algorithm);
  cudaEventRecord(c->stop, stream);
  cuda_must((int)cudaEventSynchronize(c->stop), "a timed run");
  cudaEventElapsedTime(&ms, c->start, c->stop);
  return (double)ms / count;
}

/* So many in a row that a timing takes some 10 ms. */
static int choose_count(struct contest *c, bool ours) {
  time_run(c, ours, c->copies, 0);
  const double ms = time_run(c, ours, c->copies, 0);
  const double count = ms > 0 ? 10 / ms : 1000;
  return count < c->copies ? c->copies : count > 1000 ? 1000 : (int)count;
}

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Medians of alternating rounds, so that a card that slows down slows both. */
static void time_both(struct contest *c, double *ours_ms, double *blas_ms) {
  double ours[ROUNDS], blas[ROUNDS];
  const int count = choose_count(c, true);
  for (int r = 0; r < ROUNDS; r++) {
    ours[r] = time_run(c, true, count, 0);
    blas[r] = time_run(c, false, count, c->blas.best);
  }
  qsort(ours, ROUNDS, sizeof *ours, by_value);
  qsort(blas, ROUNDS, sizeof *blas, by_value);
  *ours_ms = ours[ROUNDS / 2];
  *blas_ms = blas[ROUNDS / 2];
}

/* --- the choice: model/choice.h with this card for its timer --- */

static struct gpu_variant variant_of(const char *name) {
  struct gpu_variant v = {0, 0, false};
  if (sscanf(name, "cluster_%ux%u", &v.panel_tokens, &v.cluster) == 2) return v;
  v.tall = sscanf(name, "tall_%u", &v.panel_tokens) == 1;
  if (!v.tall) sscanf(name, "product_%u", &v.panel_tokens);
  return v;
}

static int list_candidates(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                           char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX]) {
  const struct contest *c = ctx;
  struct gpu_variant variants[GPU_VARIANTS_MAX];
  const struct fragment_matrix *f = &c->matrices[0].host;
  const int count = gpu_variants(c->run->gpu, f->form, f->strips, tokens, variants);
  snprintf(names[0], CHOICE_NAME_MAX, "dense");
  for (int i = 0; i < count; i++) gpu_variant_name(variants[i], names[i + 1]);
  return count + 1;
}

static void prepare(struct contest *c, uint32_t tokens, const char *name) {
  struct error err = {0};
  const struct gpu_variant variant = variant_of(name);
  for (int i = 0; i < c->copies; i++)
    gpu_must(
        gpu_product_prepare(c->run->gpu, &c->matrices[i], tokens, &variant, &c->products[i], &err),
        &err);
}

static void unprepare(struct contest *c) {
  for (int i = 0; i < c->copies; i++) gpu_product_free(c->run->gpu, &c->products[i]);
}

static void find_best_algorithm(struct contest *c) {
  double best = 1e30;
  for (int a = 0; a < c->blas.count; a++) {
    time_run(c, false, c->copies, a);
    const double ms = time_run(c, false, c->copies, a);
    if (ms < best) best = ms, c->blas.best = a;
  }
}

static enum status time_candidate(void *ctx, const struct choice_shape *shape, uint32_t tokens,
                                  const char *name, double *seconds, struct error *err) {
  struct contest *c = ctx;
  const bool ours = strcmp(name, "dense") != 0;
  double ms[3];
  if (ours) {
    prepare(c, tokens, name);
  } else {
    blas_open(&c->blas, c->rows, c->cols, tokens);
    find_best_algorithm(c);
  }
  time_run(c, ours, c->copies, c->blas.best);
  for (int i = 0; i < 3; i++) ms[i] = time_run(c, ours, c->copies, c->blas.best);
  qsort(ms, 3, sizeof *ms, by_value);
  if (ours)
    unprepare(c);
  else
    blas_close(&c->blas);
  *seconds = ms[1] / 1e3;
  return STATUS_OK;
}

/* Gigabytes a second, read and written, of a large copy: the roof of decoding. */
static double copy_speed(const struct gpu_run *run) {
  const size_t bytes = (size_t)512 << 20;
  struct error err = {0};
  void *from, *to;
  cudaEvent_t start, stop;
  float ms = 0;
  gpu_must(gpu_alloc(run->gpu, bytes, &from, &err), &err);
  gpu_must(gpu_alloc(run->gpu, bytes, &to, &err), &err);
  gpu_must(gpu_zero(run->gpu, from, bytes, &err), &err);
  cudaEventCreate(&start);
  cudaEventCreate(&stop);
  cudaStream_t stream = gpu_stream(run->gpu);
  for (int i = 0; i < 11; i++) {
    if (i == 1) cudaEventRecord(start, stream);
    cuda_must((int)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "a copy");
  }
  cudaEventRecord(stop, stream);
  cudaEventSynchronize(stop);
  cudaEventElapsedTime(&ms, start, stop);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  gpu_free(run->gpu, from);
  gpu_free(run->gpu, to);
  return 10 * 2 * (double)bytes / ms / 1e6;
}

/* --- the table --- */

struct layer {
  const char *name;
  int64_t rows, cols;
};
#define TIMED_LAYER(name, rows, cols) {name, rows, cols},
static const struct layer layers[] = {GPU_LAYERS(TIMED_LAYER)};
enum { INTEGER_LAYER = 4 }; /* integers are timed there alone: there is not the time for all */
#define TIMED_BATCH(tokens) tokens,
static const uint32_t batches[] = {GPU_BATCHES(TIMED_BATCH)};
#define BATCH_FITS(tokens) _Static_assert(tokens <= TOKENS_MAX, "there is room for every batch");
GPU_BATCHES(BATCH_FITS)
static const double densities[] = {1, 0.75, 0.65, 0.55, 0.5};

/* One batch: the choice, then it beside the dense product, whoever was chosen. */
static void time_batch(struct contest *c, const struct layer *layer, const char *weights,
                       double density, const struct fragment_matrix *f, uint32_t tokens,
                       double roof, FILE *ledger) {
  const struct choice_timer timer = {c, list_candidates, time_candidate};
  struct choice_shape shape = {weights, layer->rows, layer->cols, 0};
  struct error err = {0};
  char name[CHOICE_NAME_MAX];
  double ours_ms, blas_ms;
  for (int64_t s = 0; s < f->strips; s++) shape.sparse_tiles += f->strip[s].sparse_tiles;
  gpu_must(choice_pick(c->choice, &shape, tokens, &timer, name, &err), &err);
  const bool dense = !strcmp(name, "dense");
  if (dense) /* timed all the same: how far off is the first of our kernels? */
    for (int i = 0; i < c->copies; i++)
      gpu_must(
          gpu_product_prepare(c->run->gpu, &c->matrices[i], tokens, NULL, &c->products[i], &err),
          &err);
  else
    prepare(c, tokens, name);
  blas_open(&c->blas, layer->rows, layer->cols, tokens);
  find_best_algorithm(c);
  time_both(c, &ours_ms, &blas_ms);
  const double flop = 2.0 * (double)layer->rows * (double)layer->cols * tokens;
  char kernel[CHOICE_NAME_MAX];
  gpu_variant_name(c->products[0].variant, kernel);
  gpu_row_begin(ledger, c->run);
  fprintf(ledger, "%s,%lld,%lld,%g,%u,%s,%u,%zu,%.5f,%.5f,%.3f,%.1f,%.3f,%.1f,%s,%.3f,%s\n",
          layer->name, (long long)layer->rows, (long long)layer->cols, density, tokens, kernel,
          c->products[0].plan.blocks, f->tile_bytes, ours_ms, blas_ms, blas_ms / ours_ms,
          (double)f->tile_bytes / ours_ms / 1e6, (double)f->tile_bytes / ours_ms / 1e6 / roof,
          flop / ours_ms / 1e9, name, dense ? 1 : blas_ms / ours_ms, weights);
  fflush(ledger);
  blas_close(&c->blas);
  unprepare(c);
}

static void time_layer(struct contest *c, const struct layer *layer, const struct timed_form *form,
                       double density, double roof, FILE *ledger) {
  struct gpu *gpu = c->run->gpu;
  struct error err = {0};
  struct fragment_matrix f;
  struct gpu_matrix copies[COPIES_MAX];
  make_fragments(&f, form->form, layer->rows, layer->cols, 2 * (1 - density));
  for (int i = 0; i < c->copies; i++) gpu_must(gpu_matrix_upload(gpu, &f, &copies[i], &err), &err);
  c->matrices = copies;
  for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
    if (clock_seconds() > c->run->deadline_s) break;
    time_batch(c, layer, form->name, density, &f, batches[b], roof, ledger);
  }
  for (int i = 0; i < c->copies; i++) gpu_matrix_free(gpu, &copies[i]);
  fragment_release(&f);
}

static void *random_on_card(struct gpu *gpu, size_t count) {
  const size_t piece = 1 << 20;
  struct error err = {0};
  struct rng rng = rng_make(2, 2);
  uint16_t *host = mem_alloc(piece, sizeof *host, &err), *card;
  void *memory;
  gpu_must(host ? STATUS_OK : STATUS_FAILED, &err);
  for (size_t i = 0; i < piece; i++) host[i] = bf16_from_f32(0.05f * (float)rng_normal(&rng));
  gpu_must(gpu_alloc(gpu, count * sizeof *host, &memory, &err), &err);
  card = memory;
  for (size_t at = 0; at < count; at += piece)
    gpu_must(gpu_upload(gpu, card + at, host, (count - at < piece ? count - at : piece) * 2, &err),
             &err);
  gpu_must(gpu_wait(gpu, &err), &err);
  mem_free(host);
  return memory;
}

void gpu_time_products(const struct gpu_run *run, FILE *ledger) {
  static struct contest c;
  struct gpu *gpu = run->gpu;
  struct error err = {0};
  const double roof = copy_speed(run);
  printf("copy: %.0f GB/s\n", roof);
  fprintf(ledger,
          "date,commit,card,layer,rows,cols,density,tokens,kernel,blocks,weight_bytes,ms,"
          "cublaslt_ms,speedup,weight_gb_s,share_of_copy,dense_tflop_s,choice,choice_speedup,"
          "weights\n");
  c.run = run;
  /* Measured anew in every check: into a table of its own, not the user's. */
  gpu_must(choice_open(&c.choice, run->choice_path, gpu_facts(gpu)->name, &err), &err);
  cuda_must((int)cublasLtCreate(&c.blas.handle), "cublasLtCreate");
  cuda_must((int)cudaMalloc(&c.blas.workspace, workspace_bytes), "a workspace for cuBLASLt");
  cudaEventCreate(&c.start);
  cudaEventCreate(&c.stop);
  for (size_t l = 0; l < sizeof layers / sizeof *layers; l++) {
    const size_t weights = (size_t)(layers[l].rows * layers[l].cols);
    c.rows = layers[l].rows;
    c.cols = layers[l].cols;
    c.copies = (int)(4 * gpu_facts(gpu)->l2_bytes / (weights * 2 * 9 / 16)) + 2;
    if (c.copies > COPIES_MAX) c.copies = COPIES_MAX;
    c.dense = random_on_card(gpu, weights * (size_t)c.copies);
    c.x = random_on_card(gpu, (size_t)c.cols * TOKENS_MAX);
    c.y = random_on_card(gpu, (size_t)c.rows * TOKENS_MAX);
    const size_t kinds = l == INTEGER_LAYER ? sizeof forms / sizeof *forms : 1;
    for (size_t k = 0; k < kinds; k++)
      for (size_t d = 0; d < sizeof densities / sizeof *densities; d++)
        time_layer(&c, &layers[l], &forms[k], densities[d], roof, ledger);
    gpu_free(gpu, c.dense);
    gpu_free(gpu, c.x);
    gpu_free(gpu, c.y);
    printf("timed: %s\n", layers[l].name);
  }
  cudaEventDestroy(c.start);
  cudaEventDestroy(c.stop);
  cudaFree(c.blas.workspace);
  cublasLtDestroy(c.blas.handle);
  gpu_must(choice_save(c.choice, &err), &err);
  choice_close(c.choice);
}
