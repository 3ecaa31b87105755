/* See choice.h. The table is a list in memory, as it is in the file: some hundred entries at most,
 * asked when products are prepared and never while they run. */
#include "model/choice.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"

enum { VERSION = 1, ENTRIES_MAX = 1 << 16, FILE_BYTES_MAX = 32 << 20 };

struct entry {
  char weights[CHOICE_NAME_MAX], pick[CHOICE_NAME_MAX];
  int64_t rows, cols, sparse_tiles;
  uint32_t tokens;    /* of the bucket, the most */
  double first, last; /* speed-up over the dense product at the bucket's two ends */
};

struct choice {
  char *path, *machine;
  struct entry *entries;
  size_t count, capacity;
  bool changed;
};

/* Up to here the panels' edges and some batches between them; then powers of two. */
static const uint32_t bounds[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512};

uint32_t choice_bucket(uint32_t tokens, uint32_t *first) {
  INVARIANT(tokens);
  const size_t count = sizeof bounds / sizeof *bounds;
  uint32_t below = 0;
  for (size_t i = 0; i < count; below = bounds[i++]) {
    *first = below + 1;
    if (tokens <= bounds[i]) return bounds[i];
  }
  uint32_t last = bounds[count - 1];
  while (last < tokens && last <= UINT32_MAX / 2) last *= 2;
  *first = last / 2 + 1;
  return last;
}

/* --- entries --- */

static struct entry *find(const struct choice *c, const struct choice_shape *shape,
                          uint32_t tokens) {
  for (size_t i = 0; i < c->count; i++) {
    struct entry *e = &c->entries[i];
    if (e->tokens == tokens && e->rows == shape->rows && e->cols == shape->cols &&
        e->sparse_tiles == shape->sparse_tiles && !strcmp(e->weights, shape->weights))
      return e;
  }
  return NULL;
}

static enum status add(struct choice *c, const struct entry *e, struct error *err) {
  if (c->count == c->capacity) {
    const size_t capacity = c->capacity ? 2 * c->capacity : 64;
    struct entry *larger = mem_alloc(capacity, sizeof *larger, err);
    if (!larger) return STATUS_FAILED;
    if (c->count) memcpy(larger, c->entries, c->count * sizeof *larger);
    mem_free(c->entries);
    c->entries = larger;
    c->capacity = capacity;
  }
  c->entries[c->count++] = *e;
  return STATUS_OK;
}

/* --- the file --- */

static bool copy_name(char to[CHOICE_NAME_MAX], const char *from) {
  if (!from || !*from || strlen(from) >= CHOICE_NAME_MAX) return false;
  memcpy(to, from, strlen(from) + 1);
  return true;
}

static bool read_entry(const json_t *json, struct entry *e) {
  int64_t tokens;
  uint32_t first;
  *e = (struct entry){0};
  if (!json_get_int(json, "tokens", &tokens, NULL) || tokens < 1 || tokens > UINT32_MAX)
    return false;
  e->tokens = (uint32_t)tokens;
  return copy_name(e->weights, json_get_string(json, "weights")) &&
         copy_name(e->pick, json_get_string(json, "pick")) &&
         json_get_int(json, "rows", &e->rows, NULL) && json_get_int(json, "cols", &e->cols, NULL) &&
         json_get_int(json, "sparse_tiles", &e->sparse_tiles, NULL) &&
         choice_bucket(e->tokens, &first) == e->tokens &&
         json_get_real(json, "first", &e->first, NULL) &&
         json_get_real(json, "last", &e->last, NULL);
}

/* Entries of the same machine; none, with a warning, where the file is damaged. */
static enum status read_table(struct choice *c, struct error *err) {
  struct error why = {0};
  if (!file_exists(c->path)) return STATUS_OK;
  json_t *root = json_read_file(c->path, FILE_BYTES_MAX, &why);
  enum status status = STATUS_OK;
  const char *machine = root ? json_get_string(root, "machine") : NULL;
  const json_t *list = root ? json_object_get(root, "entries") : NULL;
  int64_t version = 0;
  bool damaged = !root || !json_get_int(root, "version", &version, NULL) || !machine ||
                 !json_is_array(list) || json_array_size(list) > ENTRIES_MAX;
  const bool ours = !damaged && version == VERSION && machine && !strcmp(machine, c->machine);
  for (size_t i = 0; ours && !damaged && !status && i < json_array_size(list); i++) {
    struct entry e;
    damaged = !read_entry(json_array_get(list, i), &e);
    if (!damaged) status = add(c, &e, err);
  }
  if (damaged) {
    log_warn("%s is no table of kernels%s%s; it is measured anew", c->path, why.text[0] ? ": " : "",
             why.text);
    c->count = 0;
  }
  json_decref(root);
  return status;
}

static json_t *entry_json(const struct entry *e) {
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:f, s:f}", "weights", e->weights, "rows",
                   (json_int_t)e->rows, "cols", (json_int_t)e->cols, "sparse_tiles",
                   (json_int_t)e->sparse_tiles, "tokens", (json_int_t)e->tokens, "pick", e->pick,
                   "first", e->first, "last", e->last);
}

/* The folder of `path`, and that above it. */
static void make_folders(const char *path) {
  char *folder = strdup(path), *slash;
  if (!folder) return;
  if ((slash = strrchr(folder, '/'))) {
    *slash = 0;
    char *above = strrchr(folder, '/');
    if (above && above > folder) {
      *above = 0;
      mkdir(folder, 0777);
      *above = '/';
    }
    mkdir(folder, 0777); /* what fails here is said when the file is opened */
  }
  free(folder);
}

enum status choice_save(struct choice *c, struct error *err) {
  if (!c->changed) return STATUS_OK;
  json_t *list = json_array();
  for (size_t i = 0; i < c->count; i++) json_array_append_new(list, entry_json(&c->entries[i]));
  json_t *root =
      json_pack("{s:i, s:s, s:o}", "version", VERSION, "machine", c->machine, "entries", list);
  if (!root) return error_set(err, STATUS_FAILED, "no memory for %s", c->path);
  make_folders(c->path);
  enum status status = json_write_file(c->path, root, err);
  json_decref(root);
  c->changed = status != STATUS_OK;
  return status;
}

enum status choice_open(struct choice **out, const char *path, const char *machine,
                        struct error *err) {
  struct choice *c = mem_alloc(1, sizeof *c, err);
  if (!c) return STATUS_FAILED;
  c->path = strdup(path);
  c->machine = strdup(machine);
  if (!c->path || !c->machine) {
    choice_close(c);
    return error_set(err, STATUS_FAILED, "no memory for the name of %s", path);
  }
  enum status status = read_table(c, err);
  if (status)
    choice_close(c);
  else
    *out = c;
  return status;
}

void choice_close(struct choice *c) {
  if (!c) return;
  free(c->path);
  free(c->machine);
  mem_free(c->entries);
  mem_free(c);
}

enum status choice_path(const char *card, char **out, struct error *err) {
  const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
  struct strbuf path = {0};
  if (cache && *cache == '/')
    strbuf_puts(&path, cache);
  else if (home && *home)
    strbuf_printf(&path, "%s/.cache", home);
  else
    return error_set(err, STATUS_REFUSED,
                     "there is no folder for the table of kernels: set XDG_CACHE_HOME or HOME");
  strbuf_puts(&path, "/tessera/gpu-");
  for (const char *at = card; *at; at++)
    strbuf_putc(&path, isalnum((unsigned char)*at) ? *at : '-');
  strbuf_puts(&path, ".json");
  *out = path.data;
  return STATUS_OK;
}

/* --- choosing --- */

struct contest {
  const struct choice_shape *shape;
  const struct choice_timer *timer;
  uint32_t ends[2]; /* the bucket's first and last batch */
  char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX];
  int count;
};

static bool is_candidate(const struct contest *contest, uint32_t tokens, const char *name) {
  char names[CHOICE_CANDIDATES_MAX][CHOICE_NAME_MAX];
  const int count = contest->timer->candidates(contest->timer->ctx, contest->shape, tokens, names);
  for (int i = 0; i < count; i++)
    if (!strcmp(names[i], name)) return true;
  return false;
}

static enum status time_one(const struct contest *contest, int end, const char *name,
                            double *seconds, struct error *err) {
  enum status status = contest->timer->time(contest->timer->ctx, contest->shape, contest->ends[end],
                                            name, seconds, err);
  if (!status && !(*seconds > 0 && isfinite(*seconds)))
    return error_set(err, STATUS_FAILED, "%s was timed at %g seconds", name, *seconds);
  return status;
}

/* The largest product of both speed-ups among those that lose at neither end; the dense product has
 * 1 and 1. */
static enum status hold_contest(const struct contest *contest, struct entry *e, struct error *err) {
  double dense[2];
  copy_name(e->pick, "dense");
  e->first = e->last = 1;
  for (int end = 0; end < 2; end++) {
    enum status status = time_one(contest, end, "dense", &dense[end], err);
    if (status) return status;
  }
  for (int i = 0; i < contest->count; i++) {
    double seconds[2];
    const char *name = contest->names[i];
    if (!strcmp(name, "dense") || !is_candidate(contest, contest->ends[0], name)) continue;
    for (int end = 0; end < 2; end++) {
      enum status status = time_one(contest, end, name, &seconds[end], err);
      if (status) return status;
    }
    const double first = dense[0] / seconds[0], last = dense[1] / seconds[1];
    if (first < 1 || last < 1 || first * last <= e->first * e->last) continue;
    copy_name(e->pick, name);
    e->first = first;
    e->last = last;
  }
  return STATUS_OK;
}

enum status choice_pick(struct choice *c, const struct choice_shape *shape, uint32_t tokens,
                        const struct choice_timer *timer, char name[CHOICE_NAME_MAX],
                        struct error *err) {
  struct contest contest = {.shape = shape, .timer = timer};
  contest.ends[1] = choice_bucket(tokens, &contest.ends[0]);
  struct entry *known = find(c, shape, contest.ends[1]);
  if (known && is_candidate(&contest, tokens, known->pick)) {
    copy_name(name, known->pick);
    return STATUS_OK;
  }
  struct entry e = {.rows = shape->rows,
                    .cols = shape->cols,
                    .sparse_tiles = shape->sparse_tiles,
                    .tokens = contest.ends[1]};
  INVARIANT(copy_name(e.weights, shape->weights));
  contest.count = timer->candidates(timer->ctx, shape, contest.ends[1], contest.names);
  enum status status = hold_contest(&contest, &e, err);
  if (status) return status;
  if (known)
    *known = e;
  else
    status = add(c, &e, err);
  if (status) return status;
  c->changed = true;
  copy_name(name, e.pick);
  return STATUS_OK;
}
