/* What the tests of the products in clusters share: a case of cuda_product.h with an order by
 * columns and a plan for clusters. */
#include "kernel/cuda_product.h"

struct cluster_case {
  struct product_case product;
  struct product_plan plan;
  uint32_t *order;
  struct cluster_args args;
  struct simt_launch launch;
};

/* The launch for a product that has been made: of its fragments in clusters of so many blocks.
 */
static inline void cluster_case_fill(struct cluster_case *c, struct product_shape shape,
                                     uint32_t cluster) {
  struct error err = {0};
  const struct product_costs costs = {9, 16};
  struct product_case *p = &c->product;
  const struct fragment_matrix *f = &p->fragments;
  const size_t places = (size_t)(fragment_order_strips(f) * f->tiles_per_strip);
  c->order = test_malloc(places * sizeof *c->order);
  must(fragment_order(f, c->order, &err), err);
  must((p->activation ? product_plan_make_pair_clusters : product_plan_make_clusters)(
           &c->plan, f, c->order, shape.tokens, shape.panel_tokens, shape.blocks, cluster, costs,
           &err),
       err);
  const size_t slots = product_plan_slot_bytes(&c->plan),
               counters = product_plan_counters(&c->plan) * sizeof *p->counters;
  p->partials = realloc(p->partials, slots + 1);
  p->counters = realloc(p->counters, counters);
  assert_true(p->partials && p->counters);
  memset(p->partials, 0xff, slots); /* NaN */
  memset(p->counters, 0, counters);
  c->args = (struct cluster_args){.product = p->args,
                                  .order = c->order,
                                  .tiles_per_strip = (uint32_t)f->tiles_per_strip,
                                  .cluster = cluster};
  c->args.product.x = NULL;
  c->args.product.columns = NULL;
  c->args.product.segments = c->plan.segment;
  c->args.product.first_segment = c->plan.first_segment;
  c->args.product.partials = p->partials;
  c->args.product.counters = p->counters;
  simt_panel_map(&c->args.x, p->x, p->args.x_stride, shape.tokens, (uint32_t)shape.cols,
                 shape.panel_tokens / cluster);
  c->launch = (struct simt_launch){
      .blocks = shape.blocks * cluster,
      .cluster = cluster,
      .threads = CLUSTER_THREADS,
      .shared_bytes = cluster_shared_bytes(f->form.kind, p->activation != PAIR_NONE,
                                           shape.panel_tokens, shape.stages),
  };
  struct simt_launch *launch = &c->launch;
  const size_t y_bytes = shape.tokens * p->args.y_stride * 2;
  simt_buffer(launch, f->tiles, f->tile_bytes, false);
  simt_buffer(launch, c->order, places * sizeof *c->order, false);
  simt_buffer(launch, c->plan.segment, c->plan.segments * sizeof *c->plan.segment, false);
  simt_buffer(launch, c->plan.first_segment, (shape.blocks + 1) * sizeof *c->plan.first_segment,
              false);
  simt_buffer(launch, p->x, shape.tokens * p->args.x_stride * 2, false);
  simt_buffer(launch, p->y, y_bytes, true);
  simt_buffer(launch, p->bias, (size_t)shape.rows * (p->activation ? 4 : 2), false);
  simt_buffer(launch, f->row_scales,
              (size_t)f->strips * FRAGMENT_STRIP_ROWS * sizeof *f->row_scales, false);
  simt_buffer(launch, p->residual, y_bytes, false);
  simt_buffer(launch, p->partials, slots, true);
  simt_buffer(launch, p->counters, counters, true);
}

/* `shape.blocks` counts clusters; `cluster` is their blocks. */
static inline void cluster_case_make(struct cluster_case *c, struct product_shape shape,
                                     uint32_t cluster, uint64_t seed) {
  product_case_make(&c->product, shape, seed);
  cluster_case_fill(c, shape, cluster);
}
/* Integers in place of bf16; `tile` 0: no mask. */
static inline void cluster_case_make_quant(struct cluster_case *c, struct product_shape shape,
                                           uint32_t cluster, const struct quant_form *form,
                                           int64_t tile, uint64_t seed) {
  product_case_make_quant(&c->product, shape, form, tile, seed);
  c->product.rounds_weights = form->group > 0;
  cluster_case_fill(c, shape, cluster);
}

/* A pair, of integers where `form` is not NULL. */
static inline void cluster_case_make_pair(struct cluster_case *c, struct product_shape shape,
                                          uint32_t cluster, const struct quant_form *form,
                                          enum product_pair activation, uint64_t seed) {
  if (form)
    product_case_make_quant_pair(&c->product, shape, form, activation, seed);
  else
    product_case_make_pair(&c->product, shape, activation, seed);
  c->product.rounds_weights = form && form->group > 0;
  cluster_case_fill(c, shape, cluster);
}

/* The same cases for kernels whose blocks take the two strips of a cluster of two. */
static inline void cluster_case_be_tall(struct cluster_case *c) {
  const struct product_shape *shape = &c->product.shape;
  c->args.product.x = c->product.x;
  c->launch.blocks = shape->blocks;
  c->launch.cluster = 1;
  c->launch.threads = TALL_THREADS;
  c->launch.shared_bytes =
      tall_shared_bytes(c->product.fragments.form.kind, shape->panel_tokens, shape->stages);
}
static inline void cluster_case_make_tall(struct cluster_case *c, struct product_shape shape,
                                          uint64_t seed) {
  cluster_case_make(c, shape, TALL_STRIPS, seed);
  cluster_case_be_tall(c);
}

static inline void cluster_case_free(struct cluster_case *c) {
  product_case_free(&c->product);
  product_plan_release(&c->plan);
  test_free(c->order);
}

/* Elements that are wrong, or -1 when the launch failed. */
static inline int64_t cluster_case_run(struct cluster_case *c, void (*kernel)(const void *),
                                       uint32_t order, struct simt_report *report) {
  const size_t bytes = c->product.shape.tokens * c->product.args.y_stride * 2;
  uint16_t *before = test_malloc(bytes);
  memcpy(before, c->product.y, bytes);
  c->launch.order = order;
  simt_run(&c->launch, kernel, &c->args, report);
  const int64_t wrong = report->failed ? -1 : product_case_count_wrong(&c->product, before);
  test_free(before);
  return wrong;
}
