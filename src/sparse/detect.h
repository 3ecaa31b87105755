/* Finding structure in plain bit masks: which tiles are dense, which are 2:4, or what else the
 * pattern is. For checkpoints that hold zeros, and for masks that speak of bits only. */
#ifndef TSR_SPARSE_DETECT_H
#define TSR_SPARSE_DETECT_H

#include "sparse/mask.h"

enum zero_pattern {
  ZEROS_NONE,        /* dense: fewer than 1 in 20 is zero */
  ZEROS_2_4,         /* every tile is 2:4 */
  ZEROS_HYBRID,      /* some tiles are 2:4 */
  ZEROS_N_M,         /* at most n of every m are kept, n at most m / 2 */
  ZEROS_UNSTRUCTURED /* none of these */
};

struct detection {
  enum zero_pattern pattern;
  int keep, of; /* ZEROS_N_M */
  int64_t nonzero;
  int64_t tiles_dense, tiles_sparse; /* hybrid and 2:4 */
  int64_t kept; /* positions that the pattern keeps: by tile map for 2:4 and hybrid (zeros in a
                   dense tile are kept), all when dense, else the nonzero ones */
};
const char *zero_pattern_name(const struct detection *d, char text[16]);

/* Looks at `bits` (1 = not zero) in tiles of the given size. A tile is 2:4 when no group has more
 * than two nonzero positions and some position is zero. */
void detect_zeros(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                  struct detection *out);

/* The hybrid mask that fits `bits` tightest: tiles as detect_zeros sees them, codes that keep all
 * nonzero positions (and the leftmost zeros where a group has fewer than it may keep). */
enum status detect_tiles(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                         struct mask_matrix *out, struct error *err);

/* The hybrid mask that `bits` is: each tile full, or each of its groups with exactly two kept (or
 * what its width allows). *fits false, and nothing in *out, when it is none. */
enum status detect_hybrid(const struct mask_matrix *bits, int64_t tile_rows, int64_t tile_cols,
                          struct mask_matrix *out, bool *fits, struct error *err);

#endif
