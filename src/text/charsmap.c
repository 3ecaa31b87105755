/* The double-array walk: see charsmap.h. The unit layout is darts-clone's: bits 0-7 label, bit 8
 * "a leaf follows", bits 10-30 offset (shifted by 8 more when bit 9 is set), bit 31 "is a leaf". */
#include "text/charsmap.h"

#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

enum { CHARSMAP_BYTES_MAX = 1 << 26 };

static uint32_t read_u32(const uint8_t *p) {
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

enum status charsmap_read(struct charsmap *map, const uint8_t *data, size_t bytes,
                          struct error *err) {
  *map = (struct charsmap){0};
  if (!bytes) return STATUS_OK;
  uint32_t trie_bytes = bytes >= 4 ? read_u32(data) : 0;
  if (bytes > CHARSMAP_BYTES_MAX || trie_bytes < 4 || trie_bytes % 4 || trie_bytes > bytes - 4 ||
      data[bytes - 1] != 0)
    return error_set(err, STATUS_REFUSED,
                     "the character map of the normalizer (%zu bytes) is damaged", bytes);
  const uint8_t *texts = data + 4 + trie_bytes;
  map->unit_count = trie_bytes / 4;
  map->text_bytes = bytes - 4 - trie_bytes;
  map->units = mem_alloc(map->unit_count, sizeof *map->units, err);
  map->texts = mem_alloc(map->text_bytes + 1, 1, err);
  if (!map->units || !map->texts) {
    charsmap_release(map);
    return STATUS_FAILED;
  }
  for (size_t i = 0; i < map->unit_count; i++) map->units[i] = read_u32(data + 4 + 4 * i);
  memcpy(map->texts, texts, map->text_bytes);
  for (size_t at = 0; at < map->text_bytes; at += strlen(map->texts + at) + 1) {
    size_t length = strlen(map->texts + at);
    if (utf8_check(map->texts + at, length) == length) continue;
    charsmap_release(map);
    return error_set(err, STATUS_REFUSED, "the character map of the normalizer is not UTF-8");
  }
  return STATUS_OK;
}

void charsmap_release(struct charsmap *map) {
  mem_free(map->units);
  mem_free(map->texts);
  *map = (struct charsmap){0};
}

static size_t unit_offset(uint32_t unit) { return (unit >> 10) << ((unit & 512) >> 6); }

static bool is_continuation(char c) { return ((uint8_t)c & 0xc0) == 0x80; }

size_t charsmap_match(const struct charsmap *map, const char *text, size_t bytes,
                      const char **replacement) {
  size_t longest = 0;
  if (!map->units) return 0;
  size_t node = unit_offset(map->units[0]);
  for (size_t i = 0; i < bytes; i++) {
    uint8_t c = (uint8_t)text[i];
    node ^= c;
    /* Every offset is checked here, so that a lying trie leads nowhere. */
    if (!c || node >= map->unit_count || (map->units[node] & 0x800000ffu) != c) break;
    uint32_t unit = map->units[node];
    node ^= unit_offset(unit);
    if (!(unit >> 8 & 1)) continue;
    if (node >= map->unit_count) break;
    size_t at = map->units[node] & 0x7fffffffu;
    if (at >= map->text_bytes) break;
    /* Only whole characters, in what is replaced and in what replaces it. */
    if ((i + 1 < bytes && is_continuation(text[i + 1])) || is_continuation(map->texts[at]))
      continue;
    longest = i + 1;
    *replacement = map->texts + at;
  }
  return longest;
}
