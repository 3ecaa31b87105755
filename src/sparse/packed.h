/* The tensors that stand for a packed linear in a safetensors file (docs/FORMAT.md).
 *
 * "X.weight" becomes "X.weight.layout" (rows, cols, tile_rows, tile_cols), ".tile_map", ".dense",
 * ".values" and ".codes". They describe themselves: the config.json beside them only announces
 * them and names the version. */
#ifndef TSR_SPARSE_PACKED_H
#define TSR_SPARSE_PACKED_H

#include "io/safetensors.h"
#include "sparse/hybrid.h"

enum { PACKED_VERSION = 1 };
#define PACKED_FORMAT "tessera-hybrid"

enum packed_part { PACKED_LAYOUT, PACKED_DENSE, PACKED_VALUES, PACKED_TILE_MAP, PACKED_CODES };
enum { PACKED_PARTS = 5 };
extern const char *const packed_suffix[PACKED_PARTS]; /* ".layout", ".dense", ... */

/* Fills *out with views of the five tensors of linear `name` (parts[PACKED_...]; none NULL) after
 * checking types, sizes, and alignment, and indexes it: release with hybrid_release. Reads the
 * layout and the tile map only; hybrid_check looks at the codes. */
enum status packed_view(struct hybrid_matrix *out, const char *name,
                        const struct stored_tensor *const parts[PACKED_PARTS], struct error *err);

/* Checks "sparsity_config" of a config.json: *present tells whether there is one; STATUS_REFUSED
 * for a format or a version that this program does not read. */
enum status packed_config_check(const json_t *config, const char *path, bool *present,
                                struct error *err);

#endif
