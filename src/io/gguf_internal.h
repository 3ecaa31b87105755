/* What an open GGUF file is: for gguf.c, which reads it, and gguf_values.c, which answers. */
#ifndef TSR_IO_GGUF_INTERNAL_H
#define TSR_IO_GGUF_INTERNAL_H

#include "io/gguf.h"
#include "io/name_index.h"

struct tensor_entry {
  struct stored_tensor tensor; /* dtype DTYPE_COUNT when the type is not read */
  char *name;
  uint32_t type;
  uint64_t offset; /* from the start of the data */
};

struct gguf {
  struct file_map map;
  char *path;
  struct gguf_value *values;
  uint64_t **offsets; /* per value: string offsets of an array of strings, else NULL */
  struct tensor_entry *tensors;
  size_t value_count, tensor_count;
  uint64_t alignment;
  struct name_index value_names, tensor_names;
};

#endif
