/* Shared test helpers: see support.h. */
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"

/* Paths live as long as the process; the list keeps them in the eye of leak checkers. */
struct kept {
  struct kept *next;
  char path[];
};
static struct kept *all_kept;

const char *path_kept(const char *folder, const char *name) {
  struct kept *k = malloc(sizeof *k + strlen(folder) + strlen(name) + 2);
  assert_non_null(k);
  sprintf(k->path, "%s/%s", folder, name);
  k->next = all_kept;
  all_kept = k;
  return k->path;
}

const char *shared_data(const char *name) {
  const char *root = getenv("TSR_SHARED");
  const char *path = path_kept(path_kept(root ? root : "../shared", "data"), name);
  if (access(path, R_OK) == 0) return path;
  printf("skip: %s is not there\n", path);
  return NULL;
}

const char *golden(const char *name) {
  const char *root = getenv("TSR_SOURCE");
  return path_kept(path_kept(root ? root : ".", "tests/golden"), name);
}

const char *program(void) {
  const char *path = getenv("TSR_PROGRAM");
  return path ? path : "./tessera";
}

static char scratch_folder[64];
static pid_t scratch_owner; /* a forked child that exits leaves the folder to its parent */

static void remove_scratch(void) {
  char command[96];
  if (getpid() != scratch_owner) return;
  snprintf(command, sizeof command, "rm -rf '%s'", scratch_folder);
  if (system(command)) fprintf(stderr, "could not remove %s\n", scratch_folder);
}

const char *scratch(void) {
  if (!*scratch_folder) {
    strcpy(scratch_folder, "/tmp/tessera-test-XXXXXX");
    assert_non_null(mkdtemp(scratch_folder));
    scratch_owner = getpid();
    atexit(remove_scratch);
  }
  return scratch_folder;
}

const char *scratch_path(const char *name) { return path_kept(scratch(), name); }

double largest_difference(const float *a, const float *b, size_t count) {
  double most = 0;
  for (size_t i = 0; i < count; i++) {
    double d = fabs((double)a[i] - b[i]);
    if (!(d <= most)) most = d; /* a NaN wins */
  }
  return most;
}

double relative_error(const float *a, const float *b, size_t count) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < count; i++) {
    difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    size += (double)b[i] * b[i];
  }
  return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

void fill_normal(float *out, size_t count, uint64_t seed, float scale) {
  struct rng rng = rng_make(seed, 77);
  for (size_t i = 0; i < count; i++) out[i] = scale * (float)rng_normal(&rng);
}

int run_command(char *output, size_t output_bytes, const char *format, ...) {
  char command[4096];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(command, sizeof command - 6, format, args);
  va_end(args);
  assert_true(n >= 0 && (size_t)n < sizeof command - 6);
  strcat(command, " 2>&1");
  FILE *pipe = popen(command, "r");
  assert_non_null(pipe);
  size_t used = 0;
  char line[4096];
  while (fgets(line, sizeof line, pipe)) {
    size_t length = strlen(line);
    if (output && used + length + 1 < output_bytes) {
      memcpy(output + used, line, length);
      used += length;
    }
  }
  if (output && output_bytes) output[used] = 0;
  int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
