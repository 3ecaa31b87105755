/* One row of one step of integers: see fragment_layout.h and fragments_internal.h.
 *
 * A lane finds its eight weights of a fragment in 8 bytes or in one word. Bytes follow the order of
 * its registers; nibbles do not: the two of register r are nibbles r and r + 4, so that one shift
 * and one mask bring both where the halves of a register are. */
#include "sparse/fragments_internal.h"

/* Where weight `index` (fragment_index) of fragment `fragment` of the block lies: the byte, or, for
 * four bits, twice the byte and the nibble. */
static size_t place_of(struct fragment_form form, int64_t fragment, size_t index) {
  const size_t lane = index / LANE_HALVES, weight = index % LANE_HALVES;
  const size_t at = (32 * (size_t)fragment + lane) * (form.kind == FRAGMENT_I8 ? 8 : 4);
  if (form.kind == FRAGMENT_I8) return at + weight;
  return 2 * at + weight / 2 + 4 * (weight % 2);
}

static void put_integer(struct fragment_form form, uint8_t *base, size_t place, int integer) {
  if (form.kind == FRAGMENT_I8) {
    base[place] = (uint8_t)integer;
    return;
  }
  const int shift = 4 * (int)(place % 2);
  base[place / 2] = (uint8_t)((base[place / 2] & ~(15 << shift)) | integer << shift);
}

static int16_t get_integer(struct fragment_form form, const uint8_t *base, size_t place) {
  if (form.kind == FRAGMENT_I8) return (int8_t)base[place];
  return (int16_t)(base[place / 2] >> 4 * (place % 2) & 15);
}

/* Dropped weights of a tile that is stored dense. */
static int integer_or_zero(struct fragment_form form, int16_t integer) {
  return integer != QUANT_DROPPED ? integer : form.kind == FRAGMENT_I4 ? 8 : 0;
}

static size_t scale_index(int64_t row, int64_t half) {
  return (size_t)(row % 8 * 4 + half * 2 + row / 8);
}

static size_t scales_offset(struct fragment_form form, bool sparse) {
  const size_t scales =
      (form.scales ? FRAGMENT_SCALE_BYTES : 0) + (form.mins ? FRAGMENT_SCALE_BYTES : 0);
  return fragment_step_bytes(form, sparse) / FRAGMENT_BLOCKS - scales;
}

void fragment_put_quant(struct fragment_form form, bool sparse, uint8_t *block, int64_t row,
                        const struct quant_piece *piece) {
  uint8_t *values = block + (sparse ? FRAGMENT_META_BYTES : 0);
  uint8_t *scales = block + scales_offset(form, sparse);
  for (int64_t c = 0; c < FRAGMENT_STEP_COLS && !sparse; c++)
    put_integer(form, values, place_of(form, c / 16, fragment_index(row, c % 16)),
                integer_or_zero(form, piece->integers[c]));
  for (int64_t g = 0; g < FRAGMENT_STEP_COLS / 4 && sparse; g++) {
    const uint8_t code = piece->codes[g];
    const int64_t col = g % 8 * 2;
    const uint16_t meta = (uint16_t)(load16(block, meta_index(row, g / 4)) & ~(15 << g % 4 * 4));
    store16(block, meta_index(row, g / 4), (uint16_t)(meta | code << g % 4 * 4));
    put_integer(form, values, place_of(form, g / 8, fragment_index(row, col)),
                integer_or_zero(form, piece->integers[4 * g + (code & 3)]));
    put_integer(form, values, place_of(form, g / 8, fragment_index(row, col + 1)),
                integer_or_zero(form, piece->integers[4 * g + (code >> 2)]));
  }
  for (int64_t half = 0; half < 2 && form.scales; half++) {
    store16(scales, scale_index(row, half), piece->scale[half]);
    if (form.mins)
      store16(scales + FRAGMENT_SCALE_BYTES, scale_index(row, half), piece->minimum[half]);
  }
}

void fragment_get_quant(struct fragment_form form, bool sparse, const uint8_t *block, int64_t row,
                        struct quant_piece *piece) {
  const uint8_t *values = block + (sparse ? FRAGMENT_META_BYTES : 0);
  const uint8_t *scales = block + scales_offset(form, sparse);
  for (int64_t c = 0; c < FRAGMENT_STEP_COLS; c++)
    piece->integers[c] =
        sparse ? QUANT_DROPPED
               : get_integer(form, values, place_of(form, c / 16, fragment_index(row, c % 16)));
  for (int64_t g = 0; g < FRAGMENT_STEP_COLS / 4 && sparse; g++) {
    const uint8_t code = load16(block, meta_index(row, g / 4)) >> g % 4 * 4 & 15;
    const int64_t col = g % 8 * 2;
    piece->codes[g] = code;
    piece->integers[4 * g + (code & 3)] =
        get_integer(form, values, place_of(form, g / 8, fragment_index(row, col)));
    piece->integers[4 * g + (code >> 2)] =
        get_integer(form, values, place_of(form, g / 8, fragment_index(row, col + 1)));
  }
  for (int64_t half = 0; half < 2 && form.scales; half++) {
    piece->scale[half] = load16(scales, scale_index(row, half));
    piece->minimum[half] =
        form.mins ? load16(scales + FRAGMENT_SCALE_BYTES, scale_index(row, half)) : 0;
  }
}
