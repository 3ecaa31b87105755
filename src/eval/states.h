/* The last hidden states of a model over the windows of a text, computed or kept in a file.
 *
 * Comparing many masks with one dense model would compute the dense model's states each time; kept
 * in a file they cost a read. What the file was made from is checked: the tokens by a hash, the
 * model by computing the first window again. */
#ifndef TSR_EVAL_STATES_H
#define TSR_EVAL_STATES_H

#include "data/windows.h"
#include "io/safetensors.h"
#include "model/model.h"

/* Windows [first, first + count) through the model: normed (count * length, hidden_size). `ids` is
 * scratch for (count * length). normed lies in the memory of the model's backend. */
enum status states_compute(const struct model *model, const struct windows *windows, int64_t first,
                           int64_t count, struct model_workspace *workspace, int32_t *ids,
                           float *normed, struct error *err);

struct states_cache {
  struct safetensors *file;
  const float *normed; /* (windows * length, hidden_size), the host's, wherever the model runs */
};
/* Opens the states kept at `path`, or computes and keeps them there. A file of states of another
 * text or model is replaced; one that is something else is refused. */
enum status states_cache_open(struct states_cache *cache, const char *path,
                              const struct model *model, const struct windows *windows,
                              int64_t batch, struct error *err);
void states_cache_close(struct states_cache *cache);

#endif
