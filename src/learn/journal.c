/* A run's journal: see journal.h. */
#include "learn/journal.h"

#include "base/clock.h"
#include "base/parallel.h"
#include "kernel/ops.h"

enum status journal_open(struct journal *j, const struct run_directory *directory,
                         const struct learn_settings *settings, bool events, int64_t step,
                         struct error *err) {
  *j = (struct journal){.directory = directory, .settings = settings};
  if (!events) return STATUS_OK;
  enum status status = tfevents_open(&j->events, directory->path, step + 1, err);
  j->events_open = status == STATUS_OK;
  return status;
}

void journal_close(struct journal *j) {
  if (j->events_open) tfevents_close(&j->events);
  j->events_open = false;
}

/* Steals `line`. */
static enum status record(struct journal *j, json_t *line, struct error *err) {
  INVARIANT(line);
  return run_record(j->directory, line, err);
}

static json_t *stamp(const char *type) {
  char now[21];
  clock_iso(now);
  return json_pack("{s:s, s:s}", "type", type, "time", now);
}

static json_int_t tokens_after(const struct journal *j, int64_t step) {
  return (json_int_t)step * j->settings->batch * j->settings->window;
}

struct scalar {
  const char *tag;
  double value;
};
static enum status write_events(struct journal *j, int64_t step, const struct scalar *scalars,
                                int count, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; j->events_open && i < count && status == STATUS_OK; i++)
    status = tfevents_scalar(&j->events, scalars[i].tag, step, scalars[i].value, err);
  return status;
}

enum status journal_start(struct journal *j, const struct learn_request *request, int64_t step,
                          struct error *err) {
  json_t *line = stamp(step ? "resumed" : "settings");
  json_object_set_new(line, "settings", learn_settings_to_json(j->settings));
  json_object_set_new(line, "model", json_string(request->model));
  json_object_set_new(line, "data", json_string(request->data));
  json_object_set_new(line, "threads", json_integer(parallel_threads()));
  json_object_set_new(line, "isa", json_string(kernel_isa()));
  json_object_set_new(line, "step", json_integer(step));
  return record(j, line, err);
}

enum status journal_prior(struct journal *j, double loss, double dense_loss, double seconds,
                          int64_t heldout_tokens, struct error *err) {
  const struct scalar scalars[] = {{"heldout/loss", loss}};
  json_t *line =
      json_pack("{s:s, s:f, s:f, s:f, s:I}", "type", "prior", "loss", loss, "dense_loss",
                dense_loss, "seconds", seconds, "heldout_tokens", (json_int_t)heldout_tokens);
  enum status status = record(j, line, err);
  return status == STATUS_OK ? write_events(j, 0, scalars, 1, err) : status;
}

enum status journal_step(struct journal *j, const struct journal_step *s, struct error *err) {
  const struct step_result *r = s->result;
  const struct learn_settings *set = j->settings;
  const bool tiles = learn_uses_tiles(set);
  const double lr = r->learning_rate * (tiles ? set->lr_tile : set->lr_24);
  const struct relaxation *first = tiles ? &s->tile : &s->two_four;
  json_t *line = json_pack(
      "{s:s, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, "
      "s:f}",
      "type", "step", "step", (json_int_t)s->step, "tokens", tokens_after(j, s->step), "loss",
      r->loss, "density_soft", r->density_soft, "density_hard", s->density_hard, "flips_tile",
      (json_int_t)s->flips_tile, "flips_24", (json_int_t)r->flips_24, "lr", lr, "lr_24",
      r->learning_rate * set->lr_24, "grad_norm", r->gradient_norm, "regularizer", r->regularizer,
      "kappa", first->kappa, "tau", first->tau, "kappa_24", s->two_four.kappa, "tau_24",
      s->two_four.tau, "seconds", s->seconds, "mask_seconds", r->mask_seconds, "elapsed",
      s->elapsed_seconds);
  if (set->distill > 0) json_object_set_new(line, "kl", json_real(r->kl));
  if (set->match > 0) json_object_set_new(line, "distance", json_real(r->distance));
  const struct scalar scalars[] = {
      {"train/loss", r->loss},           {"train/gradient_norm", r->gradient_norm},
      {"train/learning_rate", lr},       {"density/soft", r->density_soft},
      {"density/hard", s->density_hard}, {"flips/tile", (double)s->flips_tile},
      {"flips/24", (double)r->flips_24},
  };
  enum status status = record(j, line, err);
  if (status != STATUS_OK) return status;
  return write_events(j, s->step, scalars, (int)(sizeof scalars / sizeof *scalars), err);
}

enum status journal_heldout(struct journal *j, const struct journal_heldout *h, struct error *err) {
  const struct scalar scalars[] = {{"heldout/loss", h->loss}};
  json_t *line =
      json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:b}", "type", "heldout", "step",
                (json_int_t)h->step, "tokens", tokens_after(j, h->step), "loss", h->loss,
                "prior_loss", h->prior_loss, "dense_loss", h->dense_loss, "density_before",
                h->density_before, "moved_tiles", (json_int_t)h->moved_tiles, "best", h->best);
  enum status status = record(j, line, err);
  return status == STATUS_OK ? write_events(j, h->step, scalars, 1, err) : status;
}

enum status journal_final(struct journal *j, const struct learn_report *r, struct error *err) {
  json_t *line = stamp("final"), *figures = learn_report_figures(r);
  json_object_set_new(line, "worse_than_prior", json_boolean(r->last_loss > r->prior_loss));
  json_object_update(line, figures);
  json_decref(figures);
  return record(j, line, err);
}
