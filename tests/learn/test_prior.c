/* Priors that come from files: which masks of a file count, and what is taken from them. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "learn/prior.h"
#include "support/support.h"

static struct error err;
enum { WINDOW = 16, TILE = 8 };

static float score_of(int site, int64_t tile) { return (float)(site * 7 + tile * 5 % 11); }

static void make_learner(struct learner *l, struct model *model) {
  struct learn_settings s;
  learn_settings_unset(&s, LEARN_JOINT);
  s.sparsity = 0.35;
  s.tokens = 64 * WINDOW;
  s.window = WINDOW;
  s.batch = s.micro = 2;
  s.tile_rows = s.tile_cols = TILE;
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  bool *skip = mem_alloc((size_t)model_site_count(model), sizeof *skip, &err);
  assert_non_null(skip);
  must(learner_init(l, model, &s, skip, &err), err);
  mem_free(skip);
}

/* A hybrid mask with scores for every learned linear, behind the bits of one that is not learned.
 */
static const char *mixed_file(const struct learner *l) {
  const char *path = scratch_path("mixed.safetensors");
  struct mask_set set = {0};
  struct mask_matrix m;
  must(mask_matrix_init_bits(&m, "a.linear.apart", TILE, TILE, &err), err);
  must(mask_set_add(&set, &m, &err), err);
  for (int i = 0; i < l->site_count; i++) {
    must(mask_matrix_copy(&m, &l->sites[i].mask, &err), err);
    mem_free(m.tile_scores);
    m.tile_scores = mem_alloc((size_t)mask_tile_count(&m), sizeof(float), &err);
    assert_non_null(m.tile_scores);
    for (int64_t k = 0; k < mask_tile_count(&m); k++) m.tile_scores[k] = score_of(i, k);
    must(mask_set_add(&set, &m, &err), err);
  }
  must(mask_save(&set, path, &err), err);
  mask_set_free(&set);
  return path;
}

static enum status no_calibration(void *ctx, const struct calibration **out, struct error *e) {
  (void)ctx;
  *out = NULL;
  return error_set(e, STATUS_FAILED, "the file's own scores were not taken");
}

/* The kind of the file's first mask decides nothing: it may be of a linear that is skipped. */
static void scores_are_those_of_learned_linears(void **state) {
  struct model *model;
  struct learner l;
  struct mask_set prior = {0};
  const struct prune_settings prune = {0};
  const struct prior_calibration calibration = {NULL, no_calibration};
  (void)state;
  must(model_open(&model, golden("models/llama"), &err), err);
  make_learner(&l, model);
  const char *file = mixed_file(&l);
  must(prior_prepare(&prior, &l, model, &prune, &file, 1, &calibration, &err), err);
  assert_int_equal(prior.count, l.site_count);
  for (int i = 0; i < l.site_count; i++) {
    const struct mask_matrix *m = mask_set_find(&prior, l.sites[i].mask.name);
    assert_non_null(m);
    for (int64_t k = 0; k < mask_tile_count(m); k++)
      assert_true(m->tile_scores[k] == score_of(i, k));
  }
  mask_set_free(&prior);
  learner_free(&l);
  model_close(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(scores_are_those_of_learned_linears)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
