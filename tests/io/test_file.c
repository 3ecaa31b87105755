/* Outputs appear whole or not at all, whatever happens to the writer; what stands in the way is
 * said in a sentence. */
#include "io/file.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/support.h"

/* A fresh folder below the scratch folder. */
static const char *fresh(const char *name) {
  const char *path = scratch_path(name);
  assert_int_equal(mkdir(path, 0777), 0);
  return path;
}

/* How many entries a folder has, hidden ones included. */
static int entries(const char *folder) {
  char out[64];
  assert_int_equal(run_command(out, sizeof out, "ls -A '%s' | wc -l", folder), 0);
  return atoi(out);
}

static void assert_content(const char *path, const char *expected) {
  struct error err = {0};
  char *data;
  size_t size;
  must(file_read(path, 1 << 20, &data, &size, &err), err);
  assert_string_equal(data, expected);
  free(data);
}

static void commit_replaces_and_abort_keeps(void **state) {
  (void)state;
  struct error err = {0};
  const char *folder = fresh("commit"), *path = path_kept(folder, "out.bin");
  must(file_write_all(path, "old", 3, &err), err);
  struct file_writer w;
  must(file_writer_open(&w, path, &err), err);
  must(file_writer_put(&w, "new", 3, &err), err);
  assert_content(path, "old");
  file_writer_abort(&w);
  file_writer_abort(&w);
  assert_content(path, "old");
  assert_int_equal(entries(folder), 1);
  must(file_writer_open(&w, path, &err), err);
  must(file_writer_put(&w, "new", 3, &err), err);
  must(file_writer_commit(&w, &err), err);
  file_writer_abort(&w);
  assert_content(path, "new");
  assert_int_equal(entries(folder), 1);
  struct file_writer zeroed = {0};
  file_writer_abort(&zeroed);
}

static void large_and_small_pieces_arrive_in_order(void **state) {
  (void)state;
  struct error err = {0};
  const char *path = path_kept(fresh("pieces"), "out.bin");
  size_t pieces[] = {1, 1 << 20, 5, (1 << 20) - 6, 3 << 20, 0, 7}, total = 0;
  uint8_t *bytes = malloc(8 << 20);
  for (size_t i = 0; i < 8 << 20; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 24);
  struct file_writer w;
  must(file_writer_open(&w, path, &err), err);
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
    must(file_writer_put(&w, bytes + total, pieces[i], &err), err);
    total += pieces[i];
    assert_int_equal(w.written_bytes, total);
  }
  must(file_writer_commit(&w, &err), err);
  struct file_map map;
  must(file_map_open(&map, path, &err), err);
  assert_int_equal(map.size_bytes, total);
  assert_memory_equal(map.data, bytes, total);
  file_map_close(&map);
  free(bytes);
}

/* Runs `child` in a process of its own and waits for it; returns waitpid's status. */
static int in_child(void (*child)(const char *), const char *path) {
  fflush(stdout);
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    child(path);
    _exit(99);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return status;
}

static void write_and_die(const char *path) {
  struct file_writer w;
  if (file_writer_open(&w, path, NULL) == STATUS_OK && !file_writer_put(&w, "half", 4, NULL))
    kill(getpid(), SIGKILL);
}

static void make_directory_and_die(const char *path) {
  struct dir_writer w;
  if (dir_writer_open(&w, path, false, NULL) != STATUS_OK) return;
  const char *inside = path_kept(w.temporary, "weights");
  if (file_write_all(inside, "x", 1, NULL) == STATUS_OK) kill(getpid(), SIGKILL);
}

static void what_a_kill_left_is_removed_by_the_next_writer(void **state) {
  (void)state;
  struct error err = {0};
  const char *folder = fresh("kill"), *path = path_kept(folder, "out.bin");
  must(file_write_all(path, "old", 3, &err), err);
  struct file_writer living;
  must(file_writer_open(&living, path, &err), err);
  assert_true(WIFSIGNALED(in_child(write_and_die, path)));
  assert_content(path, "old");
  assert_int_equal(entries(folder), 3); /* out.bin, the living temporary, the dead one */
  must(file_write_all(path, "second", 6, &err), err);
  assert_int_equal(entries(folder), 2);
  must(file_writer_put(&living, "living", 6, &err), err);
  must(file_writer_commit(&living, &err), err);
  assert_content(path, "living");
  assert_int_equal(entries(folder), 1);

  const char *output = path_kept(folder, "model");
  assert_true(WIFSIGNALED(in_child(make_directory_and_die, output)));
  assert_int_equal(entries(folder), 2);
  struct dir_writer w;
  must(dir_writer_open(&w, output, false, &err), err);
  assert_int_equal(entries(folder), 2);
  must(dir_writer_commit(&w, &err), err);
  assert_int_equal(entries(folder), 2);
  assert_int_equal(entries(output), 0);
}

static void write_and_exit(const char *path) {
  struct file_writer w;
  struct dir_writer d;
  if (file_writer_open(&w, path, NULL) || dir_writer_open(&d, "model", false, NULL)) return;
  const char *inside = path_kept(d.temporary, "weights");
  if (file_write_all(inside, "x", 1, NULL) || chdir("/")) return;
  exit(0); /* without abort: the exit handler is what is tested */
}

static void an_exit_leaves_nothing(void **state) {
  (void)state;
  const char *folder = fresh("exit");
  char before[1024];
  assert_non_null(getcwd(before, sizeof before));
  assert_int_equal(chdir(folder), 0);
  assert_int_equal(in_child(write_and_exit, "out.bin"), 0);
  assert_int_equal(chdir(before), 0);
  assert_int_equal(entries(folder), 0);
}

static void a_child_leaves_its_parents_files_alone(void **state) {
  (void)state;
  struct error err = {0};
  const char *path = path_kept(fresh("child"), "out.bin");
  struct file_writer w;
  must(file_writer_open(&w, path, &err), err);
  char *name = strdup(w.temporary);
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) exit(0);
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(file_exists(name));
  free(name);
  must(file_writer_commit(&w, &err), err);
}

static void write_past_the_limit(const char *path) {
  struct rlimit limit = {1 << 20, 1 << 20};
  struct error err = {0};
  static uint8_t block[3 << 20];
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &limit);
  bool said = file_write_all(path, block, sizeof block, &err) == STATUS_FAILED &&
              strstr(err.text, path) && strstr(err.text, "nothing was replaced");
  _exit(said ? 0 : 1);
}

static void a_full_disk_keeps_the_old_file(void **state) {
  (void)state;
  struct error err = {0};
  const char *folder = fresh("full"), *path = path_kept(folder, "out.bin");
  must(file_write_all(path, "old", 3, &err), err);
  assert_int_equal(in_child(write_past_the_limit, path), 0);
  assert_content(path, "old");
  assert_int_equal(entries(folder), 1);

  char out[2048], program_path[1024] = "";
  assert_true(readlink("/proc/self/exe", program_path, sizeof program_path - 1) > 0);
  int status = run_command(out, sizeof out,
                           "unshare -rm sh -c 'mount -t tmpfs -o size=64k none %s && %s --fill "
                           "%s/big'",
                           folder, program_path, folder);
  if (status != 0)
    printf("skip: no small file system could be mounted to fill it up\n");
  else
    assert_non_null(strstr(out, "the disk is full"));
}

static void obstacles_are_named(void **state) {
  (void)state;
  struct error err = {0};
  struct file_writer w;
  const char *folder = fresh("obstacles");
  assert_int_equal(file_writer_open(&w, path_kept(folder, "none/out"), &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "does not exist"));
  file_writer_abort(&w);
  assert_int_equal(file_writer_open(&w, folder, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "directory"));
  assert_int_equal(file_writer_open(&w, "/dev/null", &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "device"));
  if (file_exists("/sys/kernel")) {
    assert_int_equal(file_writer_open(&w, "/sys/out", &err), STATUS_FAILED);
    assert_non_null(strstr(err.text, "cannot be written to"));
  } else {
    printf("skip: no sysfs, a file system that takes no new files even from root\n");
  }
  struct file_map map;
  assert_int_equal(file_map_open(&map, path_kept(folder, "absent"), &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "absent"));
  assert_int_equal(file_map_open(&map, folder, &err), STATUS_REFUSED);
  char *data;
  must(file_write_all(path_kept(folder, "ten"), "0123456789", 10, &err), err);
  must(file_read(path_kept(folder, "ten"), 10, &data, NULL, &err), err);
  free(data);
  assert_int_equal(file_read(path_kept(folder, "ten"), 9, &data, NULL, &err), STATUS_REFUSED);
  must(file_write_all(path_kept(folder, "empty"), NULL, 0, &err), err);
  must(file_map_open(&map, path_kept(folder, "empty"), &err), err);
  assert_true(map.data && map.size_bytes == 0);
  file_map_close(&map);
}

static void a_link_is_followed(void **state) {
  (void)state;
  struct error err = {0};
  const char *folder = fresh("link"), *elsewhere = fresh("elsewhere");
  assert_int_equal(symlink(path_kept(elsewhere, "real"), path_kept(folder, "link")), 0);
  must(file_write_all(path_kept(elsewhere, "real"), "old", 3, &err), err);
  must(file_write_all(path_kept(folder, "link"), "new", 3, &err), err);
  assert_content(path_kept(elsewhere, "real"), "new");
  struct stat st;
  assert_int_equal(lstat(path_kept(folder, "link"), &st), 0);
  assert_true(S_ISLNK(st.st_mode));
}

static void long_names_work(void **state) {
  (void)state;
  struct error err = {0};
  char name[252];
  memset(name, 'n', sizeof name);
  name[251] = 0;
  const char *folder = fresh("long");
  must(file_write_all(path_kept(folder, name), "x", 1, &err), err);
  assert_int_equal(entries(folder), 1);
}

static void write_model(const char *path, bool replace, const char *content) {
  struct error err = {0};
  struct dir_writer w;
  must(dir_writer_open(&w, path, replace, &err), err);
  must(file_write_all(path_kept(w.temporary, content), content, strlen(content), &err), err);
  must(dir_writer_commit(&w, &err), err);
  dir_writer_abort(&w);
}

static void directories_appear_whole(void **state) {
  (void)state;
  struct error err = {0};
  const char *folder = fresh("directories"), *path = path_kept(folder, "model");
  struct dir_writer w;
  must(dir_writer_open(&w, path, false, &err), err);
  assert_false(file_exists(path));
  dir_writer_abort(&w);
  dir_writer_abort(&w);
  assert_int_equal(entries(folder), 0);
  write_model(path_kept(folder, "model/"), false, "first");
  assert_content(path_kept(path, "first"), "first");
  assert_int_equal(dir_writer_open(&w, path, false, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "--force"));
  write_model(path, true, "second");
  assert_content(path_kept(path, "second"), "second");
  assert_false(file_exists(path_kept(path, "first")));
  assert_int_equal(entries(folder), 1);
}

/* --force on the wrong folder must not cost anyone their files. */
static void a_tree_is_never_replaced(void **state) {
  (void)state;
  struct error err = {0};
  const char *home = fresh("home");
  assert_int_equal(mkdir(path_kept(home, ".config"), 0777), 0);
  struct dir_writer w;
  assert_int_equal(dir_writer_open(&w, home, true, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "further directories"));
  assert_true(file_exists(path_kept(home, ".config")));
}

static void hold_lock_until_killed(const char *path) {
  struct file_lock lock;
  if (file_lock_take(&lock, path, NULL) == STATUS_OK) {
    file_write_all(path_kept(scratch(), "held"), "", 0, NULL);
    pause();
  }
}

static void a_lock_dies_with_its_process(void **state) {
  (void)state;
  struct error err = {0};
  const char *path = scratch_path("lock");
  fflush(stdout);
  pid_t pid = fork();
  if (pid == 0) hold_lock_until_killed(path);
  for (int i = 0; i < 1000 && !file_exists(path_kept(scratch(), "held")); i++) usleep(5000);
  struct file_lock lock;
  assert_int_equal(file_lock_take(&lock, path, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "another process"));
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  must(file_lock_take(&lock, path, &err), err);
  file_lock_release(&lock);
  file_lock_release(&lock);
}

/* Fills a file system that somebody has mounted for us: see a_full_disk_keeps_the_old_file. */
static int fill(const char *path) {
  static uint8_t block[3 << 20];
  struct error err = {0};
  enum status status = file_write_all(path, block, sizeof block, &err);
  puts(err.text);
  return status == STATUS_FAILED ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "--fill")) return fill(argv[2]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(commit_replaces_and_abort_keeps),
      cmocka_unit_test(large_and_small_pieces_arrive_in_order),
      cmocka_unit_test(what_a_kill_left_is_removed_by_the_next_writer),
      cmocka_unit_test(an_exit_leaves_nothing),
      cmocka_unit_test(a_child_leaves_its_parents_files_alone),
      cmocka_unit_test(a_full_disk_keeps_the_old_file),
      cmocka_unit_test(obstacles_are_named),
      cmocka_unit_test(a_link_is_followed),
      cmocka_unit_test(long_names_work),
      cmocka_unit_test(directories_appear_whole),
      cmocka_unit_test(a_tree_is_never_replaced),
      cmocka_unit_test(a_lock_dies_with_its_process),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
