/* SentencePiece's precompiled_charsmap: a double-array trie from character sequences to what
 * replaces them. Bytes: uint32 size of the trie, the trie (uint32 units, little endian), then
 * NUL-terminated replacement texts. */
#ifndef TSR_TEXT_CHARSMAP_H
#define TSR_TEXT_CHARSMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct charsmap {
  uint32_t *units; /* (unit_count), NULL = no map */
  size_t unit_count;
  char *texts; /* (text_bytes), NUL-terminated pieces */
  size_t text_bytes;
};

/* Copies and checks. `bytes` may be 0: no map. */
enum status charsmap_read(struct charsmap *map, const uint8_t *data, size_t bytes,
                          struct error *err);
void charsmap_release(struct charsmap *map);

/* The longest entry that text[0, bytes) begins with: its length (0 = none) and its replacement. */
size_t charsmap_match(const struct charsmap *map, const char *text, size_t bytes,
                      const char **replacement);

#endif
