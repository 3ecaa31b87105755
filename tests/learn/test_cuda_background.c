/* Checkpoints beside the steps, on an emulated card whose copies happen as late as they may: the
 * file is that of its step, bit for bit, whatever is learned meanwhile; who forgets to wait is
 * seen; a write that fails is said. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "learn/background.h"
#include "learn/memory.h"
#include "support/cuda_emulated.h"
#include "support/support.h"

enum { TOKENS = 64, WINDOW = 8 };

static struct error err;
static int32_t ids[TOKENS];
static int64_t train[TOKENS / WINDOW], starts[TOKENS / WINDOW];
static struct corpus corpus = {.ids = {.items = ids, .count = TOKENS}};
static const struct windows windows = {&corpus, WINDOW, TOKENS / WINDOW, starts};

struct fixture {
  struct model *model;
  struct learner l;
  struct run_state state;
  bool *skip;
  char plain[300], aside[300]; /* folders */
};

static void fill(struct learner *l) {
  float logits[SPARSE_CANDIDATES];
  for (int i = 0; i < l->site_count; i++) {
    struct group_logits *g = &l->sites[i].groups;
    float *made = mem_alloc((size_t)mask_logit_count(g->rows, g->cols), sizeof *made, &err);
    for (int64_t r = 0; r < g->rows; r++)
      for (int64_t k = 0; k < mask_row_groups(g->cols); k++) {
        fill_normal(logits, SPARSE_CANDIDATES, (uint64_t)(i * 1000003 + r * 1000 + k), 0.01f);
        groups_set(made, g->cols, r, k, logits);
      }
    must(groups_load(g, made, &err), err);
    mem_free(made);
  }
}

static void open_fixture(struct fixture *f, bool compact, bool offload, bool graphs) {
  struct learn_settings s;
  *f = (struct fixture){.state = {.best_step = 1, .best_loss = 2.5}};
  learn_settings_unset(&s, LEARN_JOINT);
  s.sparsity = 0.02;
  s.tokens = 64 * WINDOW;
  s.window = WINDOW;
  s.batch = s.micro = 1;
  s.tile_rows = s.tile_cols = 16;
  s.precision = PRECISION_FP32;
  s.compact = compact;
  s.offload = offload;
  s.graphs = graphs;
  s.backend = emulated_open(128 << 20);
  must(model_open(&f->model, golden("models/llama"), &err), err);
  for (int i = 0; i < TOKENS; i++) ids[i] = (i * i + 3 * i) % 101;
  for (int i = 0; i < TOKENS / WINDOW; i++) train[i] = i, starts[i] = i * WINDOW;
  must(learn_settings_resolve(&s, WINDOW, &err), err);
  f->skip = mem_alloc((size_t)model_site_count(f->model), sizeof *f->skip, &err);
  for (int i = 2; i < model_site_count(f->model); i++) f->skip[i] = true; /* two linears will do */
  must(learner_init(&f->l, f->model, &s, f->skip, &err), err);
  fill(&f->l);
  f->state.best = mem_alloc((size_t)f->l.site_count, sizeof *f->state.best, &err);
  for (int i = 0; i < f->l.site_count; i++) f->state.best[i] = f->l.sites[i].mask;
  snprintf(f->plain, sizeof f->plain, "%s/plain", scratch());
  snprintf(f->aside, sizeof f->aside, "%s/aside", scratch());
  assert_int_equal(mkdir(f->plain, 0700), 0);
  assert_int_equal(mkdir(f->aside, 0700), 0);
}

static void close_fixture(struct fixture *f) {
  state_remove(f->plain);
  state_remove(f->aside);
  mem_free(f->state.best);
  mem_free(f->skip);
  learner_free(&f->l);
  model_close(f->model);
  emulated_close(); /* nothing leaks */
}

static void step(struct fixture *f) {
  struct step_result r;
  must(learner_step(&f->l, &windows, train, TOKENS / WINDOW, &r, &err), err);
}

/* What both folders' checkpoints are, byte by byte. */
static bool same_files(const struct fixture *f) {
  struct safetensors *file[2];
  char path[2][340];
  snprintf(path[0], sizeof path[0], "%s/checkpoint.safetensors", f->plain);
  snprintf(path[1], sizeof path[1], "%s/checkpoint.safetensors", f->aside);
  for (int i = 0; i < 2; i++) must(safetensors_open(&file[i], path[i], &err), err);
  bool same = safetensors_size(file[0]) == safetensors_size(file[1]);
  for (size_t i = 0; same && i < safetensors_size(file[0]); i++) {
    const struct stored_tensor *a = safetensors_at(file[0], i), *b = safetensors_at(file[1], i);
    same = !strcmp(a->name, b->name) && a->size_bytes == b->size_bytes &&
           !memcmp(a->data, b->data, a->size_bytes);
  }
  const char *const keys[] = {"step", "best_loss", "best_step", "settings", "record_bytes"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    same = same &&
           !strcmp(safetensors_metadata(file[0], keys[i]), safetensors_metadata(file[1], keys[i]));
  for (int i = 0; i < 2; i++) safetensors_close(file[i]);
  return same;
}

/* A checkpoint of the state as it is, and one beside steps that change all of it. */
static bool one_beside_steps(struct fixture *f, struct background *b) {
  must(checkpoint_save(&f->l, &f->state, "{}", f->plain, &err), err);
  must(background_begin(b, &f->l, &f->state, "{}", f->aside, &err), err);
  assert_int_equal(b->phase, BACKGROUND_COPYING);
  step(f);
  f->state.best_loss -= 1;
  f->state.best[0].tiles[0] ^= 1;
  must(background_step(b, &err), err);
  assert_int_equal(b->phase, BACKGROUND_WRITING);
  step(f);
  must(background_finish(b, &f->l, &err), err);
  assert_int_equal(b->phase, BACKGROUND_IDLE);
  return same_files(f);
}

static void files_are_those_of_their_steps(void **state) {
  (void)state;
  for (int way = 0; way < 2; way++) {
    struct fixture f;
    struct background b = {0};
    open_fixture(&f, way == 1, way == 1, way == 1);
    assert_true(background_serves(&b, &f.l));
    step(&f);
    assert_true(one_beside_steps(&f, &b));
    assert_true(emulated_card.asides > 0);
    const uint8_t *room = b.copy.room;
    const struct learn_memory plan = learn_memory_plan(f.model, &f.l.settings, f.skip);
    const double planned = plan.bytes[MEMORY_PINNED][MEMORY_CHECKPOINT];
    const double taken = (double)b.copy.bytes; /* tensors begin at multiples of 256 */
    assert_true(planned <= taken && taken < planned + 256 * 16);
    if (way == 0) assert_true(one_beside_steps(&f, &b)); /* again, in the same memory */
    assert_ptr_equal(b.copy.room, room);
    background_free(&b);
    close_fixture(&f);
  }
}

/* An update that does not wait for the copies mixes two steps. */
static void a_forgotten_wait_is_seen(void **state) {
  (void)state;
  struct fixture f;
  struct background b = {0};
  open_fixture(&f, false, false, false);
  emulated_card.late_aside = true;
  assert_false(one_beside_steps(&f, &b));
  emulated_card.late_aside = false;
  background_free(&b);
  close_fixture(&f);
}

static void failures_are_said(void **state) {
  (void)state;
  struct fixture f;
  struct background b = {0};
  char nowhere[340];
  open_fixture(&f, false, false, false);
  snprintf(nowhere, sizeof nowhere, "%s/none", f.aside);
  must(background_begin(&b, &f.l, &f.state, "{}", nowhere, &err), err);
  step(&f);
  must(background_step(&b, &err), err);
  while (!atomic_load(&b.done)) usleep(1000);
  assert_int_equal(background_step(&b, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "after step 0"));
  assert_non_null(strstr(err.text, nowhere));
  assert_int_equal(b.phase, BACKGROUND_IDLE);
  /* one that nobody waits for leaves nothing behind, copied or written */
  must(background_begin(&b, &f.l, &f.state, "{}", f.aside, &err), err);
  background_free(&b);
  must(background_begin(&b, &f.l, &f.state, "{}", f.aside, &err), err);
  step(&f);
  must(background_step(&b, &err), err);
  background_free(&b);
  /* no memory to copy to: said, and left to the caller */
  emulated_card.no_pinned = true;
  must(background_begin(&b, &f.l, &f.state, "{}", f.aside, &err), err);
  assert_true(b.refused && b.phase == BACKGROUND_IDLE && !background_serves(&b, &f.l));
  emulated_card.no_pinned = false;
  background_free(&b);
  close_fixture(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(files_are_those_of_their_steps),
      cmocka_unit_test(a_forgotten_wait_is_seen),
      cmocka_unit_test(failures_are_said),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
