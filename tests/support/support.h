/* What every test program shares: cmocka, paths, scratch folders, and comparisons. */
#ifndef TSR_TESTS_SUPPORT_H
#define TSR_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "base/error.h"

/* Fails the test with the error's sentence when `call` is not STATUS_OK. */
#define must(call, err)                                             \
  do {                                                              \
    if ((call) != STATUS_OK) fail_msg("%s: %s", #call, (err).text); \
  } while (0)

/* Path below the shared evaluation data, or NULL when it is absent: then the test says so aloud
 * (a line "skip: ...") and must call skip(). The string lives as long as the process. */
const char *shared_data(const char *name);
/* Path below tests/golden. */
const char *golden(const char *name);
/* The tessera program under test. */
const char *program(void);
/* An empty scratch folder, removed at exit. */
const char *scratch(void);
/* folder/name; the string lives as long as the process, as do all these. */
const char *path_kept(const char *folder, const char *name);
/* scratch()/name */
const char *scratch_path(const char *name);

/* Largest |a - b| and the relative Frobenius error |a - b| / |b|. */
double largest_difference(const float *a, const float *b, size_t count);
double relative_error(const float *a, const float *b, size_t count);
/* Fills with reproducible normals times `scale`. */
void fill_normal(float *out, size_t count, uint64_t seed, float scale);
/* Runs a shell command line; returns its exit status, output (stdout + stderr) into `output`. */
int run_command(char *output, size_t output_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
