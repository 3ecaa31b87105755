/* Radix selection: the bits of a non-negative float order as the float does, so the threshold is
 * found by three histograms (11, 11 and 10 bits) without sorting or moving anything. */
#include "prune/select.h"

#include <math.h>
#include <string.h>

enum { DIGIT_MAX = 2048 };

struct select_cut select_smallest(const float *scores, int64_t count, int64_t drop) {
  static const int shift[3] = {21, 10, 0}, bits[3] = {11, 11, 10};
  uint32_t prefix = 0, mask = 0;
  int64_t rank = drop; /* elements still to be dropped among those that share the prefix */
  if (drop <= 0) return (struct select_cut){0, 0};
  if (drop >= count) return (struct select_cut){UINT32_MAX, count};
  for (int pass = 0; pass < 3; pass++) {
    int64_t histogram[DIGIT_MAX];
    const uint32_t digits = (1u << bits[pass]) - 1;
    memset(histogram, 0, sizeof histogram);
    for (int64_t i = 0; i < count; i++) {
      const uint32_t key = select_key(scores[i]);
      if ((key & mask) == prefix) histogram[key >> shift[pass] & digits]++;
    }
    uint32_t digit = 0;
    while (histogram[digit] < rank) rank -= histogram[digit++];
    prefix |= digit << shift[pass];
    mask |= digits << shift[pass];
  }
  return (struct select_cut){prefix, rank};
}

int64_t select_share(double share, int64_t begin, int64_t end) {
  return llround(share * (double)end) - llround(share * (double)begin);
}
