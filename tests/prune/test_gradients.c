/* Scores from gradients: against finite differences of the loss, weight by weight; and the masks
 * and tile scores that they make. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "prune/gradients.h"
#include "prune/prune.h"
#include "support/support.h"

enum { WINDOWS = 3, LENGTH = 12 };
static struct error err;
static int32_t ids[WINDOWS * LENGTH];
static const struct calibration text = {.ids = ids, .windows = WINDOWS, .length = LENGTH};

static struct model *open_llama(void) {
  struct model *model;
  must(model_open(&model, golden("models/llama"), &err), err);
  for (int i = 0; i < WINDOWS * LENGTH; i++) ids[i] = (i * i + 5 * i + 2) % 97;
  return model;
}

static int64_t weights_of(const struct linear_site *site) {
  return linear_rows(&site->weight) * linear_cols(&site->weight);
}

static bool all(void *ctx, const struct linear_site *site) {
  (void)ctx;
  (void)site;
  return true;
}

static struct gradient_scores scores_of(const struct model *model, enum gradient_order order) {
  struct gradient_scores scores;
  struct progress progress = {0};
  must(gradient_scores_make(&scores, model, &text, order, all, NULL, &progress, &err), err);
  return scores;
}

/* --- against finite differences --- */

struct moved {
  int site;
  struct linear_weight weight;
};

static const struct linear_weight *moved_weight(void *ctx, const struct linear_site *site,
                                                enum tap_pass pass) {
  const struct moved *m = ctx;
  (void)pass;
  return site->index == m->site ? &m->weight : NULL;
}

/* Mean loss of a window with `w` (rows, cols) in place of a site's weight. */
static double loss_of(const struct model *model, int site, float *w, int window,
                      struct model_workspace *ws) {
  const struct linear_weight *own = &model_site(model, site)->weight;
  struct moved m = {site, {.dense = {w, DTYPE_F32, linear_rows(own), linear_cols(own)}}};
  const struct tap tap = {.ctx = &m, .weight = moved_weight};
  float nll[LENGTH - 1];
  double sum = 0;
  must(
      model_nll(model, ids + window * LENGTH, (struct model_shape){1, LENGTH}, &tap, ws, nll, &err),
      err);
  for (int i = 0; i < LENGTH - 1; i++) sum += (double)nll[i];
  return sum / (LENGTH - 1);
}

/* The place of the largest score beyond the first `skip` ones. */
static int64_t largest(const float *scores, int64_t count, const bool *taken) {
  int64_t at = -1;
  for (int64_t i = 0; i < count; i++)
    if (!taken[i] && (at < 0 || scores[i] > scores[at])) at = i;
  return at;
}

static void check_weight(const struct model *model, int site, int64_t at, float *w,
                         const struct gradient_scores scores[2], struct model_workspace *ws) {
  const float step = 4e-3f, own = w[at];
  double sum = 0, squares = 0;
  for (int window = 0; window < WINDOWS; window++) {
    w[at] = own + step;
    const double up = loss_of(model, site, w, window, ws), high = w[at];
    w[at] = own - step;
    const double down = loss_of(model, site, w, window, ws), low = w[at];
    const double g = (up - down) / (high - low);
    sum += g;
    squares += g * g;
    w[at] = own;
  }
  const double first = fabs(own * sum / WINDOWS), second = 0.5 * own * own * squares / WINDOWS;
  const double made_first = (double)scores[0].items[site][at],
               made_second = (double)scores[1].items[site][at];
  if (fabs(made_first - first) > 0.02 * first || fabs(made_second - second) > 0.04 * second)
    fail_msg("%s at %lld: %g and %g, by differences %g and %g", model_site(model, site)->name,
             (long long)at, made_first, made_second, first, second);
}

/* The largest scores of each linear: the differences of small ones are rounding. */
static void finite_differences(void **state) {
  enum { CHECKED = 3 };
  struct model *model = open_llama();
  const struct gradient_scores scores[2] = {scores_of(model, GRADIENT_FIRST),
                                            scores_of(model, GRADIENT_SECOND)};
  struct model_workspace *ws;
  (void)state;
  must(model_workspace_new(&ws, model, (struct model_shape){1, LENGTH}, false, false, &err), err);
  for (int site = 0; site < model_site_count(model); site++) {
    const int64_t count = weights_of(model_site(model, site));
    float *w = mem_alloc((size_t)count, sizeof *w, &err);
    bool *taken = mem_alloc((size_t)count, sizeof *taken, &err);
    model_site_expand(model, site, w);
    for (int i = 0; i < CHECKED; i++) {
      const int64_t at = largest(scores[0].items[site], count, taken);
      taken[at] = true;
      check_weight(model, site, at, w, scores, ws);
    }
    mem_free(w);
    mem_free(taken);
  }
  model_workspace_free(ws);
  for (int i = 0; i < 2; i++) gradient_scores_free((struct gradient_scores *)&scores[i]);
  model_close(model);
}

static void threads_do_not_show(void **state) {
  struct model *model = open_llama();
  struct gradient_scores scores[2];
  (void)state;
  for (int i = 0; i < 2; i++) {
    parallel_set_threads(i ? 3 : 1);
    scores[i] = scores_of(model, GRADIENT_SECOND);
  }
  parallel_set_threads(0);
  for (int site = 0; site < model_site_count(model); site++)
    assert_memory_equal(scores[0].items[site], scores[1].items[site],
                        (size_t)weights_of(model_site(model, site)) * sizeof(float));
  for (int i = 0; i < 2; i++) gradient_scores_free(&scores[i]);
  model_close(model);
}

/* --- the masks --- */

static struct mask_set prune(struct model *model, struct prune_settings s) {
  struct mask_set masks = {0};
  struct prune_report report;
  s.tile_rows = s.tile_cols = 16;
  must(prune_run(model, &s, &text, &masks, NULL, &report, &err), err);
  return masks;
}

/* A 2:4 mask keeps the two best scores of each group; a tile's score is what it drops a weight. */
static void pairs_and_tiles(void **state) {
  struct model *model = open_llama();
  struct gradient_scores scores = scores_of(model, GRADIENT_SECOND);
  struct prune_settings s = prune_defaults();
  (void)state;
  s.method = PRUNE_FISHER;
  struct mask_set masks = prune(model, s);
  assert_int_equal(masks.count, model_site_count(model));
  for (int site = 0; site < model_site_count(model); site++) {
    const struct mask_matrix *m = mask_set_find(&masks, model_site(model, site)->name);
    const float *score = scores.items[site];
    float *keep = mem_alloc((size_t)m->cols, sizeof *keep, &err);
    double *dropped = mem_alloc((size_t)mask_tile_count(m), sizeof *dropped, &err);
    for (int64_t r = 0; r < m->rows; r++) {
      mask_row(m, r, keep);
      for (int64_t c = 0; c < m->cols; c++) {
        if (keep[c] != 0) continue;
        int64_t better = 0, group = c & ~(int64_t)3;
        for (int64_t k = group; k < group + 4 && k < m->cols; k++)
          better += keep[k] != 0 && score[r * m->cols + k] >= score[r * m->cols + c];
        assert_int_equal(better, 2);
        dropped[r / 16 * mask_tile_col_count(m) + c / 16] += (double)score[r * m->cols + c];
      }
    }
    for (int64_t t = 0; t < mask_tile_count(m); t++) {
      const double expected = dropped[t] / (double)mask_tile_area(m, t);
      assert_true(fabs((double)m->tile_scores[t] - expected) <= 1e-5 * expected);
    }
    mem_free(keep);
    mem_free(dropped);
  }
  mask_set_free(&masks);
  gradient_scores_free(&scores);
  model_close(model);
}

static void other_patterns(void **state) {
  static const char *const patterns[] = {"1:4", "unstructured", "hybrid"};
  static const double density[] = {0.25, 0.7, 0.7};
  struct model *model = open_llama();
  (void)state;
  for (int i = 0; i < 3; i++) {
    struct prune_settings s = prune_defaults();
    int64_t kept, covered;
    s.method = PRUNE_TAYLOR;
    must(prune_pattern_parse(patterns[i], &s, &err), err);
    s.sparsity = 0.3;
    struct mask_set masks = prune(model, s);
    mask_set_count(&masks, &kept, &covered);
    assert_true(fabs((double)kept / (double)covered - density[i]) < 0.01);
    assert_string_equal(mask_set_meta_get(&masks, "method"), "taylor");
    assert_non_null(mask_set_meta_get(&masks, "calibration"));
    mask_set_free(&masks);
  }
  model_close(model);
}

/* What is skipped is neither scored nor pruned; the weights are not updated by these methods. */
static void skips_and_refusals(void **state) {
  struct model *model = open_llama();
  struct prune_settings s = prune_defaults();
  (void)state;
  s.method = PRUNE_TAYLOR;
  s.skip[s.skip_count++] = "*self_attn*";
  struct mask_set masks = prune(model, s);
  assert_int_equal(masks.count, model_config(model)->layers * 3);
  mask_set_free(&masks);
  s.update_weights = true;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  s.update_weights = false;
  const struct backend far = {.name = "cuda"};
  s.backend = &far;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  assert_non_null(strstr(err.text, "on the CPU only"));
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(finite_differences), cmocka_unit_test(threads_do_not_show),
      cmocka_unit_test(pairs_and_tiles),    cmocka_unit_test(other_patterns),
      cmocka_unit_test(skips_and_refusals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
