/* What a run writes about itself while it goes on: the record (docs/RECORD.md) and, when asked for,
 * TensorBoard event files. */
#ifndef TSR_LEARN_JOURNAL_H
#define TSR_LEARN_JOURNAL_H

#include "io/tfevents.h"
#include "learn/run.h"
#include "learn/rundir.h"

struct journal {
  const struct run_directory *directory;
  const struct learn_settings *settings;
  bool events_open;
  struct tfevents events;
};

/* Opens the event file of a run that is at `step` when `events` is set. */
enum status journal_open(struct journal *j, const struct run_directory *directory,
                         const struct learn_settings *settings, bool events, int64_t step,
                         struct error *err);
void journal_close(struct journal *j);

/* The first line of a process: type "settings" for a new run, "resumed" for one that goes on. */
enum status journal_start(struct journal *j, const struct learn_request *request, int64_t step,
                          struct error *err);
enum status journal_prior(struct journal *j, double loss, double dense_loss, double seconds,
                          int64_t heldout_tokens, struct error *err);

struct journal_step {
  const struct step_result *result;
  int64_t step; /* done, this one included */
  double density_hard;
  int64_t flips_tile;
  struct relaxation tile, two_four;
  double seconds, elapsed_seconds;
};
enum status journal_step(struct journal *j, const struct journal_step *s, struct error *err);

struct journal_heldout {
  int64_t step;
  double loss, prior_loss, dense_loss, density_before;
  int64_t moved_tiles;
  bool best;
};
enum status journal_heldout(struct journal *j, const struct journal_heldout *h, struct error *err);
enum status journal_final(struct journal *j, const struct learn_report *report, struct error *err);

#endif
