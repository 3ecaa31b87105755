/* How strips are dealt out: see strip_deal.h. No state. */
#include "kernel/strip_deal.h"

#include "base/parallel.h"

enum { LONG_PER_THREAD = 2, SHORT_PER_THREAD = 32 };

static int64_t pairs_of(int64_t strips) { return (strips + 1) / 2; }

struct strip_deal strip_deal_make(const int64_t *strips, int count) {
  const int64_t threads = parallel_threads();
  struct strip_deal d = {.count = count};
  for (int i = 0; i < count; i++) {
    d.strips[i] = strips[i];
    d.pairs += pairs_of(strips[i]);
  }
  d.of_long = 3 * d.pairs / (4 * LONG_PER_THREAD * threads);
  d.longs = d.of_long ? LONG_PER_THREAD * threads : 0;
  d.of_short = d.pairs / (SHORT_PER_THREAD * threads);
  if (!d.of_short) d.of_short = 1;
  const int64_t left = d.pairs - d.longs * d.of_long;
  d.items = d.longs + (left + d.of_short - 1) / d.of_short;
  return d;
}

/* The pairs [*first, return value) of an item. */
static int64_t pairs_of_item(const struct strip_deal *d, int64_t item, int64_t *first) {
  const int64_t size = item < d->longs ? d->of_long : d->of_short, before = d->longs * d->of_long;
  *first = item < d->longs ? item * size : before + (item - d->longs) * size;
  return *first + size < d->pairs ? *first + size : d->pairs;
}

void strip_deal_item(const struct strip_deal *d, int64_t item, strip_part_fn *part,
                     const void *job) {
  int64_t pair, end = pairs_of_item(d, item, &pair), before = 0;
  for (int i = 0; i < d->count && pair < end; i++) {
    const int64_t here = before + pairs_of(d->strips[i]), stop = here < end ? here : end;
    if (pair < stop) {
      const int64_t first = 2 * (pair - before), last = 2 * (stop - before);
      part(job, i, first, (last < d->strips[i] ? last : d->strips[i]) - first);
      pair = stop;
    }
    before = here;
  }
}
