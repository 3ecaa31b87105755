/* A fuzz target for a parser of files: the input becomes a file in memory, with a path that the
 * parser opens like any other. Define FUZZ_WALK before including this. */
#ifndef TSR_TESTS_FUZZ_FILE_H
#define TSR_TESTS_FUZZ_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int fd = -1;
  static char path[32];
  if (fd < 0) {
    fd = memfd_create("fuzz", 0);
    INVARIANT(fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  INVARIANT(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
  struct error err = {0};
  enum status status = FUZZ_WALK(NULL, path, &err);
  INVARIANT(status == STATUS_OK || strlen(err.text) >= 10);
  return 0;
}

#endif
