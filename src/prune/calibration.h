/* The tokens that pruning is calibrated on: windows drawn from a corpus. */
#ifndef TSR_PRUNE_CALIBRATION_H
#define TSR_PRUNE_CALIBRATION_H

#include "data/windows.h"
#include "model/model.h"

enum { CALIBRATION_WINDOWS = 128, CALIBRATION_WINDOW_MAX = 2048 };

struct calibration {
  int32_t *ids; /* (windows, length) */
  int64_t windows, length;
  uint64_t seed;
};

/* Draws windows from the corpus at `path`. `tokens` 0 asks for CALIBRATION_WINDOWS windows of
 * min(CALIBRATION_WINDOW_MAX, context) tokens, and fewer where the corpus or this machine's memory
 * holds no more (said in a message); otherwise about `tokens` are taken, in windows no longer than
 * that. Windows are drawn without replacement, by `seed`; of a very large corpus only the head is
 * read (32 times what is needed). */
enum status calibration_load(struct calibration *out, const struct model *model,
                             const struct tokenizer *tokenizer, const char *path, int64_t tokens,
                             uint64_t seed, struct error *err);
void calibration_free(struct calibration *c);

#endif
