/* Recovery: the loss falls, the mask stays, threads do not show; and the whole command, whose
 * output has the same zeros and says what it is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "kernel/ops.h"
#include "learn/recover.h"
#include "support/support.h"

static struct error err;
enum { TOKENS = 1024, WINDOW = 16, COUNT = TOKENS / WINDOW, TILE = 16 };
static struct corpus corpus;
static struct windows windows;
static int64_t start[COUNT];

static int make_text(void **state) {
  corpus.ids.items = malloc(TOKENS * sizeof(int32_t));
  corpus.ids.count = TOKENS;
  for (int i = 0; i < TOKENS; i++) corpus.ids.items[i] = (int32_t)((i * i + 3 * i) % 97);
  for (int i = 0; i < COUNT; i++) start[i] = i * WINDOW;
  windows = (struct windows){&corpus, WINDOW, COUNT, start};
  return 0;
}

static int free_text(void **state) {
  free(corpus.ids.items);
  return 0;
}

static struct model *open_llama(void) {
  struct model *model;
  must(model_open(&model, golden("models/llama"), &err), err);
  return model;
}

/* A hybrid mask with a dense tile here and there for all linears but the first block's q, whose
 * columns are masked bit by bit, and its k, which is left dense. */
static void make_masks(const struct model *model, struct mask_set *set) {
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
    struct mask_matrix m;
    if (i == SITE_K) continue;
    if (i == SITE_Q) {
      must(mask_matrix_init_bits(&m, site->name, rows, cols, &err), err);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) mask_set_bit(&m, r, c, (r + c) % 3 == 0);
    } else {
      must(mask_matrix_init_hybrid(&m, site->name, rows, cols, TILE, TILE, &err), err);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < mask_group_count(&m); g++)
          mask_set_code(&m, r, g, sparse_candidate_code[(r * 7 + g * 5 + i) % SPARSE_CANDIDATES]);
      for (int64_t k = 0; k < mask_tile_count(&m); k++) m.tiles[k] = (k + i) % 3 == 0;
    }
    must(mask_set_add(set, &m, &err), err);
  }
}

static const struct recover_settings gentle = {
    .tokens = 30 * 4 * WINDOW, .batch = 4, .seed = 3, .rate = 3e-3, .precision = PRECISION_FP32};

/* Tuned from all weights (rank 0), or by adapters. */
static void loss_falls_and_mask_stays(int64_t rank) {
  struct model *dense = open_llama(), *model = open_llama();
  struct mask_set masks = {0};
  struct recover_report report;
  struct recover_settings settings = gentle;
  settings.lora_rank = rank;
  if (rank) settings.rate = 1e-2;
  make_masks(model, &masks);
  must(recover_run(model, &masks, &windows, &settings, &report, &err), err);
  printf("dense %.4f, masked %.4f, recovered %.4f\n", report.dense_loss, report.masked_loss,
         report.loss);
  assert_int_equal(report.steps, 30);
  assert_true(report.loss < report.masked_loss - 0.05);
  int64_t kept = 0, changed = 0, adapters = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_site *site = model_site(model, i);
    const struct mask_matrix *m = mask_set_find(&masks, site->name);
    int64_t rows = linear_rows(&site->weight), cols = linear_cols(&site->weight);
    float *was = mem_alloc((size_t)(rows * cols), sizeof *was, &err);
    float *now = mem_alloc((size_t)(rows * cols), sizeof *now, &err);
    float *keep = mem_alloc((size_t)cols, sizeof *keep, &err);
    model_site_expand(dense, i, was);
    model_site_expand(model, i, now);
    if (!m) assert_memory_equal(was, now, (size_t)(rows * cols) * sizeof *was);
    if (m) adapters += rank * (rows + cols);
    for (int64_t r = 0; m && r < rows; r++) {
      mask_row(m, r, keep);
      for (int64_t c = 0; c < cols; c++) {
        if (keep[c] == 0) assert_true(now[r * cols + c] == 0 && !signbit(now[r * cols + c]));
        kept += keep[c] != 0;
        changed += keep[c] != 0 && now[r * cols + c] != was[r * cols + c];
      }
    }
    mem_free(was);
    mem_free(now);
    mem_free(keep);
  }
  assert_int_equal(report.weights, rank ? adapters : kept);
  assert_true(changed > kept / 2);
  mask_set_free(&masks);
  model_close(model);
  model_close(dense);
}

static void the_loss_falls_and_the_mask_stays(void **state) {
  loss_falls_and_mask_stays(0);
  loss_falls_and_mask_stays(4);
}

/* KL(dense || model) over the first windows, nats per token. */
static double divergence(const struct model *dense, const struct model *model) {
  enum { SOME = 8 };
  const struct model_shape shape = {SOME, WINDOW};
  const int64_t tokens = SOME * WINDOW, vocab = model_config(model)->vocab_size,
                hidden = model_config(model)->hidden_size;
  const struct model *both[] = {dense, model};
  float *logits[2], *normed = mem_alloc((size_t)(tokens * hidden), sizeof(float), &err);
  static float kl[SOME * WINDOW];
  for (int i = 0; i < 2; i++) {
    struct model_workspace *ws;
    logits[i] = mem_alloc((size_t)(tokens * vocab), sizeof(float), &err);
    must(model_workspace_new(&ws, both[i], shape, false, false, &err), err);
    must(model_forward(both[i], corpus.ids.items, shape, NULL, ws, normed, &err), err);
    model_logits(both[i], normed, tokens, PRECISION_FP32, logits[i]);
    model_workspace_free(ws);
  }
  softmax_kl(logits[0], logits[1], tokens, vocab, kl, NULL);
  double sum = 0;
  for (int64_t i = 0; i < tokens; i++) sum += (double)kl[i];
  for (int i = 0; i < 2; i++) mem_free(logits[i]);
  mem_free(normed);
  return sum / (double)tokens;
}

static void the_teacher_is_followed(void **state) {
  struct model *dense = open_llama(), *masked = open_llama(), *stranger;
  struct recover_report report;
  struct mask_set masks = {0};
  double far[2];
  make_masks(masked, &masks);
  must(model_apply_masks(masked, &masks, &err), err);
  const double before = divergence(dense, masked);
  for (int taught = 0; taught < 2; taught++) {
    struct model *model = open_llama();
    struct recover_settings s = gentle;
    s.objective.distill.weight = taught;
    s.teacher = dense;
    must(recover_run(model, &masks, &windows, &s, &report, &err), err);
    far[taught] = divergence(dense, model);
    assert_true(taught ? report.kl > 0 : report.kl == 0);
    model_close(model);
  }
  printf("KL to dense %.4f, tuned on text %.4f, on the teacher %.4f\n", before, far[0], far[1]);
  assert_true(far[1] < 0.7 * before && far[1] < 0.7 * far[0]);
  struct recover_settings s = gentle;
  must(model_open(&stranger, golden("models/gemma3"), &err), err);
  s.objective.distill.weight = 1;
  s.teacher = stranger;
  assert_int_equal(recover_run(masked, &masks, &windows, &s, &report, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "cannot teach"));
  mask_set_free(&masks);
  model_close(stranger);
  model_close(masked);
  model_close(dense);
}

static void a_time_becomes_steps(void **state) {
  struct model *model = open_llama();
  struct mask_set masks = {0};
  struct recover_report report;
  struct recover_settings s = gentle;
  make_masks(model, &masks);
  s.tokens = 0;
  s.rate = 0;
  s.seconds = 1e-6;
  assert_int_equal(recover_run(model, &masks, &windows, &s, &report, &err), STATUS_USAGE);
  assert_non_null(strstr(err.text, "too short"));
  model_close(model);
  model = open_llama();
  s.seconds = 2;
  must(recover_run(model, &masks, &windows, &s, &report, &err), err);
  assert_true(report.steps >= 1 && report.loss < report.masked_loss);
  assert_true(report.rate == recover_default_rate(model, 0) && report.rate == 3e-3);
  mask_set_free(&masks);
  model_close(model);
}

static void threads_do_not_show_at(int64_t rank) {
  struct model *model[2];
  struct recover_settings few = gentle;
  few.tokens = 5 * 4 * WINDOW;
  few.lora_rank = rank;
  for (int i = 0; i < 2; i++) {
    struct mask_set masks = {0};
    struct recover_report report;
    parallel_set_threads(i ? 3 : 1);
    model[i] = open_llama();
    make_masks(model[i], &masks);
    must(recover_run(model[i], &masks, &windows, &few, &report, &err), err);
    mask_set_free(&masks);
  }
  for (int s = 0; s < model_site_count(model[0]); s++) {
    const struct linear_weight *a = &model_site(model[0], s)->weight,
                               *b = &model_site(model[1], s)->weight;
    size_t bytes = (size_t)(linear_rows(a) * linear_cols(a)) * sizeof(float);
    if (s != SITE_K) assert_memory_equal(a->dense.data, b->dense.data, bytes);
  }
  model_close(model[0]);
  model_close(model[1]);
  parallel_set_threads(0);
}

static void threads_do_not_show(void **state) {
  threads_do_not_show_at(0);
  threads_do_not_show_at(3);
}

/* --- stopping and going on --- */

static void same_weights(const struct model *a, const struct model *b) {
  for (int s = 0; s < model_site_count(a); s++) {
    const struct linear_weight *x = &model_site(a, s)->weight, *y = &model_site(b, s)->weight;
    const size_t bytes = (size_t)(linear_rows(x) * linear_cols(x)) * sizeof(float);
    if (s != SITE_K) assert_memory_equal(x->dense.data, y->dense.data, bytes);
  }
}

/* A model tuned for a while with a state in the scratch folder. */
static struct model *tune(struct recover_settings s, const struct model *teacher,
                          enum status expected, struct recover_report *report) {
  struct model *model = open_llama();
  struct mask_set masks = {0};
  make_masks(model, &masks);
  s.teacher = teacher;
  enum status status = recover_run(model, &masks, &windows, &s, report, &err);
  if (status != expected) fail_msg("%s", err.text);
  mask_set_free(&masks);
  return model;
}

/* Stopped after each single step and resumed, on other threads; the last checkpoint damaged on the
 * way. Then other settings, which are refused. */
static void stopped_run_goes_on(int64_t rank, const char *dir) {
  struct recover_settings s = gentle;
  struct recover_report whole, parts;
  struct model *teacher = open_llama();
  s.lora_rank = rank;
  s.tokens = 5 * 4 * WINDOW;
  s.objective = (struct model_objective){{DISTILL_TOP, 5, 0.5}, 0.3};
  struct model *straight = tune(s, teacher, STATUS_OK, &whole), *model;
  s.state = dir;
  s.checkpoint_seconds = 1e9;
  s.resume = true;
  for (int step = 1; step < 5; step++) {
    interrupt_set(true);
    parallel_set_threads(1 + step % 3);
    model = tune(s, teacher, STATUS_INTERRUPTED, &parts);
    interrupt_set(false);
    assert_non_null(strstr(err.text, "--resume goes on"));
    assert_int_equal(parts.steps, step == 4 ? 3 : step);
    model_close(model);
    if (step == 3) { /* what is lost is one step, done again */
      char path[512];
      snprintf(path, sizeof path, "%s/checkpoint.safetensors", dir);
      FILE *f = fopen(path, "r+b");
      assert_non_null(f);
      fseek(f, -100, SEEK_END);
      fputs("damaged", f);
      fclose(f);
    }
  }
  parallel_set_threads(0);
  s.rate = 1e-3;
  model_close(tune(s, teacher, STATUS_REFUSED, &parts));
  assert_non_null(strstr(err.text, "other settings"));
  s.rate = gentle.rate;
  s.lora_rank = rank + 1;
  model_close(tune(s, teacher, STATUS_REFUSED, &parts));
  assert_non_null(strstr(err.text, "other settings"));
  s.lora_rank = rank;
  model = tune(s, teacher, STATUS_OK, &parts);
  same_weights(straight, model);
  assert_true(parts.loss == whole.loss && parts.dense_loss == whole.dense_loss &&
              parts.masked_loss == whole.masked_loss && parts.kl == whole.kl);
  assert_int_equal(parts.steps, whole.steps);
  model_close(model);
  model_close(straight);
  model_close(teacher);
}

static void a_stopped_run_goes_on_with_the_same_bits(void **state) {
  stopped_run_goes_on(0, scratch_path("recovering"));
  stopped_run_goes_on(2, scratch_path("recovering adapters"));
}

static void what_does_not_fit_is_refused(void **state) {
  struct model *model = open_llama();
  struct mask_set masks = {0};
  struct mask_matrix stranger;
  struct recover_report report;
  struct recover_settings s = gentle;
  make_masks(model, &masks);
  s.tokens = 4 * WINDOW - 1;
  assert_int_equal(recover_run(model, &masks, &windows, &s, &report, &err), STATUS_USAGE);
  const struct windows few = {&corpus, WINDOW, 3, start};
  assert_int_equal(recover_run(model, &masks, &few, &gentle, &report, &err), STATUS_REFUSED);
  must(mask_matrix_init_bits(&stranger, "model.layers.99.mlp.up_proj.weight", 8, 8, &err), err);
  must(mask_set_add(&masks, &stranger, &err), err);
  assert_int_equal(recover_run(model, &masks, &windows, &gentle, &report, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "another model"));
  mask_set_free(&masks);
  model_close(model);
}

static void the_command_writes_a_model(void **state) {
  static char output[1 << 14];
  const char *path = shared_data("models/stories260K"), *mask = scratch_path("mask");
  if (!path) skip();
  FILE *f = fopen(scratch_path("text.txt"), "w");
  for (int i = 0; i < 400; i++)
    fprintf(f, "Once upon a time there was a %s dog. He was %d.\n", i % 3 ? "big" : "small", i % 7);
  fclose(f);
  const char *text = scratch_path("text.txt"), *out = scratch_path("out");
  if (run_command(output, sizeof output,
                  "%s prune %s --method magnitude --pattern hybrid --sparsity 40%% --tile 16 "
                  "--out %s && %s recover %s --mask %s --data %s --tokens 4096 --window 64 --batch "
                  "2 --out %s --lr 1e-3",
                  program(), path, mask, program(), path, mask, text, out))
    fail_msg("%s", output);
  assert_non_null(strstr(output, "the mask is as it was"));
  assert_int_equal(run_command(NULL, 0, "grep -q fine-tuned %s/README.md", out), 0);
  /* the zeros are where they were: the mask drops nothing more */
  if (run_command(output, sizeof output,
                  "%s eval %s --ppl %s --window 64 --json %s --quiet && %s eval %s --mask %s --ppl "
                  "%s --window 64 --json %s --quiet && grep nll %s > %s && grep nll %s > %s && cmp "
                  "%s %s",
                  program(), out, text, scratch_path("a.json"), program(), out, mask, text,
                  scratch_path("b.json"), scratch_path("a.json"), scratch_path("a"),
                  scratch_path("b.json"), scratch_path("b"), scratch_path("a"), scratch_path("b")))
    fail_msg("%s", output);
  assert_int_equal(run_command(output, sizeof output, "%s recover %s --mask %s --data %s --out %s",
                               program(), path, mask, text, scratch_path("none")),
                   STATUS_USAGE);
  assert_int_equal(run_command(output, sizeof output,
                               "%s recover %s --mask %s --data %s --budget 2parsecs --out %s",
                               program(), path, mask, text, scratch_path("none")),
                   STATUS_USAGE);
  assert_non_null(strstr(output, "--budget needs a time"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_loss_falls_and_the_mask_stays),
      cmocka_unit_test(the_teacher_is_followed),
      cmocka_unit_test(a_time_becomes_steps),
      cmocka_unit_test(threads_do_not_show),
      cmocka_unit_test(a_stopped_run_goes_on_with_the_same_bits),
      cmocka_unit_test(what_does_not_fit_is_refused),
      cmocka_unit_test(the_command_writes_a_model),
  };
  return cmocka_run_group_tests(tests, make_text, free_text);
}
