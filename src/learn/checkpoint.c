/* Checkpoints: see checkpoint.h. No state.
 *
 * One list of tensors describes the learner's state; saving and loading both walk it
 * (learn/state_file.h), so that they cannot disagree. */
#include "learn/checkpoint.h"

#include <string.h>

#define FORMAT "tessera-checkpoint-1"

/* --- the tensors --- */

/* An array of the groups, in the memory of `ops`. */
static enum status add_planes(struct state_tensors *t, const struct group_logits *g,
                              const struct backend *ops, const char *prefix, const char *name,
                              enum dtype dtype, int64_t lanes, int planes, const void *data,
                              struct error *err) {
  const int64_t width = mask_row_blocks(g->cols) * lanes;
  return state_add_far(t, err, ops, prefix, name, dtype, g->rows, width, planes, data);
}

static enum status add_groups(struct state_tensors *t, const struct group_logits *g,
                              const char *name, struct error *err) {
  const enum dtype moment = g->compact ? DTYPE_U8 : DTYPE_F32;
  const int five = MASK_STORED, six = MASK_STORED + 1;
  const struct backend *of_moments = g->offload ? backend_cpu() : g->ops;
  enum status status =
      add_planes(t, g, g->ops, "logit.", name, groups_dtype(g), MASK_BLOCK, five, g->logit, err);
  if (!status)
    status =
        add_planes(t, g, of_moments, "moment1.", name, moment, MASK_BLOCK, five, g->moment1, err);
  if (!status)
    status =
        add_planes(t, g, of_moments, "moment2.", name, moment, MASK_BLOCK, six, g->moment2, err);
  if (status || !g->compact) return status;
  status = add_planes(t, g, of_moments, "scale1.", name, DTYPE_U8, 1, five, g->scale1, err);
  return status ? status
                : add_planes(t, g, of_moments, "scale2.", name, DTYPE_U8, 1, six, g->scale2, err);
}

static enum status add_site(struct state_tensors *t, const struct learner *l,
                            const struct learn_site *s, const struct mask_matrix *best,
                            struct error *err) {
  const char *name = s->mask.name;
  enum status status = STATUS_OK;
  const struct pattern_logits *p = &s->pattern;
  if (p->count) {
    const int64_t groups = pattern_groups(&p->table, p->cols);
    const int64_t each = p->table.count;
    status = state_add(t, err, "logit.", name, DTYPE_F32, p->rows, groups, each, p->logit);
    if (!status)
      status = state_add(t, err, "moment1.", name, DTYPE_F32, p->rows, groups, each, p->moment1);
    if (!status)
      status = state_add(t, err, "moment2.", name, DTYPE_F32, p->rows, groups, each, p->moment2);
  } else if (learn_uses_groups(&l->settings)) {
    status = add_groups(t, &s->groups, name, err);
  }
  if (!status)
    status = state_add(t, err, best->kind == MASK_TILED ? "best.bits." : "best.codes.", name,
                       DTYPE_U8, best->rows, mask_code_stride(best), 0, mask_groups(best));
  if (!status && learn_uses_tiles(&l->settings))
    status = state_add(t, err, "best.tiles.", name, DTYPE_U8, mask_tile_row_count(best),
                       mask_tile_col_count(best), 0, best->tiles);
  return status;
}

static enum status list_tensors(struct state_tensors *t, const struct learner *l,
                                const struct run_state *state, struct error *err) {
  const struct tile_logits *tiles = &l->tiles;
  enum status status = state_expect_far(t, l->ops, 5 * (size_t)l->site_count, err);
  if (status == STATUS_OK && learn_uses_tiles(&l->settings)) {
    status = state_add(t, err, "", "tiles.logit", DTYPE_F32, tiles->count, 0, 0, tiles->logit);
    if (!status)
      status =
          state_add(t, err, "", "tiles.moment1", DTYPE_F32, tiles->count, 0, 0, tiles->moment1);
    if (!status)
      status =
          state_add(t, err, "", "tiles.moment2", DTYPE_F32, tiles->count, 0, 0, tiles->moment2);
  }
  for (int i = 0; i < l->site_count && !status; i++)
    status = add_site(t, l, &l->sites[i], &state->best[i], err);
  return status;
}

/* --- the numbers --- */

static void list_numbers(struct state_number out[CHECKPOINT_NUMBERS], struct run_state *s,
                         int64_t *step, int64_t steps) {
  const struct state_number list[CHECKPOINT_NUMBERS] = {
      {.key = "dense_loss", .real = &s->dense_loss},
      {.key = "prior_loss", .real = &s->prior_loss},
      {.key = "first_loss", .real = &s->first_loss},
      {.key = "best_loss", .real = &s->best_loss},
      {.key = "seconds", .real = &s->seconds},
      {.key = "prior_seconds", .real = &s->prior_seconds},
      {.key = "best_step", .integer = &s->best_step},
      {.key = "record_bytes", .integer = &s->record_bytes},
      {.key = "last_loss", .real = &s->last_loss},
      {.key = "step", .integer = step, .most = steps},
  };
  memcpy(out, list, sizeof list);
}

enum status checkpoint_list(struct checkpoint *c, const struct learner *l,
                            const struct run_state *state, const char *settings,
                            struct error *err) {
  *c = (struct checkpoint){.numbers_of = *state, .step = l->step};
  c->state = (struct state){.format = FORMAT,
                            .settings = settings,
                            .numbers = c->numbers,
                            .number_count = CHECKPOINT_NUMBERS};
  list_numbers(c->numbers, &c->numbers_of, &c->step, l->settings.steps);
  return list_tensors(&c->state.tensors, l, state, err);
}

void checkpoint_free(struct checkpoint *c) { state_tensors_free(&c->state.tensors); }

enum status checkpoint_save(const struct learner *l, const struct run_state *state,
                            const char *settings, const char *run, struct error *err) {
  struct checkpoint c;
  enum status status = checkpoint_list(&c, l, state, settings, err);
  if (status == STATUS_OK) status = state_save(&c.state, run, err);
  checkpoint_free(&c);
  return status;
}

enum status checkpoint_load(struct learner *l, struct run_state *state, const char *settings,
                            const char *run, bool *found, struct error *err) {
  struct state_number numbers[CHECKPOINT_NUMBERS];
  struct state s = {.format = FORMAT,
                    .settings = settings,
                    .numbers = numbers,
                    .number_count = CHECKPOINT_NUMBERS};
  list_numbers(numbers, state, &l->step, l->settings.steps);
  *found = false;
  enum status status = list_tensors(&s.tensors, l, state, err);
  if (status == STATUS_OK) status = state_load(&s, run, found, err);
  state_tensors_free(&s.tensors);
  return status;
}
