/* Axes: see axis.h. Steps are 1, 2 or 5 times a power of ten. */
#include "report/axis.h"

#include <math.h>
#include <stdio.h>

#include "base/error.h"

/* The smallest of 1, 2, 5 times 10^n that is at least `least`. */
static double round_step(double least) {
  double power = pow(10, floor(log10(least)));
  double digit = least / power;
  if (digit <= 1.0000001) return power;
  if (digit <= 2.0000001) return 2 * power;
  return digit <= 5.0000001 ? 5 * power : 10 * power;
}

static void linear_ticks(struct axis *a, int wanted, bool widen) {
  double step = round_step((a->high - a->low) / wanted);
  double first = widen ? floor(a->low / step + 1e-9) : ceil(a->low / step - 1e-9);
  double last = widen ? ceil(a->high / step - 1e-9) : floor(a->high / step + 1e-9);
  while (last - first + 1 > AXIS_TICKS_MAX) last--;
  if (widen) {
    a->low = first * step;
    a->high = last * step;
  }
  a->tick_count = 0;
  const int steps = (int)(last - first);
  for (int i = 0; i <= steps; i++) a->ticks[a->tick_count++] = (first + i) * step + 0.0;
  a->decimals = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
}

/* Ticks at `digits` times every `stride`-th power of ten. */
static int log_ticks(struct axis *a, const double *digits, int count, int stride) {
  a->tick_count = 0;
  int first = (int)floor(log10(a->low)), last = (int)ceil(log10(a->high));
  for (int power = first; power <= last; power++)
    for (int d = 0; d < count; d++) {
      double tick = digits[d] * pow(10, power);
      if (tick < a->low * 0.999999 || tick > a->high * 1.000001 || (power - first) % stride)
        continue;
      if (a->tick_count == AXIS_TICKS_MAX) return AXIS_TICKS_MAX + 1;
      a->ticks[a->tick_count++] = tick;
    }
  return a->tick_count;
}

static void make_log(struct axis *a, int wanted) {
  static const double digits[] = {1, 1.5, 2, 3, 5, 7};
  static const double some[] = {1, 2, 5};
  double pad = pow(a->high / a->low, 0.06);
  if (pad < 1.02) pad = 1.02;
  a->low /= pad;
  a->high *= pad;
  if (a->high / a->low < 3) { /* too short for decades: round values, placed by their logarithm */
    linear_ticks(a, wanted, false);
    return;
  }
  a->decimals = -1;
  if (log_ticks(a, digits, 6, 1) <= wanted + 2) return;
  if (log_ticks(a, some, 3, 1) <= wanted + 2) return;
  for (int stride = 1; log_ticks(a, digits, 1, stride) > wanted + 2; stride++) {
  }
}

struct axis axis_make(double low, double high, enum axis_ends ends, int wanted) {
  bool log = ends == AXIS_LOG;
  INVARIANT(axis_can_show(log, low) && axis_can_show(log, high) && low <= high);
  struct axis a = {.log = log, .low = low, .high = high, .span = 1};
  if (log) {
    make_log(&a, wanted);
    return a;
  }
  if (!(high - low > 1e-9 * fabs(high))) { /* one value: give it room */
    double room = fabs(high) > 0 ? fabs(high) * 0.1 : 1;
    a.low -= room;
    a.high += room;
  }
  linear_ticks(&a, wanted, ends == AXIS_TICKS);
  return a;
}

void axis_place(struct axis *axis, double start, double span) {
  axis->start = start;
  axis->span = span;
}

bool axis_can_show(bool log, double value) { return fabs(value) < 1e15 && (!log || value > 1e-15); }

double axis_at(const struct axis *axis, double value) {
  double share = axis->log ? log(value / axis->low) / log(axis->high / axis->low)
                           : (value - axis->low) / (axis->high - axis->low);
  return axis->start + share * axis->span;
}

void axis_format(const struct axis *axis, double value, char out[32]) {
  double size = fabs(value);
  bool free_form = axis->decimals < 0 || axis->decimals > 6;
  if (size >= 1e15 || (free_form && size < 1e-3 && size > 0))
    snprintf(out, 32, "%.0e", value);
  else if (size >= 1e6)
    snprintf(out, 32, "%.6gM", value / 1e6);
  else if (size >= 1e4)
    snprintf(out, 32, "%.6gk", value / 1e3);
  else if (free_form)
    snprintf(out, 32, "%.6g", value);
  else
    snprintf(out, 32, "%.*f", axis->decimals, value);
}
