/* How fast models decode and read prompts, beside how fast this machine reads the same bytes.
 *
 * Decoding one token reads every weight once, so its speed is bounded by bytes over bandwidth; both
 * are measured here side by side. Everything is run in turn, round after round, so that what else
 * the machine does meets all alike; figures are medians over rounds, and comparisons say whether
 * the rounds can tell two contestants apart. */
#ifndef TSR_EVAL_SPEED_H
#define TSR_EVAL_SPEED_H

#include "eval/peer.h"
#include "model/model.h"

enum speed_phase { SPEED_DECODE, SPEED_PREFILL, SPEED_TEXT };

struct speed_case {
  enum speed_phase phase;
  int64_t batch; /* sequences, or the length of the one prompt for SPEED_PREFILL */
  /* Of SPEED_TEXT: `batch` prompts of so many tokens are read and each is continued by `tokens`;
   * its rate is that of the tokens generated, over the time of everything. */
  int64_t prompt, tokens;
};

/* Decoding happens between these positions, over and over: short texts, so that it is the weights
 * that are read, and keys and values are few. */
enum { SPEED_CONTEXT = 32, SPEED_CONTEXT_MOST = 64, SPEED_ROUNDS_MAX = 1000 };

/* Who runs: this program, or a peer that has loaded the same weights. */
struct speed_entry {
  const struct model *model; /* on a card: placed to run; the likeliest token is drawn there */
  struct peer *peer;         /* or NULL */
};

struct speed_settings {
  const struct speed_case *cases;
  int case_count;
  int rounds;               /* at least 1; a short warm-up comes on top */
  enum precision precision; /* of prompts, as in model_session_set_precision */
  enum dtype kv;            /* of keys and values, as in struct session_settings */
  bool record;              /* as model_session_record */
  double seconds;           /* about how long one run takes; a prompt is read once at least */
};

struct speed_figure {
  double tokens_per_s;    /* median over rounds, of all sequences together */
  double bytes_per_token; /* one pass over the weights, shared by the batch or the prompt */
  double read_share;      /* bytes a second over the rate of the plain read; NAN for a peer */
};

struct speed_result {
  int entry_count, case_count, rounds;
  struct speed_figure *figures; /* (entries, cases) */
  double *rates;                /* (entries, cases, rounds) tokens a second */
  double *read_bytes_per_s;     /* (entries) plain read of the same weights, on a card of as much
                                   memory while it is copied; NAN for a peer */
};

/* STATUS_USAGE for a batch that cannot be run, STATUS_INTERRUPTED on a signal. */
enum status speed_measure(struct speed_result *out, const struct speed_entry *entries,
                          int entry_count, const struct speed_settings *settings,
                          struct error *err);
void speed_result_free(struct speed_result *result);
const struct speed_figure *speed_figure_of(const struct speed_result *result, int entry, int which);
const double *speed_rates_of(const struct speed_result *result, int entry,
                             int which); /* (rounds) */

/* One entry over another in the same case. */
struct speed_ratio {
  double ratio;     /* of the medians */
  double low, high; /* the middle half of the ratios within rounds */
  bool noise;       /* three rounds or more, and that middle half holds 1: no difference is shown */
};
struct speed_ratio speed_compare(const struct speed_result *result, int entry, int other,
                                 int which);

/* Bytes of weights that one pass over a model reads: prunable linears, biases left out, and the
 * head. */
size_t speed_weight_bytes(const struct model *model);
/* The quantile `share` (0 to 1) of `count` values, which are sorted in place: linear between
 * neighbours, so that 0.5 is the median. */
double speed_quantile(double *values, int count, double share);

#endif
