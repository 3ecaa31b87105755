/* safetensors: an 8-byte length, a JSON header, and the bytes. Reading maps the file and checks
 * every offset before anything is used; only the header is read. */
#ifndef TSR_IO_SAFETENSORS_H
#define TSR_IO_SAFETENSORS_H

#include "io/file.h"
#include "io/json.h"
#include "tensor/dtype.h"

enum { TENSOR_RANK_MAX = 8 };

struct stored_tensor {
  const char *name; /* owned by the file it came from, as is `data` */
  enum dtype dtype;
  int rank;
  int64_t shape[TENSOR_RANK_MAX]; /* outermost first, as PyTorch prints it */
  const uint8_t *data;
  size_t size_bytes;
};
/* Number of elements (checked when the file was opened). */
int64_t stored_tensor_count(const struct stored_tensor *t);
/* False when `data` does not lie at a multiple of the element's size, as in safetensors of early
 * writers: then it must be copied or read with dtype_to_f32 instead of through a typed pointer. */
bool stored_tensor_is_aligned(const struct stored_tensor *t);

/* The tensors of a file come in the order of their bytes. Refused: overlaps and holes, bytes that
 * belong to no tensor, duplicate names, unknown types. */
struct safetensors; /* one file */
enum status safetensors_open(struct safetensors **out, const char *path, struct error *err);
void safetensors_close(struct safetensors *file);
size_t safetensors_size(const struct safetensors *file);
const struct stored_tensor *safetensors_at(const struct safetensors *file, size_t index);
const struct stored_tensor *safetensors_find(const struct safetensors *file, const char *name);
/* Value of a "__metadata__" key, or NULL. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);
const json_t *safetensors_metadata_all(const struct safetensors *file); /* object or NULL */

/* One tensor to write. Its bytes are either at `data`, or produced piecewise by `produce`, which
 * must put exactly the tensor's bytes with file_writer_put. */
struct tensor_source {
  const char *name;
  enum dtype dtype;
  int rank;
  int64_t shape[TENSOR_RANK_MAX];
  const void *data;
  enum status (*produce)(void *ctx, struct file_writer *out, struct error *err);
  void *ctx;
};
/* Bytes of the tensor (STATUS_USAGE for an impossible shape), and putting them into a file. */
enum status tensor_source_bytes(const struct tensor_source *t, size_t *bytes, struct error *err);
enum status tensor_source_put(const struct tensor_source *t, struct file_writer *out,
                              struct error *err);
/* Writes the tensors in the given order, atomically, header padded so that data starts at a
 * multiple of 64. `metadata` (string values) may be NULL. The same input gives the same bytes.
 * Data are packed without gaps, as the format demands: give tensors of wide elements before those
 * of narrow ones to keep all of them aligned. */
enum status safetensors_write(const char *path, const struct tensor_source *tensors, size_t count,
                              const json_t *metadata, struct error *err);

#endif
