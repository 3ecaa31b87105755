/* The transcendental halves of softmax masks over long tables, in the vector vocabulary: included
 * after rows_body.h. Contracts: kernel/select.h. */

enum { GUMBEL_VECTORS = 4 }; /* side by side: see vec_math.h */

/* x[i] = log(-log x[i]) */
INLINE void minus_gumbel_step(float *x, int count) {
  vf u[GUMBEL_VECTORS];
  for (int i = 0; i < count; i++) u[i] = vf_load(x + i * VL);
  vf_log_each(count, u);
  for (int i = 0; i < count; i++) u[i] = vf_abs(u[i]);
  vf_log_each(count, u);
  for (int i = 0; i < count; i++) vf_store(x + i * VL, u[i]);
}

static void minus_gumbel_row(float *x, int64_t n) {
  int64_t i = 0;
  for (; i + GUMBEL_VECTORS * VL <= n; i += GUMBEL_VECTORS * VL)
    minus_gumbel_step(x + i, GUMBEL_VECTORS);
  for (; i < n; i += VL) minus_gumbel_step(x + i, 1);
}

INLINE void exponential_step(float *x, int count) {
  vf e[GUMBEL_VECTORS];
  for (int i = 0; i < count; i++) e[i] = vf_load(x + i * VL);
  vf_exp_each(count, e);
  for (int i = 0; i < count; i++) vf_store(x + i * VL, e[i]);
}

static void exponential_row(float *x, int64_t n) {
  int64_t i = 0;
  for (; i + GUMBEL_VECTORS * VL <= n; i += GUMBEL_VECTORS * VL)
    exponential_step(x + i, GUMBEL_VECTORS);
  for (; i < n; i += VL) exponential_step(x + i, 1);
}

static void fill_gumbel(struct kernel_table *table) {
  table->minus_gumbel = minus_gumbel_row;
  table->exponential = exponential_row;
}
