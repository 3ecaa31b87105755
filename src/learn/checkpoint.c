/* Checkpoints: see checkpoint.h. No state.
 *
 * One table of (name, dtype, shape, address) describes the learner's state; saving and loading both
 * walk it, so that they cannot disagree. */
#include "learn/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/safetensors.h"

#define FORMAT "tessera-checkpoint-1"
static const char *const current_name = "checkpoint.safetensors";
static const char *const previous_name = "checkpoint.previous.safetensors";

/* --- the table --- */

/* A tensor in the backend's memory, where that is not the host's: it comes through `room` in
 * pieces. */
enum { PIECE_BYTES = 16 << 20 };
struct far_tensor {
  const struct backend *ops;
  const uint8_t *data;
  size_t bytes;
  uint8_t *room; /* (PIECE_BYTES), the table's */
};

struct table {
  struct tensor_source *items; /* `data` points into the learner or the state; or `ctx` is far */
  size_t count, capacity;
  uint32_t *crc;          /* (count) */
  struct far_tensor *far; /* room for all that may be */
  size_t far_count;
  uint8_t *room;
};

static void table_free(struct table *t) {
  for (size_t i = 0; i < t->count; i++) free((char *)t->items[i].name);
  free(t->items);
  free(t->crc);
  mem_free(t->far);
  mem_free(t->room);
  *t = (struct table){0};
}

static enum status add(struct table *t, struct error *err, const char *prefix, const char *name,
                       enum dtype dtype, int64_t a, int64_t b, int64_t c, const void *data) {
  enum status status =
      mem_grow((void **)&t->items, &t->capacity, t->count + 1, sizeof *t->items, err);
  if (status != STATUS_OK) return status;
  struct tensor_source *item = &t->items[t->count];
  *item = (struct tensor_source){.dtype = dtype,
                                 .rank = c   ? 3
                                         : b ? 2
                                             : 1,
                                 .shape = {a, b, c},
                                 .data = data};
  char text[512];
  snprintf(text, sizeof text, "%s%s", prefix, name);
  if (!(item->name = mem_strdup(text, err))) return err->status;
  t->count++;
  return STATUS_OK;
}

/* Calls `take` for one piece after the other. */
static enum status bring_pieces(const struct far_tensor *far,
                                enum status (*take)(void *ctx, const void *piece, size_t bytes,
                                                    struct error *err),
                                void *ctx, struct error *err) {
  enum status status = STATUS_OK;
  for (size_t at = 0; at < far->bytes && status == STATUS_OK; at += PIECE_BYTES) {
    const size_t bytes = far->bytes - at < PIECE_BYTES ? far->bytes - at : PIECE_BYTES;
    status = far->ops->download(far->room, far->data + at, bytes, err);
    if (status == STATUS_OK) status = take(ctx, far->room, bytes, err);
  }
  return status;
}

static enum status put_piece(void *ctx, const void *piece, size_t bytes, struct error *err) {
  return file_writer_put(ctx, piece, bytes, err);
}
static enum status produce_far(void *ctx, struct file_writer *out, struct error *err) {
  return bring_pieces(ctx, put_piece, out, err);
}

static size_t source_bytes(const struct tensor_source *s) {
  size_t bytes = s->dtype == DTYPE_F32 ? 4 : s->dtype == DTYPE_BF16 ? 2 : 1;
  for (int i = 0; i < s->rank; i++) bytes *= (size_t)s->shape[i];
  return bytes;
}

/* An array of the groups, wherever it lies. */
static enum status add_planes(struct table *t, const struct group_logits *g, const char *prefix,
                              const char *name, enum dtype dtype, int64_t lanes, int planes,
                              const void *data, bool far_away, struct error *err) {
  const int64_t width = mask_row_blocks(g->cols) * lanes;
  enum status status = add(t, err, prefix, name, dtype, g->rows, width, planes, data);
  if (status != STATUS_OK || !far_away) return status;
  struct tensor_source *item = &t->items[t->count - 1];
  struct far_tensor *far = &t->far[t->far_count++];
  *far = (struct far_tensor){g->ops, data, source_bytes(item), t->room};
  item->data = NULL;
  item->produce = produce_far;
  item->ctx = far;
  return STATUS_OK;
}

static enum status add_groups(struct table *t, const struct group_logits *g, const char *name,
                              struct error *err) {
  const enum dtype moment = g->compact ? DTYPE_U8 : DTYPE_F32;
  const int five = MASK_STORED, six = MASK_STORED + 1;
  const bool far = !g->ops->is_host, moments_far = far && !g->offload;
  enum status status =
      add_planes(t, g, "logit.", name, groups_dtype(g), MASK_BLOCK, five, g->logit, far, err);
  if (!status)
    status =
        add_planes(t, g, "moment1.", name, moment, MASK_BLOCK, five, g->moment1, moments_far, err);
  if (!status)
    status =
        add_planes(t, g, "moment2.", name, moment, MASK_BLOCK, six, g->moment2, moments_far, err);
  if (status || !g->compact) return status;
  status = add_planes(t, g, "scale1.", name, DTYPE_U8, 1, five, g->scale1, moments_far, err);
  return status ? status
                : add_planes(t, g, "scale2.", name, DTYPE_U8, 1, six, g->scale2, moments_far, err);
}

static enum status make_far(struct table *t, const struct learner *l, struct error *err) {
  if (l->ops->is_host) return STATUS_OK;
  enum status status = l->ops->wait(err); /* moments may be on their way to the host */
  if (status != STATUS_OK) return status;
  t->far = mem_alloc(5 * (size_t)l->site_count, sizeof *t->far, err);
  t->room = mem_alloc(PIECE_BYTES, 1, err);
  return t->far && t->room ? STATUS_OK : STATUS_FAILED;
}

static enum status add_site(struct table *t, const struct learner *l, const struct learn_site *s,
                            const struct mask_matrix *best, struct error *err) {
  const char *name = s->mask.name;
  enum status status = STATUS_OK;
  const struct pattern_logits *p = &s->pattern;
  if (p->count) {
    const int64_t groups = pattern_groups(&p->table, p->cols);
    const int64_t each = p->table.count;
    status = add(t, err, "logit.", name, DTYPE_F32, p->rows, groups, each, p->logit);
    if (!status)
      status = add(t, err, "moment1.", name, DTYPE_F32, p->rows, groups, each, p->moment1);
    if (!status)
      status = add(t, err, "moment2.", name, DTYPE_F32, p->rows, groups, each, p->moment2);
  } else if (learn_uses_groups(&l->settings)) {
    status = add_groups(t, &s->groups, name, err);
  }
  if (!status)
    status = add(t, err, best->kind == MASK_TILED ? "best.bits." : "best.codes.", name, DTYPE_U8,
                 best->rows, mask_code_stride(best), 0, mask_groups(best));
  if (!status && learn_uses_tiles(&l->settings))
    status = add(t, err, "best.tiles.", name, DTYPE_U8, mask_tile_row_count(best),
                 mask_tile_col_count(best), 0, best->tiles);
  return status;
}

static enum status table_make(struct table *t, const struct learner *l,
                              const struct run_state *state, struct error *err) {
  const struct tile_logits *tiles = &l->tiles;
  enum status status = make_far(t, l, err);
  if (status == STATUS_OK && learn_uses_tiles(&l->settings)) {
    status = add(t, err, "", "tiles.logit", DTYPE_F32, tiles->count, 0, 0, tiles->logit);
    if (!status)
      status = add(t, err, "", "tiles.moment1", DTYPE_F32, tiles->count, 0, 0, tiles->moment1);
    if (!status)
      status = add(t, err, "", "tiles.moment2", DTYPE_F32, tiles->count, 0, 0, tiles->moment2);
  }
  for (int i = 0; i < l->site_count && !status; i++)
    status = add_site(t, l, &l->sites[i], &state->best[i], err);
  if (status != STATUS_OK) return status;
  t->crc = calloc(t->count + 1, sizeof *t->crc);
  return t->crc ? STATUS_OK : error_set(err, STATUS_FAILED, "out of memory for a checkpoint");
}

static uint32_t checksum(const void *data, size_t bytes) {
  return (uint32_t)crc32_z(0, data, bytes);
}

static enum status sum_piece(void *ctx, const void *piece, size_t bytes, struct error *err) {
  uint32_t *crc = ctx;
  (void)err;
  *crc = (uint32_t)crc32_z(*crc, piece, bytes);
  return STATUS_OK;
}

static enum status sum_item(const struct tensor_source *item, uint32_t *crc, struct error *err) {
  *crc = 0;
  if (item->ctx) return bring_pieces(item->ctx, sum_piece, crc, err);
  *crc = checksum(item->data, source_bytes(item));
  return STATUS_OK;
}

/* The bytes of a file's tensor to where they belong. */
static enum status fill_item(const struct tensor_source *item, const struct stored_tensor *t,
                             struct error *err) {
  const struct far_tensor *far = item->ctx;
  if (far) return far->ops->upload((void *)far->data, t->data, t->size_bytes, err);
  memcpy((void *)item->data, t->data, t->size_bytes);
  return STATUS_OK;
}

/* --- the numbers, as text in the metadata: hexadecimal floats keep every bit --- */

struct number {
  const char *key;
  double *real;
  int64_t *integer;
};
enum { NUMBERS = 10 };

static void list_numbers(struct number out[NUMBERS], struct run_state *s, int64_t *step) {
  const struct number list[NUMBERS] = {
      {"dense_loss", &s->dense_loss, NULL}, {"prior_loss", &s->prior_loss, NULL},
      {"first_loss", &s->first_loss, NULL}, {"best_loss", &s->best_loss, NULL},
      {"seconds", &s->seconds, NULL},       {"prior_seconds", &s->prior_seconds, NULL},
      {"best_step", NULL, &s->best_step},   {"record_bytes", NULL, &s->record_bytes},
      {"last_loss", &s->last_loss, NULL},   {"step", NULL, step},
  };
  memcpy(out, list, sizeof list);
}

static json_t *make_metadata(const struct learner *l, const struct run_state *state,
                             const char *settings) {
  struct run_state copy = *state;
  struct number numbers[NUMBERS];
  int64_t step = l->step;
  json_t *meta = json_object();
  list_numbers(numbers, &copy, &step);
  json_object_set_new(meta, "format", json_string(FORMAT));
  json_object_set_new(meta, "settings", json_string(settings));
  for (int i = 0; i < NUMBERS; i++) {
    char text[64];
    if (numbers[i].real)
      snprintf(text, sizeof text, "%a", *numbers[i].real);
    else
      snprintf(text, sizeof text, "%lld", (long long)*numbers[i].integer);
    json_object_set_new(meta, numbers[i].key, json_string(text));
  }
  return meta;
}

/* --- saving --- */

/* The checkpoint that is there becomes the previous one, without ever being without a name. */
static enum status keep_previous(const char *current, const char *previous, struct error *err) {
  if (!file_exists(current)) return STATUS_OK;
  if (unlink(previous) && errno != ENOENT)
    return error_set(err, STATUS_FAILED, "cannot remove %s: %s", previous, strerror(errno));
  if (link(current, previous) && rename(current, previous)) /* no links on this file system */
    return error_set(err, STATUS_FAILED, "cannot keep %s as %s: %s", current, previous,
                     strerror(errno));
  return STATUS_OK;
}

enum status checkpoint_save(const struct learner *l, const struct run_state *state,
                            const char *settings, const char *run, struct error *err) {
  struct table table = {0};
  char *current = path_join(run, current_name), *previous = path_join(run, previous_name);
  json_t *meta = make_metadata(l, state, settings);
  enum status status = table_make(&table, l, state, err);
  if (status == STATUS_OK) {
    size_t count = table.count;
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
      status = sum_item(&table.items[i], &table.crc[i], err);
    if (status == STATUS_OK)
      status = add(&table, err, "", "crc32", DTYPE_U32, (int64_t)count, 0, 0, table.crc);
  }
  if (status == STATUS_OK) status = keep_previous(current, previous, err);
  if (status == STATUS_OK) status = safetensors_write(current, table.items, table.count, meta, err);
  if (status != STATUS_OK) error_prefix(err, "the checkpoint could not be saved");
  json_decref(meta);
  table_free(&table);
  free(current);
  free(previous);
  return status;
}

/* --- loading --- */

static enum status damaged(const char *path, const char *what, const char *name,
                           struct error *err) {
  return error_set(err, STATUS_REFUSED, "%s is damaged: %s %s", path, what, name);
}

static enum status check_tensor(const struct stored_tensor *t, const struct tensor_source *want,
                                uint32_t crc, const char *path, struct error *err) {
  if (!t) return damaged(path, "there is no tensor", want->name, err);
  bool same = t->dtype == want->dtype && t->rank == want->rank;
  for (int i = 0; same && i < t->rank; i++) same = t->shape[i] == want->shape[i];
  if (!same) return damaged(path, "another shape or type than this run's in", want->name, err);
  if (checksum(t->data, t->size_bytes) != crc)
    return damaged(path, "the checksum does not match in", want->name, err);
  return STATUS_OK;
}

static enum status read_numbers(const struct safetensors *file, struct run_state *state,
                                int64_t *step, const char *path, struct error *err) {
  struct number numbers[NUMBERS];
  list_numbers(numbers, state, step);
  for (int i = 0; i < NUMBERS; i++) {
    const char *text = safetensors_metadata(file, numbers[i].key);
    char *end = NULL;
    if (!text) return damaged(path, "its metadata lack", numbers[i].key, err);
    if (numbers[i].real)
      *numbers[i].real = strtod(text, &end);
    else
      *numbers[i].integer = strtoll(text, &end, 10);
    if (end == text || *end)
      return damaged(path, "its metadata have no number in", numbers[i].key, err);
  }
  return STATUS_OK;
}

/* Checks everything before the learner is touched. */
static enum status load_file(struct learner *l, struct run_state *state, const char *settings,
                             const char *path, struct error *err) {
  struct safetensors *file = NULL;
  struct table table = {0};
  struct run_state numbers = *state;
  int64_t step = 0;
  enum status status = safetensors_open(&file, path, err);
  if (status != STATUS_OK) return status;
  const char *format = safetensors_metadata(file, "format");
  const char *saved = safetensors_metadata(file, "settings");
  status = STATUS_REFUSED;
  if (!format || strcmp(format, FORMAT) != 0) {
    damaged(path, "it is no", FORMAT, err);
    goto out;
  }
  if (!saved || strcmp(saved, settings) != 0) {
    damaged(path, "it belongs to other settings than", "config.json", err);
    goto out;
  }
  if ((status = read_numbers(file, &numbers, &step, path, err)) != STATUS_OK) goto out;
  if ((status = table_make(&table, l, state, err)) != STATUS_OK) goto out;
  const struct stored_tensor *crc = safetensors_find(file, "crc32");
  if (!crc || crc->dtype != DTYPE_U32 || crc->size_bytes != table.count * sizeof(uint32_t) ||
      step < 0 || step > l->settings.steps) {
    status = damaged(path, "no checksums or an impossible step in", "its header", err);
    goto out;
  }
  memcpy(table.crc, crc->data, crc->size_bytes);
  for (size_t i = 0; i < table.count && status == STATUS_OK; i++)
    status = check_tensor(safetensors_find(file, table.items[i].name), &table.items[i],
                          table.crc[i], path, err);
  if (status != STATUS_OK) goto out;
  for (size_t i = 0; i < table.count && status == STATUS_OK; i++)
    status = fill_item(&table.items[i], safetensors_find(file, table.items[i].name), err);
  if (status != STATUS_OK) goto out;
  *state = numbers;
  l->step = step;
out:
  table_free(&table);
  safetensors_close(file);
  return status;
}

enum status checkpoint_load(struct learner *l, struct run_state *state, const char *settings,
                            const char *run, bool *found, struct error *err) {
  char *current = path_join(run, current_name), *previous = path_join(run, previous_name);
  enum status status = STATUS_OK;
  const bool has_current = file_exists(current), has_previous = file_exists(previous);
  *found = has_current || has_previous;
  if (has_current) status = load_file(l, state, settings, current, err);
  if (*found && (status != STATUS_OK || !has_current)) {
    struct error second;
    if (has_previous && load_file(l, state, settings, previous, &second) == STATUS_OK) {
      log_warn("%s; going on from the checkpoint before it, of step %lld",
               status != STATUS_OK ? err->text : "the last checkpoint is missing",
               (long long)l->step);
      status = STATUS_OK;
    } else if (status == STATUS_OK) {
      *err = second;
      status = second.status;
    }
  }
  free(current);
  free(previous);
  return status;
}
