/* The tensors that stand for a packed matrix in a safetensors file (docs/FORMAT.md).
 *
 * "X.weight" becomes "X.weight.layout" (rows, cols, tile_rows, tile_cols), ".tile_map", ".dense",
 * ".values" and ".codes". A quantized matrix, version 2, says two numbers more in its layout (bits,
 * group), has ".scales" and perhaps ".mins", and where all of it is dense neither ".tile_map" nor
 * ".values" nor ".codes". They describe themselves: the config.json beside them only announces them
 * and names the version. */
#ifndef TSR_SPARSE_PACKED_H
#define TSR_SPARSE_PACKED_H

#include "io/safetensors.h"
#include "sparse/hybrid.h"
#include "sparse/quant.h"

/* What is written: 1, or 2 when a matrix is quantized. */
enum { PACKED_VERSION = 1, PACKED_VERSION_QUANT = 2 };
#define PACKED_FORMAT "tessera-hybrid"

enum packed_part {
  PACKED_LAYOUT,
  PACKED_DENSE,
  PACKED_VALUES,
  PACKED_TILE_MAP,
  PACKED_CODES,
  PACKED_SCALES, /* from here on of quantized ones alone */
  PACKED_MINS
};
enum { PACKED_PARTS = 5, PACKED_QUANT_PARTS = 7 };
extern const char *const packed_suffix[PACKED_QUANT_PARTS]; /* ".layout", ".dense", ... */

enum { PACKED_LAYOUT_COUNT = 4, PACKED_QUANT_LAYOUT_COUNT = 6 };
/* Whether this ".layout" is that of a quantized matrix. */
bool packed_is_quant(const struct stored_tensor *layout);

/* Fills *out with views of the five tensors of linear `name` (parts[PACKED_...]; none NULL) after
 * checking types, sizes, and alignment, and indexes it: release with hybrid_release. Reads the
 * layout and the tile map only; hybrid_check looks at the codes. */
enum status packed_view(struct hybrid_matrix *out, const char *name,
                        const struct stored_tensor *const parts[PACKED_PARTS], struct error *err);

/* The same for a quantized matrix; parts[...] are NULL where there is no such tensor. Release with
 * quant_release; quant_check looks at codes, scales and padding. */
enum status packed_quant_view(struct quant_matrix *out, const char *name,
                              const struct stored_tensor *const parts[PACKED_QUANT_PARTS],
                              struct error *err);

/* Checks "sparsity_config" of a config.json: *present tells whether there is one; STATUS_REFUSED
 * for a format or a version that this program does not read. */
enum status packed_config_check(const json_t *config, const char *path, bool *present,
                                struct error *err);

#endif
