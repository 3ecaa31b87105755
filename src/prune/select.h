/* Which of many scores are the smallest: exact counts, ties by position. */
#ifndef TSR_PRUNE_SELECT_H
#define TSR_PRUNE_SELECT_H

#include <stdint.h>

/* Scores are >= 0 or NaN; NaN counts as the largest. Where the `drop` smallest of scores (count)
 * end: an element goes when its key (select_key) lies below `below`, or equals it and is among the
 * first `ties` such elements. */
struct select_cut {
  uint32_t below;
  int64_t ties;
};
struct select_cut select_smallest(const float *scores, int64_t count, int64_t drop);

/* Order-preserving integer of a score. */
static inline uint32_t select_key(float score) {
  union {
    float f;
    uint32_t u;
  } bits = {.f = score};
  return score != score ? UINT32_MAX : bits.u & 0x7fffffffu;
}
/* Whether an element goes; counts down *ties, so elements must come in order. */
static inline int select_drops(const struct select_cut *cut, float score, int64_t *ties) {
  const uint32_t key = select_key(score);
  if (key != cut->below) return key < cut->below;
  if (*ties == 0) return 0;
  --*ties;
  return 1;
}

/* How many of the elements [0, end) go when a share of all of them does, minus how many of
 * [0, begin): spreads an exact count over parts without drift. */
int64_t select_share(double share, int64_t begin, int64_t end);

#endif
