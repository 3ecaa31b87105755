/* Tokens by id and by text: see vocab.h. */
#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/utf8.h"

uint64_t text_hash(const char *text, size_t length) {
  uint64_t h = 0x9e3779b97f4a7c15u ^ length;
  while (length >= 8) {
    uint64_t word;
    memcpy(&word, text, 8);
    h = (h ^ word) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
    text += 8;
    length -= 8;
  }
  uint64_t tail = 0;
  memcpy(&tail, text, length);
  h = (h ^ tail) * 0xc4ceb9fe1a85ec53u;
  return h ^ h >> 29;
}

static bool entry_equals(const struct vocab *v, uint32_t id, const char *text, size_t length) {
  const struct vocab_entry *e = &v->entries[id];
  return e->length == length && memcmp(v->texts.data + e->start, text, length) == 0;
}

static void slot_insert(struct vocab *v, uint32_t id) {
  const struct vocab_entry *e = &v->entries[id];
  size_t slot = text_hash(v->texts.data + e->start, e->length) & v->slot_mask;
  while (v->slots[slot]) slot = (slot + 1) & v->slot_mask;
  v->slots[slot] = id + 1;
}

/* Keeps the table at most half full. */
static enum status slots_reserve(struct vocab *v, struct error *err) {
  if (v->slots && 2 * (v->used_slots + 1) <= v->slot_mask + 1) return STATUS_OK;
  size_t size = v->slots ? 2 * (v->slot_mask + 1) : 1024;
  uint32_t *slots = mem_alloc(size, sizeof *slots, err);
  if (!slots) return STATUS_FAILED;
  mem_free(v->slots);
  v->slots = slots;
  v->slot_mask = size - 1;
  for (size_t id = 0; id < v->count; id++)
    if (v->entries[id].length) slot_insert(v, (uint32_t)id);
  return STATUS_OK;
}

int32_t vocab_find(const struct vocab *v, const char *text, size_t length) {
  if (!v->slots || !length) return -1;
  for (size_t slot = text_hash(text, length) & v->slot_mask; v->slots[slot];
       slot = (slot + 1) & v->slot_mask)
    if (entry_equals(v, v->slots[slot] - 1, text, length)) return (int32_t)(v->slots[slot] - 1);
  return -1;
}

static enum status entries_reserve(struct vocab *v, size_t count, struct error *err) {
  if (count <= v->count) return STATUS_OK;
  enum status status = mem_grow((void **)&v->entries, &v->capacity, count, sizeof *v->entries, err);
  if (status != STATUS_OK) return status;
  memset(v->entries + v->count, 0, (count - v->count) * sizeof *v->entries);
  v->count = count;
  return STATUS_OK;
}

enum status vocab_put(struct vocab *v, int64_t id, const char *text, size_t length, uint32_t flags,
                      struct error *err) {
  if (id < 0 || id >= VOCAB_TOKENS_MAX)
    return error_set(err, STATUS_REFUSED, "token id %lld is out of range (0 to %d)", (long long)id,
                     VOCAB_TOKENS_MAX - 1);
  if (length > TOKEN_BYTES_MAX || v->texts.length + length > VOCAB_BYTES_MAX)
    return error_set(err, STATUS_REFUSED, "the text of token %lld is too long (%zu bytes)",
                     (long long)id, length);
  if (utf8_check(text, length) < length)
    return error_set(err, STATUS_REFUSED, "the text of token %lld is not UTF-8", (long long)id);
  if (vocab_has(v, id))
    return error_set(err, STATUS_REFUSED, "two tokens have the id %lld", (long long)id);
  int32_t same = vocab_find(v, text, length);
  if (same >= 0)
    return error_set(err, STATUS_REFUSED, "tokens %d and %lld have the same text \"%.*s\"", same,
                     (long long)id, (int)length, text);
  enum status status = entries_reserve(v, (size_t)id + 1, err);
  if (status != STATUS_OK) return status;
  v->entries[id] = (struct vocab_entry){.start = (uint32_t)v->texts.length,
                                        .length = (uint32_t)length,
                                        .flags = flags | TOKEN_PRESENT};
  strbuf_append(&v->texts, text, length);
  if (!length) return STATUS_OK;
  status = slots_reserve(v, err); /* a new table takes the new token in by itself */
  if (status != STATUS_OK) return status;
  if (vocab_find(v, text, length) < 0) slot_insert(v, (uint32_t)id);
  v->used_slots++;
  return STATUS_OK;
}

void vocab_release(struct vocab *v) {
  free(v->entries);
  mem_free(v->slots);
  strbuf_free(&v->texts);
  *v = (struct vocab){0};
}
