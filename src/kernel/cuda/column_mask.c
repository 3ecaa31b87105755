/* The CUDA column's masks. */
#include "base/error.h"
#include "kernel/cuda/column_internal.h"
#include "kernel/mask_kernels.h"

/* What block_sum and last_to_arrive use. */
enum { SUM_SHARED_BYTES = 64 };

static uint32_t divide_up(int64_t n, int64_t by) { return (uint32_t)((n + by - 1) / by); }

/* Arguments of a pass over tiles; parts is NULL when there was no memory for them. */
static struct mask_args arguments(const struct mask_source *s, struct matrix_view w) {
  const uint32_t tile_columns = divide_up(s->cols, s->tile_cols);
  const uint32_t strips_per_tile = divide_up(s->tile_rows, MASK_STRIP_ROWS);
  const uint32_t tiles = divide_up(s->rows, s->tile_rows) * tile_columns;
  INVARIANT((s->logits || s->codes) && s->tile_cols % 4 == 0);
  INVARIANT(w.rows == s->rows && w.cols == s->cols &&
            s->rows <= INT32_MAX / mask_row_groups(s->cols));
  struct mask_args args = {
      .logits = s->logits,
      .codes = s->codes,
      .tile_soft = s->tile_soft,
      .w = w.data,
      .type = column_element(w.dtype),
      .rows = (uint32_t)s->rows,
      .cols = (uint32_t)s->cols,
      .groups = (uint32_t)mask_row_groups(s->cols),
      .row_blocks = (uint32_t)mask_row_blocks(s->cols),
      .code_stride = divide_up(s->cols, 8),
      .tile_rows = (uint32_t)s->tile_rows,
      .tile_groups = (uint32_t)(s->tile_cols / 4),
      .tile_columns = tile_columns,
      .strips_per_tile = strips_per_tile,
      .blocks = tiles * strips_per_tile,
      .slope = s->kappa / s->tau,
      .inverse_tau = 1.0f / s->tau,
      .noise = s->noise,
      .compact = s->logits && s->logit_dtype == DTYPE_BF16,
      .key = {s->key[0], s->key[1]},
      .tensor = s->tensor,
      .draw = s->draw,
      .pass = s->pass,
  };
  args.counters = column_scratch(COLUMN_COUNTERS, (tiles + 1) * sizeof *args.counters);
  if (args.counters) args.parts = column_scratch(COLUMN_PARTS, args.blocks * sizeof *args.parts);
  return args;
}

void column_mask_sample(const struct mask_source *source, struct matrix_view w,
                        enum dtype out_dtype, void *out, double *squares) {
  struct mask_args args = arguments(source, w);
  args.out = out;
  args.out_is_bf16 = out_dtype == DTYPE_BF16;
  args.squares = squares;
  if (args.parts)
    column_launch(LEARN_mask_sample_tiles, args.blocks, LEARN_THREADS, SUM_SHARED_BYTES, &args);
}

void column_mask_backward(const struct mask_source *source, struct matrix_view w, const float *dw,
                          struct mask_decay decay, bool accumulate, void *dlogits, double *dtile,
                          enum dtype out_dtype, void *out) {
  struct mask_args args = arguments(source, w);
  args.dw = dw;
  args.decay = decay.factor;
  args.decay_squares = decay.squares;
  args.accumulate = accumulate;
  args.dlogits = dlogits;
  args.dtile = source->tile_soft ? dtile : NULL;
  args.out = out;
  args.out_is_bf16 = out_dtype == DTYPE_BF16;
  if (args.parts)
    column_launch(LEARN_mask_back_tiles, args.blocks, LEARN_THREADS, SUM_SHARED_BYTES, &args);
}

static struct mask_update_args update_arguments(int64_t rows, int64_t cols) {
  struct mask_update_args args = {.rows = (uint32_t)rows,
                                  .cols = (uint32_t)cols,
                                  .groups = (uint32_t)mask_row_groups(cols),
                                  .row_blocks = (uint32_t)mask_row_blocks(cols),
                                  .code_stride = divide_up(cols, 8)};
  args.blocks = column_blocks((uint64_t)rows * args.row_blocks * MASK_BLOCK, LEARN_THREADS);
  return args;
}

void column_mask_gradient_squares(const void *gradient, enum dtype dtype, int64_t rows,
                                  int64_t cols, double *squares) {
  struct mask_update_args args = update_arguments(rows, cols);
  args.compact = dtype == DTYPE_BF16;
  args.gradient = gradient;
  args.squares = squares;
  args.counters = column_scratch(COLUMN_COUNTERS, sizeof *args.counters);
  args.parts = column_scratch(COLUMN_PARTS, args.blocks * sizeof *args.parts);
  if (args.counters && args.parts)
    column_launch(LEARN_mask_squares, args.blocks, LEARN_THREADS, SUM_SHARED_BYTES, &args);
}

/* Constants of a step; returns the scale of the second moment's root. */
static float put_factors(struct mask_update_args *args, const struct mask_adamw *o) {
  const struct mask_adamw_factors f = mask_adamw_factors_of(o);
  args->keep = f.keep;
  args->rate = f.rate;
  args->beta1 = f.beta1;
  args->beta2 = f.beta2;
  args->gradient_scale = f.gradient_scale;
  args->epsilon = f.epsilon;
  args->second_scale = f.second_scale;
  args->most = f.most;
  return f.root_scale;
}

void column_mask_adamw_step(const struct mask_adamw *o, int64_t rows, int64_t cols,
                            const float *gradient, float *logits, float *first, float *second,
                            uint8_t *codes, uint64_t *flips) {
  struct mask_update_args args = update_arguments(rows, cols);
  args.gradient = gradient;
  args.logits = logits;
  args.first = first;
  args.second = second;
  args.codes = codes;
  args.flips = (unsigned long long *)flips;
  put_factors(&args, o);
  column_launch(LEARN_mask_adamw, args.blocks, LEARN_THREADS, 0, &args);
}

void column_mask_compact_step(const struct mask_adamw *o, const struct mask_rounding *rounding,
                              int64_t rows, int64_t cols, const struct mask_compact *state,
                              uint8_t *codes, uint64_t *flips) {
  struct mask_compact_args args = {.update = update_arguments(rows, cols),
                                   .first = state->first,
                                   .second = state->second,
                                   .first_scale = state->first_scale,
                                   .second_scale = state->second_scale,
                                   .key = {rounding->key[0], rounding->key[1]},
                                   .tensor = rounding->tensor,
                                   .step = (uint32_t)o->step};
  args.update.gradient = state->gradient;
  args.update.logits = state->logits;
  args.update.compact = true;
  args.update.codes = codes;
  args.update.flips = (unsigned long long *)flips;
  args.root_scale = put_factors(&args.update, o);
  column_launch(LEARN_mask_compact, args.update.blocks, LEARN_THREADS, 0, &args);
}

void column_mask_harden(const void *logits, enum dtype dtype, int64_t rows, int64_t cols,
                        uint8_t *codes, uint64_t *flips) {
  struct mask_update_args args = update_arguments(rows, cols);
  args.compact = dtype == DTYPE_BF16;
  args.logits = (void *)logits;
  args.codes = codes;
  args.flips = (unsigned long long *)flips;
  column_launch(LEARN_mask_choose, args.blocks, LEARN_THREADS, 0, &args);
}

void column_mask_keep(struct matrix_view w, const uint8_t *codes, const uint8_t *tiles,
                      int64_t tile_rows, int64_t tile_cols, float *out) {
  struct mask_keep_args args = {.w = w.data,
                                .codes = codes,
                                .tiles = tiles,
                                .out = out,
                                .count = (uint64_t)(w.rows * mask_row_groups(w.cols)),
                                .type = column_element(w.dtype),
                                .rows = (uint32_t)w.rows,
                                .cols = (uint32_t)w.cols,
                                .groups = (uint32_t)mask_row_groups(w.cols),
                                .code_stride = divide_up(w.cols, 8),
                                .tile_rows = (uint32_t)tile_rows,
                                .tile_groups = (uint32_t)(tile_cols / 4),
                                .tile_columns = divide_up(w.cols, tile_cols)};
  args.blocks = column_blocks(args.count, LEARN_THREADS);
  column_launch(LEARN_mask_keep_hard, args.blocks, LEARN_THREADS, 0, &args);
}
