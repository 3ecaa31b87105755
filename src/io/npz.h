/* NumPy arrays: .npy (one array) and .npz (a zip of them). Plain numbers and text are read; Python
 * objects (pickles), structures, big-endian and Fortran-ordered arrays are refused by name. */
#ifndef TSR_IO_NPZ_H
#define TSR_IO_NPZ_H

#include "base/strbuf.h"
#include "io/safetensors.h"

enum npy_kind {
  NPY_NUMBERS, /* of `dtype` */
  NPY_UNICODE, /* "<U": UTF-32, padded with zeros to item_bytes */
  NPY_BYTES    /* "|S": bytes, padded with zeros to item_bytes */
};

struct npy_array {
  enum npy_kind kind;
  enum dtype dtype;
  size_t item_bytes;
  int rank;
  int64_t shape[TENSOR_RANK_MAX];
  uint8_t *data; /* owned, 64-byte aligned */
  size_t size_bytes;
};
void npy_array_free(struct npy_array *a);
int64_t npy_array_count(const struct npy_array *a);
/* Parses the bytes of a .npy file; `what` names it in errors. */
enum status npy_parse(const uint8_t *bytes, size_t size_bytes, const char *what,
                      struct npy_array *out, struct error *err);
/* Element `index` of a text array, appended as UTF-8. */
enum status npy_text(const struct npy_array *a, int64_t index, struct strbuf *out,
                     struct error *err);

/* A zip of arrays. Opening reads the directory only. */
struct npz;
/* True when the file starts like a zip. */
bool npz_recognise(const char *path);
enum status npz_open(struct npz **out, const char *path, struct error *err);
void npz_close(struct npz *file);
size_t npz_count(const struct npz *file);
const char *npz_name(const struct npz *file, size_t index); /* without ".npy" */
/* The index of an array; npz_count when there is none of that name. */
size_t npz_find(const struct npz *file, const char *name);
enum status npz_read(struct npz *file, size_t index, struct npy_array *out, struct error *err);

/* One array to write. */
struct npz_source {
  const char *name;
  const char *text; /* when set: a text array without dimensions, and nothing else counts */
  enum dtype dtype; /* a plain type that NumPy has, so neither bf16 nor 8-bit floats */
  int rank;
  int64_t shape[TENSOR_RANK_MAX];
  const void *data; /* the elements, or NULL when `fill` makes them, one array at a time */
  enum status (*fill)(void *ctx, void *out, struct error *err);
  void *ctx;
};
/* Stores the arrays, uncompressed, in the given order, atomically. No times are recorded: equal
 * arrays give equal bytes. */
enum status npz_write(const char *path, const struct npz_source *arrays, size_t count,
                      struct error *err);

#endif
