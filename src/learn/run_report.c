/* What a learning run says of itself: its plan and budget to the user, its figures to programs. */
#include "learn/run_report.h"

#include "base/log.h"
#include "learn/memory.h"

/* What a budget of time became. */
void run_say_budget(const struct learn_request *q, const struct learn_report *r) {
  const struct learn_budget *b = &r->budget;
  const struct learn_settings *s = &r->settings;
  if (!(q->budget_seconds > 0)) return;
  if (!b->steps) {
    log_info("%s was started with %lld tokens: --budget does not change them", q->out,
             (long long)s->tokens);
    return;
  }
  log_info(
      "--budget of %.1f minutes: %.0f tokens/s in %d steps of %lld tokens; beside about %.1f "
      "minutes for the prior and %.1f for held-out losses that is %lld tokens, learned from in "
      "%lld steps of %lld, rates %.2g (tiles) and %.2g (2:4), first temperature of the tiles %.2g, "
      "distillation %g, matching %g. --tokens %lld does the same without measuring",
      b->seconds / 60, b->tokens_per_second, b->steps, (long long)b->step_tokens,
      b->prior_seconds / 60, b->heldout_seconds / 60, (long long)s->tokens, (long long)s->steps,
      (long long)(s->batch * s->window), s->lr_tile, s->lr_24, s->tile.tau_first, s->distill,
      s->match, (long long)s->tokens);
}

/* The memory of a dry run, part by part, here and on a card. */
static void say_memory(const struct learn_memory *m) {
  const double GIB = 1 << 30;
  log_info("%-16s %9s %9s", "memory, GiB", memory_place_name[MEMORY_CPU],
           memory_place_name[MEMORY_CUDA]);
  for (int i = 0; i < MEMORY_CHECKPOINT; i++) /* that is neither's */
    log_info("  %-14s %9.2f %9.2f", memory_part_name[i], m->bytes[MEMORY_CPU][i] / GIB,
             m->bytes[MEMORY_CUDA][i] / GIB);
  log_info("  %-14s %9.2f %9.2f", "in all", learn_memory_total(m, MEMORY_CPU) / GIB,
           learn_memory_total(m, MEMORY_CUDA) / GIB);
  const double pinned = learn_memory_total(m, MEMORY_PINNED);
  if (pinned > 0)
    log_info("  and %.2f GiB of the host's memory, pinned, beside the card: %.2f for checkpoints",
             pinned / GIB, m->bytes[MEMORY_PINNED][MEMORY_CHECKPOINT] / GIB);
}

void run_say_plan(const struct learn_report *r) {
  const struct learn_plan *p = &r->plan;
  const struct learn_settings *s = &r->settings;
  const double GIB = 1 << 30;
  log_info("%s mode, sparsity %g: %lld weights in %lld tiles, %lld steps of %lld x %lld tokens",
           learn_mode_name[s->mode], s->sparsity, (long long)p->learned_weights,
           (long long)p->tiles, (long long)s->steps, (long long)s->batch, (long long)s->window);
  if (s->costs)
    log_info(
        "aiming at decoding %.3f times as fast as dense, which tiles of the same value "
        "everywhere would reach at that sparsity",
        s->speedup);
  log_info(
      "memory %.2f GiB, disk %.2f GiB, time about %.1f minutes (prior %.1f, learning %.1f, "
      "held-out loss %.1f) at %.0f GFLOP/s",
      p->memory_bytes / GIB, p->disk_bytes / GIB,
      (p->prior_seconds + p->learn_seconds + p->heldout_seconds) / 60, p->prior_seconds / 60,
      p->learn_seconds / 60, p->heldout_seconds / 60, p->gflops);
  if (r->dry_run) say_memory(&p->memory);
  if (r->dry_run && !learn_is_24(s))
    log_info("--pattern %d:%d is learned on the CPU only", s->keep, s->of);
  if (r->dry_run && (s->match > 0 || s->distill_kind != DISTILL_FORWARD))
    log_info("of what a teacher gives, a card makes --distill by forward only");
}

json_t *learn_report_figures(const struct learn_report *r) {
  json_t *o =
      json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:f, s:f, s:f, s:I}", "steps",
                (json_int_t)r->step, "best_step", (json_int_t)r->best_step, "dense_loss",
                r->dense_loss, "prior_loss", r->prior_loss, "best_loss", r->best_loss, "last_loss",
                r->last_loss, "last_loss_before", r->last_loss_before, "density", r->density,
                "density_before", r->density_before, "moved_tiles", (json_int_t)r->moved_tiles,
                "seconds", r->seconds, "prior_seconds", r->prior_seconds, "tokens_per_second",
                r->tokens_per_second, "peak_bytes", (json_int_t)r->peak_bytes);
  INVARIANT(o);
  if (r->settings.costs) json_object_set_new(o, "speedup", json_real(r->speedup));
  return o;
}
