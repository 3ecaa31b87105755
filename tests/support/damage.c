/* Seeded damage: see damage.h. Round r of seed s is always the same file, and the file of the last
 * round stays in the scratch folder when the process dies, which is how a crash is found again. */
#include "support/damage.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "support/support.h"

enum { EXTRA_BYTES = 256, EDGE_BYTES = 768 };

struct patient {
  uint8_t *bytes;
  size_t size, capacity;
};

/* Places near the ends count more: headers and directories live there. */
static size_t place(struct rng *rng, size_t size) {
  if (size == 0) return 0;
  size_t edge = size < EDGE_BYTES ? size : EDGE_BYTES;
  switch (rng_below(rng, 3)) {
    case 0:
      return (size_t)rng_below(rng, edge);
    case 1:
      return size - 1 - (size_t)rng_below(rng, edge);
    default:
      return (size_t)rng_below(rng, size);
  }
}

static void flip_bits(struct patient *p, struct rng *rng) {
  for (uint64_t n = 1 + rng_below(rng, 4); n > 0 && p->size; n--)
    p->bytes[place(rng, p->size)] ^= (uint8_t)(1u << rng_below(rng, 8));
}

static void replace_bytes(struct patient *p, struct rng *rng) {
  for (uint64_t n = 1 + rng_below(rng, 6); n > 0 && p->size; n--)
    p->bytes[place(rng, p->size)] = (uint8_t)rng_next(rng);
}

static void cut_end(struct patient *p, struct rng *rng) { p->size = place(rng, p->size); }

static void add_end(struct patient *p, struct rng *rng) {
  for (uint64_t n = 1 + rng_below(rng, EXTRA_BYTES); n > 0 && p->size < p->capacity; n--)
    p->bytes[p->size++] = (uint8_t)rng_next(rng);
}

static void remove_run(struct patient *p, struct rng *rng) {
  size_t at = place(rng, p->size), run = 1 + (size_t)rng_below(rng, 16);
  if (at + run > p->size) return;
  memmove(p->bytes + at, p->bytes + at + run, p->size - at - run);
  p->size -= run;
}

/* A piece of the file once more, elsewhere: doubles names and shifts what follows. */
static void repeat_run(struct patient *p, struct rng *rng) {
  size_t from = place(rng, p->size), at = place(rng, p->size), run = 1 + (size_t)rng_below(rng, 64);
  uint8_t copy[64];
  if (from + run > p->size || p->size + run > p->capacity) return;
  memcpy(copy, p->bytes + from, run);
  memmove(p->bytes + at + run, p->bytes + at, p->size - at);
  memcpy(p->bytes + at, copy, run);
  p->size += run;
}

/* Overwrites 1, 2, 4 or 8 bytes with a number that length and offset fields are afraid of. */
static void tell_a_lie(struct patient *p, struct rng *rng) {
  const uint64_t lies[] = {0,
                           1,
                           p->size,
                           p->size + 1,
                           p->size - 1,
                           0x7f,
                           0xff,
                           0xffff,
                           1u << 20,
                           0x7fffffff,
                           1u << 31,
                           UINT32_MAX,
                           (uint64_t)1 << 40,
                           INT64_MAX,
                           (uint64_t)1 << 63,
                           UINT64_MAX,
                           UINT64_MAX - 7};
  uint64_t lie = lies[rng_below(rng, sizeof lies / sizeof *lies)];
  size_t width = (size_t)1 << rng_below(rng, 4), at = place(rng, p->size);
  if (rng_below(rng, 2)) at &= ~(width - 1);
  if (at + width <= p->size) memcpy(p->bytes + at, &lie, width);
}

/* For text: digits and punctuation become others. */
static void change_text(struct patient *p, struct rng *rng) {
  static const char swaps[] = "0123456789-.eE\"\\{}[],:tfn \n";
  for (int tries = 0, done = 0; tries < 200 && done < 3 && p->size; tries++) {
    size_t at = place(rng, p->size);
    if (!p->bytes[at] || !strchr(swaps, p->bytes[at])) continue;
    p->bytes[at] = (uint8_t)swaps[rng_below(rng, sizeof swaps - 1)];
    done++;
  }
}

static void hurt(struct patient *p, struct rng *rng) {
  static void (*const ways[])(struct patient *, struct rng *) = {
      flip_bits,  replace_bytes, cut_end,    add_end,    remove_run,
      repeat_run, tell_a_lie,    tell_a_lie, change_text};
  for (uint64_t n = rng_below(rng, 4) == 0 ? 2 : 1; n > 0; n--)
    ways[rng_below(rng, sizeof ways / sizeof *ways)](p, rng);
}

/* Overwritten in place: some file systems write a file out at once when it was cut to nothing. */
static void write_patient(const struct patient *p, const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT, 0666);
  assert_true(fd >= 0);
  assert_int_equal(pwrite(fd, p->bytes, p->size, 0), (ssize_t)p->size);
  assert_int_equal(ftruncate(fd, (off_t)p->size), 0);
  assert_int_equal(close(fd), 0);
}

static enum status open_checked(const struct damage *d, const char *path, int round) {
  struct error err = {0};
  enum status status = d->open(d->ctx, path, &err);
  if (status != STATUS_OK && status != STATUS_FAILED && status != STATUS_REFUSED)
    fail_msg("%s: round %d of seed %llu ends with status %d", d->name, round,
             (unsigned long long)d->seed, (int)status);
  if (status != STATUS_OK && strlen(err.text) < 10)
    fail_msg("%s: round %d of seed %llu is refused without a sentence: \"%s\"", d->name, round,
             (unsigned long long)d->seed, err.text);
  if (round < 0 && status != STATUS_OK) fail_msg("%s: the valid file: %s", d->name, err.text);
  return status;
}

void damage_run(const struct damage *d) {
  const char *wanted = getenv("TSR_DAMAGE_ROUNDS");
  int rounds = wanted ? atoi(wanted) : d->rounds, refused = 0;
  char file[128];
  snprintf(file, sizeof file, "damaged-%s%s", d->name, d->suffix ? d->suffix : "");
  const char *path = scratch_path(file);
  struct patient p = {.capacity = d->bytes + 4 * EXTRA_BYTES};
  p.bytes = malloc(p.capacity);
  assert_non_null(p.bytes);
  for (int round = -1; round < rounds; round++) {
    memcpy(p.bytes, d->data, d->bytes);
    p.size = d->bytes;
    struct rng rng = rng_make(d->seed, (uint32_t)round);
    if (round >= 0) hurt(&p, &rng);
    write_patient(&p, path);
    refused += open_checked(d, path, round) != STATUS_OK;
  }
  printf("%s: %d of %d damaged files refused\n", d->name, refused, rounds);
  assert_true(refused > 0 || rounds == 0);
  free(p.bytes);
}

void damage_run_file(const struct damage *d, const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail_msg("%s: cannot open %s", d->name, path);
  struct stat st;
  assert_int_equal(fstat(fileno(file), &st), 0);
  uint8_t *data = malloc((size_t)st.st_size + 1);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, (size_t)st.st_size, file), st.st_size);
  fclose(file);
  struct damage with_data = *d;
  with_data.data = data;
  with_data.bytes = (size_t)st.st_size;
  damage_run(&with_data);
  free(data);
}
