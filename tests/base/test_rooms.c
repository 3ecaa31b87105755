/* The rooms: docs/TOUR.md says which room may include which; this holds the sources against it.
 *
 * A line of the tour's table reads "src/io/   what it is : base tensor"; a room may always include
 * itself, and "everything" allows all. */
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "support/support.h"

enum { ROOMS_MAX = 40 };

static struct room {
  char name[32];
  char allowed[256]; /* " base tensor " */
} rooms[ROOMS_MAX];
static int room_count;

static const char *source_path(const char *name) {
  static char path[4096];
  const char *root = getenv("TSR_SOURCE");
  snprintf(path, sizeof path, "%s/%s", root ? root : ".", name);
  return path;
}

static void read_table(void) {
  char *text;
  size_t bytes;
  struct error err;
  must(file_read(source_path("docs/TOUR.md"), 1 << 20, &text, &bytes, &err), err);
  char *save = NULL;
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    char *colon = strrchr(line, ':');
    if (strncmp(line, "src/", 4)) continue;
    assert_true(room_count < ROOMS_MAX);
    struct room *room = &rooms[room_count++];
    snprintf(room->name, sizeof room->name, "%.*s", (int)strcspn(line + 4, "/"), line + 4);
    snprintf(room->allowed, sizeof room->allowed, "%s ", colon ? colon + 1 : "");
  }
  free(text);
}

static bool may_include(const struct room *room, const char *other) {
  char word[40];
  snprintf(word, sizeof word, " %s ", other);
  return !strcmp(room->name, other) || strstr(room->allowed, word) ||
         strstr(room->allowed, " everything ");
}

/* Number of includes in the file that the table does not allow, each printed. */
static int count_trespasses(const struct room *room, const char *path) {
  FILE *file = fopen(path, "r");
  assert_non_null(file);
  char line[1024], other[32];
  int found = 0;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "#include \"%31[a-z_]/", other) != 1 || !strchr(line, '/')) continue;
    if (may_include(room, other)) continue;
    printf("%s includes room %s, which docs/TOUR.md does not allow\n", path, other);
    found++;
  }
  fclose(file);
  return found;
}

static void includes_keep_to_the_tour(void **state) {
  (void)state;
  read_table();
  assert_true(room_count > 5);
  int found = 0, files = 0;
  for (int r = 0; r < room_count; r++) {
    static const char *const patterns[] = {"src/%s/*.[ch]", "src/%s/*/*.[ch]", "src/%s/*/*.cu"};
    for (int p = 0; p < 3; p++) {
      char pattern[128];
      glob_t matches;
      snprintf(pattern, sizeof pattern, patterns[p], rooms[r].name);
      if (glob(source_path(pattern), 0, NULL, &matches)) continue;
      for (size_t i = 0; i < matches.gl_pathc; i++, files++)
        found += count_trespasses(&rooms[r], matches.gl_pathv[i]);
      globfree(&matches);
    }
  }
  assert_true(files > 20);
  assert_int_equal(found, 0);
}

/* CUDA's headers are seen in kernel/cuda alone. */
static void cuda_keeps_to_its_room(void **state) {
  (void)state;
  char output[4096];
  run_command(output, sizeof output, "grep -rlE '#include <(cuda|cublas|cusparse)' %s",
              source_path("src"));
  char *save = NULL;
  for (char *line = strtok_r(output, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
    if (!strstr(line, "/src/kernel/cuda/")) fail_msg("%s includes a header of CUDA", line);
}

static void every_room_is_in_the_tour(void **state) {
  (void)state;
  glob_t matches;
  assert_int_equal(glob(source_path("src/*"), 0, NULL, &matches), 0);
  for (size_t i = 0; i < matches.gl_pathc; i++) {
    const char *name = strrchr(matches.gl_pathv[i], '/') + 1;
    bool known = false;
    for (int r = 0; r < room_count; r++) known |= !strcmp(rooms[r].name, name);
    if (!known) fail_msg("src/%s is not in docs/TOUR.md", name);
  }
  globfree(&matches);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(includes_keep_to_the_tour),
      cmocka_unit_test(every_room_is_in_the_tour),
      cmocka_unit_test(cuda_keeps_to_its_room),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
