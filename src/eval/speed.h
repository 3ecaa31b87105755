/* How fast models decode and read prompts, and how fast this machine reads the same bytes.
 *
 * Decoding one token reads every weight once, so its speed is bounded by bytes over bandwidth; both
 * are measured here side by side. Everything is run in turn, round after round, so that what else
 * the machine does meets all alike, and the median over rounds is taken. */
#ifndef TSR_EVAL_SPEED_H
#define TSR_EVAL_SPEED_H

#include "model/model.h"

enum speed_phase { SPEED_DECODE, SPEED_PREFILL };

struct speed_case {
  enum speed_phase phase;
  int64_t batch; /* sequences for SPEED_DECODE (1), prompt length for SPEED_PREFILL */
};

struct speed_settings {
  const struct speed_case *cases;
  int case_count;
  int rounds;      /* at least 1; a warm-up comes on top */
  double decode_s; /* about how long one decode run takes */
};

struct speed_figure {
  double tokens_per_s;    /* median over rounds */
  double bytes_per_token; /* of weights */
  double read_share;      /* bytes a second over the rate of the plain read */
};

/* Bytes of weights that one pass over a model reads: prunable linears, biases left out, and the
 * head. */
size_t speed_weight_bytes(const struct model *model);

/* figures (model_count, case_count); read_bytes_per_s (model_count): the plain read of the same
 * weights, median. STATUS_USAGE for a batch that cannot be run, STATUS_INTERRUPTED on a signal. */
enum status speed_measure(const struct model *const *models, int model_count,
                          const struct speed_settings *settings, struct speed_figure *figures,
                          double *read_bytes_per_s, struct error *err);

/* Median of `count` values, which are sorted in place. */
double speed_median(double *values, int count);

#endif
