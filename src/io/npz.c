/* Reading .npz: see npz.h. libzip finds and inflates the entries and checks their sums; what is
 * checked here is that an entry is an array and no bomb. */
#include "io/npz.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#include "base/mem.h"
#include "io/name_index.h"

enum { ARRAYS_MAX = 1 << 17, NAME_LIMIT_BYTES = 4096 };
static const uint64_t ARRAY_LIMIT_BYTES = UINT64_C(1) << 33;
/* Deflate cannot do better than 1032:1, so a larger claim is a lie. */
static const uint64_t RATIO_MAX = 1032;

struct npz {
  zip_t *zip;
  char *path;
  char **names; /* without ".npy" */
  size_t count;
  struct name_index index;
};

bool npz_recognise(const char *path) {
  char magic[4] = {0};
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return false;
  ssize_t got = read(fd, magic, sizeof magic);
  close(fd);
  return got == (ssize_t)sizeof magic && !memcmp(magic, "PK\3\4", sizeof magic);
}

static enum status open_zip(struct npz *file, const char *path, struct error *err) {
  /* libzip would take a missing file for a damaged one, and a directory for a file. */
  struct file_map probe;
  enum status status = file_map_open(&probe, path, err);
  if (status != STATUS_OK) return status;
  file_map_close(&probe);
  int code;
  file->zip = zip_open(path, ZIP_RDONLY | ZIP_CHECKCONS, &code);
  if (file->zip) return STATUS_OK;
  zip_error_t wrong;
  zip_error_init_with_code(&wrong, code);
  error_set(err, STATUS_REFUSED, "%s is not a sound .npz file: %s", path,
            zip_error_strerror(&wrong));
  zip_error_fini(&wrong);
  return STATUS_REFUSED;
}

static enum status list_arrays(struct npz *file, struct error *err) {
  zip_int64_t entries = zip_get_num_entries(file->zip, 0);
  if (entries < 0 || entries > ARRAYS_MAX)
    return error_set(err, STATUS_REFUSED, "%s holds more than %d arrays", file->path, ARRAYS_MAX);
  file->names = calloc((size_t)entries + 1, sizeof *file->names);
  if (!file->names) return error_set(err, STATUS_FAILED, "%s: out of memory", file->path);
  for (zip_int64_t i = 0; i < entries; i++) {
    const char *name = zip_get_name(file->zip, (zip_uint64_t)i, 0);
    size_t length = name ? strlen(name) : 0;
    if (length < 5 || length > NAME_LIMIT_BYTES || strcmp(name + length - 4, ".npy") != 0)
      return error_set(err, STATUS_REFUSED, "%s holds \"%.100s\", which is no .npy array",
                       file->path, name ? name : "?");
    file->names[file->count] = mem_strndup(name, length - 4, err);
    if (!file->names[file->count]) return STATUS_FAILED;
    enum status status =
        name_index_add(&file->index, file->names[file->count], length - 4, file->count, err);
    file->count++;
    if (status != STATUS_OK) return status;
  }
  return name_index_finish(&file->index, file->path, err);
}

enum status npz_open(struct npz **out, const char *path, struct error *err) {
  *out = NULL;
  struct npz *file = calloc(1, sizeof *file);
  if (!file || !(file->path = mem_strdup(path, NULL))) {
    free(file);
    return error_set(err, STATUS_FAILED, "out of memory");
  }
  enum status status = open_zip(file, path, err);
  if (status == STATUS_OK) status = list_arrays(file, err);
  if (status == STATUS_OK)
    *out = file;
  else
    npz_close(file);
  return status;
}

void npz_close(struct npz *file) {
  if (!file) return;
  if (file->zip) zip_discard(file->zip);
  for (size_t i = 0; i < file->count; i++) free(file->names[i]);
  name_index_free(&file->index);
  free(file->names);
  free(file->path);
  free(file);
}

size_t npz_count(const struct npz *file) { return file->count; }

const char *npz_name(const struct npz *file, size_t index) {
  INVARIANT(index < file->count);
  return file->names[index];
}

size_t npz_find(const struct npz *file, const char *name) {
  return name_index_find(&file->index, name, file->count);
}

/* The inflated bytes of an entry, which the caller frees with mem_free. */
static enum status inflate_entry(struct npz *file, size_t index, uint8_t **data, size_t *bytes,
                                 struct error *err) {
  const char *name = file->names[index];
  zip_stat_t st;
  const zip_uint64_t needed = ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE;
  if (zip_stat_index(file->zip, index, 0, &st) || (st.valid & needed) != needed ||
      st.size > ARRAY_LIMIT_BYTES || st.size / RATIO_MAX > st.comp_size)
    return error_set(err, STATUS_REFUSED, "%s: the array \"%s\" has an impossible size", file->path,
                     name);
  *bytes = (size_t)st.size;
  *data = mem_alloc(*bytes, 1, err);
  if (!*data) return STATUS_FAILED;
  zip_file_t *entry = zip_fopen_index(file->zip, index, 0);
  zip_int64_t got = entry ? zip_fread(entry, *data, *bytes) : -1;
  /* The sum is compared when the end is met, one byte behind the last. */
  uint8_t beyond;
  if (got == (zip_int64_t)*bytes && zip_fread(entry, &beyond, 1) != 0) got = -1;
  if (entry) zip_fclose(entry);
  if (got == (zip_int64_t)*bytes) return STATUS_OK;
  mem_free(*data);
  return error_set(err, STATUS_REFUSED, "%s: the array \"%s\" is damaged; fetch the file again",
                   file->path, name);
}

enum status npz_read(struct npz *file, size_t index, struct npy_array *out, struct error *err) {
  INVARIANT(index < file->count);
  *out = (struct npy_array){0};
  uint8_t *data = NULL;
  size_t bytes = 0;
  enum status status = inflate_entry(file, index, &data, &bytes, err);
  if (status != STATUS_OK) return status;
  status = npy_parse(data, bytes, file->names[index], out, err);
  mem_free(data);
  return status == STATUS_OK ? status : error_prefix(err, "%s", file->path);
}
