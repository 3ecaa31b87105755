/* The weights of a Hugging Face directory: model.safetensors, or the shards that
 * model.safetensors.index.json names, seen as one set of tensors. */
#ifndef TSR_IO_SAFETENSORS_SET_H
#define TSR_IO_SAFETENSORS_SET_H

#include "io/safetensors.h"

struct safetensors_set;

/* `path` is a directory, or a single .safetensors file. Refused: a missing shard (named), a tensor
 * of the index that its shard lacks, one that two shards hold. */
enum status safetensors_set_open(struct safetensors_set **out, const char *path, struct error *err);
void safetensors_set_close(struct safetensors_set *set);

/* Shard by shard in the order of their names, within a shard in the order of the bytes. */
size_t safetensors_set_size(const struct safetensors_set *set);
const struct stored_tensor *safetensors_set_at(const struct safetensors_set *set, size_t index);
const struct stored_tensor *safetensors_set_find(const struct safetensors_set *set,
                                                 const char *name);

/* The files themselves, for their metadata. */
size_t safetensors_set_shards(const struct safetensors_set *set);
const struct safetensors *safetensors_set_shard(const struct safetensors_set *set, size_t index);

#endif
