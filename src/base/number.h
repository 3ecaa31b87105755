/* Decimal numbers inside strings, read strictly: scanf accepts signs and white space, and says
 * nothing of a number too large for its type. */
#ifndef TSR_BASE_NUMBER_H
#define TSR_BASE_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/* Takes the digits at *at and moves *at behind them. False, with nothing moved or written, when
 * there is no digit or the number is above `most`. */
bool number_take(const char **at, int64_t most, int64_t *value);

#endif
