/* Options that take several numbers: given several times, or with commas, or both. */
#ifndef TSR_CLI_NUMBERS_H
#define TSR_CLI_NUMBERS_H

#include "cli/options.h"

/* The numbers of `list`, or of `usual` where none was given: out (most), *count of them. "none"
 * alone stands for no numbers. STATUS_USAGE, naming `option`, for what is no number, lies outside
 * [low, high], or is one too many. */
enum status numbers_integers(const struct text_list *list, const char *usual, const char *option,
                             int64_t low, int64_t high, int64_t *out, int most, int *count,
                             struct error *err);
enum status numbers_reals(const struct text_list *list, const char *usual, const char *option,
                          double low, double high, double *out, int most, int *count,
                          struct error *err);

/* A time such as 90s, 10m or 1.5h, in seconds; a number alone is seconds. STATUS_USAGE, naming
 * `option`, for anything else. */
enum status numbers_time(const char *text, const char *option, double *seconds, struct error *err);

#endif
