/* prune: the layer loop on a real (small) model: better methods lose less, densities are exact,
 * the model stays as it was, bits don't depend on threads, interrupts leave nothing behind. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "prune/prune.h"
#include "support/support.h"

enum { WINDOWS = 16, HELD_OUT = 8, LENGTH = 128 };

/* Text that the model itself writes, sampled at temperature 1: it knows no better. */
static int32_t *ids;

static int32_t sample(const float *logits, int64_t vocab, struct rng *rng) {
  double most = -INFINITY, sum = 0;
  for (int64_t i = 0; i < vocab; i++) most = fmax(most, logits[i]);
  for (int64_t i = 0; i < vocab; i++) sum += exp(logits[i] - most);
  double left = rng_uniform(rng) * sum;
  for (int64_t i = 0; i < vocab; i++) {
    left -= exp(logits[i] - most);
    if (left < 0) return (int32_t)i;
  }
  return (int32_t)vocab - 1;
}

static struct model *open_model(void) {
  struct error err = {0};
  struct model *model;
  const char *path = shared_data("models/stories260K");
  if (!path) skip();
  must(model_open(&model, path, &err), err);
  return model;
}

static void write_text(const struct model *model) {
  struct error err = {0};
  struct rng rng = rng_make(1, 0);
  const int64_t vocab = model_config(model)->vocab_size;
  float *logits = mem_alloc((size_t)vocab, sizeof *logits, &err);
  ids = mem_alloc((WINDOWS + HELD_OUT) * LENGTH, sizeof *ids, &err);
  for (int w = 0; w < WINDOWS + HELD_OUT; w++) {
    struct model_session *session;
    must(model_session_new(&session, model, LENGTH, &err), err);
    int32_t *window = ids + w * LENGTH;
    window[0] = 1;
    for (int i = 1; i < LENGTH; i++) {
      must(model_session_append(session, &window[i - 1], 1, logits, &err), err);
      window[i] = sample(logits, vocab, &rng);
    }
    model_session_free(session);
  }
  mem_free(logits);
}

static int setup(void **state) {
  if (!shared_data("models/stories260K")) return 0;
  struct model *model = open_model();
  write_text(model);
  model_close(model);
  return 0;
}

static int teardown(void **state) {
  mem_free(ids);
  return 0;
}

/* Mean loss on the windows that calibration did not see. */
static double held_out_loss(const struct model *model) {
  struct error err = {0};
  struct model_workspace *ws;
  const struct model_shape shape = {HELD_OUT, LENGTH};
  float nll[HELD_OUT * (LENGTH - 1)];
  must(model_workspace_new(&ws, model, shape, false, false, &err), err);
  must(model_nll(model, ids + WINDOWS * LENGTH, shape, NULL, ws, nll, &err), err);
  model_workspace_free(ws);
  double sum = 0;
  for (int i = 0; i < HELD_OUT * (LENGTH - 1); i++) sum += nll[i];
  return sum / (HELD_OUT * (LENGTH - 1));
}

static struct calibration calibration(void) {
  return (struct calibration){.ids = ids, .windows = WINDOWS, .length = LENGTH};
}

static struct prune_settings settings_of(enum prune_method method, enum prune_pattern pattern,
                                         double sparsity) {
  struct prune_settings s = prune_defaults();
  s.method = method;
  s.pattern = pattern;
  s.sparsity = sparsity;
  s.tile_rows = s.tile_cols = 16;
  return s;
}

/* Loss after pruning; the masks go to *masks when it is not NULL. */
static double prune_loss(const struct prune_settings *s, struct mask_set *masks) {
  struct error err = {0};
  struct mask_set own = {0};
  struct prune_report report;
  const struct calibration c = calibration();
  struct model *model = open_model();
  must(prune_run(model, s, &c, &own, NULL, &report, &err), err);
  if (!s->update_weights) must(model_apply_masks(model, &own, &err), err);
  const double loss = held_out_loss(model);
  model_close(model);
  if (masks)
    *masks = own;
  else
    mask_set_free(&own);
  return loss;
}

static void better_methods_lose_less(void **state) {
  struct model *model = open_model();
  const double dense = held_out_loss(model);
  model_close(model);
  struct prune_settings s = settings_of(PRUNE_MAGNITUDE, PRUNE_2_4, 0.5);
  const double magnitude = prune_loss(&s, NULL);
  s.method = PRUNE_WANDA;
  const double wanda = prune_loss(&s, NULL);
  s.method = PRUNE_SPARSEGPT;
  s.update_weights = true;
  const double sparsegpt = prune_loss(&s, NULL);
  s.pattern = PRUNE_UNSTRUCTURED;
  s.sparsity = 0.5;
  const double unstructured = prune_loss(&s, NULL);
  s = settings_of(PRUNE_SPARSEGPT, PRUNE_HYBRID, 0.25);
  const double hybrid = prune_loss(&s, NULL);
  s.update_weights = true;
  const double hybrid_updated = prune_loss(&s, NULL);
  print_message(
      "dense %.3f, 2:4: magnitude %.3f wanda %.3f sparsegpt %.3f; unstructured %.3f, "
      "hybrid 25%% %.3f, updated %.3f\n",
      dense, magnitude, wanda, sparsegpt, unstructured, hybrid, hybrid_updated);
  assert_true(dense < hybrid_updated && hybrid_updated < hybrid && hybrid < wanda);
  assert_true(unstructured < sparsegpt && sparsegpt < wanda && wanda < magnitude);
}

/* Masks from two windows: enough where only counts matter. */
static void prune_quickly(struct model *model, const struct prune_settings *s,
                          struct mask_set *masks) {
  struct error err = {0};
  struct prune_report report;
  struct calibration c = calibration();
  c.windows = 2;
  *masks = (struct mask_set){0};
  must(prune_run(model, s, &c, masks, NULL, &report, &err), err);
}

static void densities_are_exact(void **state) {
  struct model *model = open_model();
  int64_t total = 0;
  for (int i = 0; i < model_site_count(model); i++)
    total +=
        linear_rows(&model_site(model, i)->weight) * linear_cols(&model_site(model, i)->weight);
  for (int method = PRUNE_MAGNITUDE; method <= PRUNE_SPARSEGPT; method++)
    for (double sparsity = 0.25; sparsity < 0.5; sparsity += 0.2) {
      struct mask_set masks;
      int64_t kept, covered;
      struct prune_settings s = settings_of((enum prune_method)method, PRUNE_HYBRID, sparsity);
      s.skip[s.skip_count++] = "model.layers.0.*k_proj*";
      prune_quickly(model, &s, &masks);
      assert_null(mask_set_find(&masks, "model.layers.0.self_attn.k_proj.weight"));
      mask_set_count(&masks, &kept, &covered);
      const double off = fabs((double)(kept + total - covered) - (1 - sparsity) * (double)total);
      assert_true(off <= 16 * 16 / 4 + 1); /* half of what one tile brings */
      mask_set_free(&masks);
      s.pattern = PRUNE_UNSTRUCTURED;
      prune_quickly(model, &s, &masks);
      mask_set_count(&masks, &kept, &covered);
      assert_true(fabs((double)kept - (1 - sparsity) * (double)covered) <= (double)masks.count);
      mask_set_free(&masks);
    }
  model_close(model);
}

static void assert_same_masks(const struct mask_set *a, const struct mask_set *b) {
  assert_int_equal(a->count, b->count);
  for (size_t i = 0; i < a->count; i++) {
    const struct mask_matrix *x = &a->items[i], *y = &b->items[i];
    assert_string_equal(x->name, y->name);
    if (x->kind == MASK_BITS) {
      assert_memory_equal(x->bits, y->bits, (size_t)(x->rows * mask_bit_stride(x)));
      continue;
    }
    assert_memory_equal(x->tiles, y->tiles, (size_t)mask_tile_count(x));
    assert_memory_equal(mask_groups(x), mask_groups(y), mask_groups_bytes(x));
    assert_memory_equal(x->tile_scores, y->tile_scores, (size_t)mask_tile_count(x) * 4);
  }
}

static void same_bits_and_untouched_model(void **state) {
  struct error err = {0};
  struct model *model = open_model();
  const double before = held_out_loss(model);
  const struct calibration c = calibration();
  struct prune_settings s = settings_of(PRUNE_SPARSEGPT, PRUNE_HYBRID, 0.45);
  struct mask_set first[2] = {{0}}, again[2] = {{0}};
  struct prune_report report;
  s.unstructured_sparsity = 0.45;
  parallel_set_threads(1);
  must(prune_run(model, &s, &c, &first[0], &first[1], &report, &err), err);
  parallel_set_threads(3);
  must(prune_run(model, &s, &c, &again[0], &again[1], &report, &err), err);
  parallel_set_threads(0);
  assert_true(held_out_loss(model) == before);
  for (int i = 0; i < 2; i++) {
    assert_same_masks(&first[i], &again[i]);
    assert_int_equal(first[i].count, model_site_count(model));
    mask_set_free(&first[i]);
    mask_set_free(&again[i]);
  }
  model_close(model);
}

static void interrupts_leave_nothing(void **state) {
  struct error err = {0};
  struct model *model = open_model();
  const struct calibration c = calibration();
  const struct prune_settings s = settings_of(PRUNE_WANDA, PRUNE_2_4, 0.5);
  struct mask_set masks = {0};
  struct prune_report report;
  interrupt_set(true);
  assert_int_equal(prune_run(model, &s, &c, &masks, NULL, &report, &err), STATUS_INTERRUPTED);
  interrupt_set(false);
  assert_int_equal(masks.count, 0);
  assert_null(masks.items);
  model_close(model);
}

static void settings_are_checked(void **state) {
  struct error err = {0};
  struct prune_settings s = prune_defaults();
  must(prune_check(&s, &err), err);
  s.pattern = PRUNE_HYBRID;
  s.sparsity = 0.6;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  s.sparsity = NAN;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  s.sparsity = 0.45;
  s.tile_cols = 30;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  s = prune_defaults();
  s.method = PRUNE_WANDA;
  s.update_weights = true;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
  s = prune_defaults();
  s.pattern = PRUNE_N_M;
  s.of = s.keep = 4;
  assert_int_equal(prune_check(&s, &err), STATUS_USAGE);
}

/* Hybrids of other patterns: the density is exact, what is not dense obeys the pattern, and a group
 * of eight that may keep any four loses less than two of four. */
static void other_hybrids_are_exact(void **state) {
  static const int patterns[][2] = {{4, 8}, {1, 4}, {3, 4}};
  struct model *model = open_model();
  for (int i = 0; i < 3; i++) {
    struct mask_set masks;
    int64_t kept, covered;
    struct error err = {0};
    struct prune_settings s = settings_of(PRUNE_WANDA, PRUNE_HYBRID, i == 2 ? 0.2 : 0.45);
    s.keep = patterns[i][0];
    s.of = patterns[i][1];
    prune_quickly(model, &s, &masks);
    mask_set_count(&masks, &kept, &covered);
    assert_true(fabs((double)kept - (1 - s.sparsity) * (double)covered) <= 16 * 16 / 2);
    for (size_t k = 0; k < masks.count; k++) {
      assert_int_equal(masks.items[k].kind, MASK_TILED);
      must(mask_check_groups(&masks.items[k], s.keep, s.of, &err), err);
    }
    mask_set_free(&masks);
  }
  model_close(model);
  struct prune_settings s = settings_of(PRUNE_WANDA, PRUNE_2_4, 0.5);
  const double pairs = prune_loss(&s, NULL);
  s.pattern = PRUNE_N_M;
  s.keep = 4;
  s.of = 8;
  assert_true(prune_loss(&s, NULL) < pairs);
}

/* Tiles chosen from a mask's scores are those that the hybrid pass itself chooses. */
static void retile(const char *pattern) {
  struct error err = {0};
  struct model *model = open_model();
  const struct calibration c = calibration();
  struct prune_settings settings = prune_defaults();
  struct prune_report report;
  struct mask_set whole = {0}, hybrid = {0};
  settings.tile_rows = settings.tile_cols = 16;
  must(prune_pattern_parse(pattern, &settings, &err), err);
  must(prune_run(model, &settings, &c, &whole, NULL, &report, &err), err);
  settings.pattern = PRUNE_HYBRID;
  settings.sparsity = 0.35;
  must(prune_run(model, &settings, &c, &hybrid, NULL, &report, &err), err);
  must(prune_retile(model, &whole, 0.35, &err), err);
  must(mask_save(&whole, scratch_path("retiled.mask"), &err), err);
  must(mask_save(&hybrid, scratch_path("hybrid.mask"), &err), err);
  assert_int_equal(
      run_command(NULL, 0, "cmp %s %s", scratch_path("retiled.mask"), scratch_path("hybrid.mask")),
      0);
  assert_int_equal(prune_retile(model, &whole, 0.8, &err), STATUS_USAGE);
  mem_free(whole.items[0].tile_scores);
  whole.items[0].tile_scores = NULL;
  assert_int_equal(prune_retile(model, &whole, 0.4, &err), STATUS_REFUSED);
  mask_set_free(&whole);
  mask_set_free(&hybrid);
  model_close(model);
}

static void retiling_is_the_hybrid_pass(void **state) {
  retile("2:4");
  retile("1:4");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(better_methods_lose_less),      cmocka_unit_test(densities_are_exact),
      cmocka_unit_test(same_bits_and_untouched_model), cmocka_unit_test(interrupts_leave_nothing),
      cmocka_unit_test(settings_are_checked),          cmocka_unit_test(other_hybrids_are_exact),
      cmocka_unit_test(retiling_is_the_hybrid_pass),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
