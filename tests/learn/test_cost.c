/* learn/cost: the table, its sums, its way through JSON. What was measured is only looked at for
 * being there. */
#include "learn/cost.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "support/support.h"

static struct error err;

static struct model *open_golden(void) {
  struct model *model;
  must(model_open(&model, golden("models/llama"), &err), err);
  return model;
}

/* A table for the model with dense_ps = rows * cols, and 2:4 at 60 % of it. */
static struct cost_table invent(const struct model *model) {
  struct cost_table t = {.head_ps = 1000};
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    int64_t rows = linear_rows(w), cols = linear_cols(w);
    if (cost_of_shape(&t, rows, cols)) continue;
    t.shapes[t.count++] = (struct cost_shape){rows, cols, 10 * rows * cols, 6 * rows * cols};
  }
  return t;
}

static void sums_count_every_matrix(void **state) {
  (void)state;
  struct model *model = open_golden();
  struct cost_table t = invent(model);
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  int64_t weights = 0, first = linear_rows(&model_site(model, 0)->weight) *
                               linear_cols(&model_site(model, 0)->weight);
  for (int i = 0; i < model_site_count(model); i++)
    weights +=
        linear_rows(&model_site(model, i)->weight) * linear_cols(&model_site(model, i)->weight);
  assert_true(cost_dense_ps(&t, model) == 1000 + 10 * weights);
  assert_true(cost_sparse_ps(&t, model, skip) == 1000 + 6 * weights);
  skip[0] = true;
  assert_true(cost_sparse_ps(&t, model, skip) == 1000 + 6 * weights + 4 * first);
  /* 4 ps a weight of the matrix, and half of them go */
  assert_true(fabs(cost_saved_per_weight(&t.shapes[0]) - 8) < 1e-12);
  t.shapes[0].sparse_ps = t.shapes[0].dense_ps + 1;
  assert_true(cost_saved_per_weight(&t.shapes[0]) == 0);
  mem_free(skip);
  model_close(model);
}

static void json_gives_the_same_table(void **state) {
  (void)state;
  struct model *model = open_golden();
  struct cost_table t = invent(model), back;
  json_t *json = cost_to_json(&t);
  must(cost_from_json(&back, json, model, "run", &err), err);
  assert_int_equal(back.count, t.count);
  assert_memory_equal(back.shapes, t.shapes, (size_t)t.count * sizeof *t.shapes);
  assert_true(back.head_ps == t.head_ps);
  json_array_remove(json_object_get(json, "shapes"), 0);
  assert_int_equal(cost_from_json(&back, json, model, "run", &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "run holds no table of costs"));
  json_decref(json);
  json = json_pack("{s:[{s:i}], s:i}", "shapes", "rows", 1, "head_ps", 5);
  assert_int_equal(cost_from_json(&back, json, model, "run", &err), STATUS_REFUSED);
  json_decref(json);
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_count_every_matrix),
      cmocka_unit_test(json_gives_the_same_table),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
