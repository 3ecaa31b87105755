/* Decimal numbers inside strings: see number.h. */
#include "base/number.h"

bool number_take(const char **at, int64_t most, int64_t *value) {
  const char *digit = *at;
  int64_t sum = 0;
  for (; *digit >= '0' && *digit <= '9'; digit++) {
    int units = *digit - '0';
    if (units > most || sum > (most - units) / 10) return false;
    sum = sum * 10 + units;
  }
  if (digit == *at) return false;
  *at = digit;
  *value = sum;
  return true;
}
