/* Allocation with checked arithmetic, 64-byte alignment, and an error sentence when it fails. */
#ifndef TSR_BASE_MEM_H
#define TSR_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* count * size bytes, zeroed, 64-byte aligned (one cache line, one AVX-512 register). A zero
 * product gives a valid pointer. NULL and a filled error when memory or size_t does not suffice.
 * Large blocks come from fresh pages, so that untouched parts take no memory. */
void *mem_alloc(size_t count, size_t size, struct error *err);
/* Frees what mem_alloc returned; NULL is fine. */
void mem_free(void *pointer);

/* Grows *items (obtained from realloc, initially NULL) to hold at least `need` elements. */
enum status mem_grow(void **items, size_t *capacity, size_t need, size_t size, struct error *err);

char *mem_strdup(const char *text, struct error *err);
char *mem_strndup(const char *text, size_t length, struct error *err);
/* Both free with free(). */

static inline bool checked_mul(size_t a, size_t b, size_t *out) {
  return !__builtin_mul_overflow(a, b, out);
}
static inline bool checked_add(size_t a, size_t b, size_t *out) {
  return !__builtin_add_overflow(a, b, out);
}

/* Peak resident set of this process so far, in bytes; 0 where the system does not say. */
size_t mem_peak_bytes(void);
/* Bytes that this process could still take without others being swapped out: what the system says,
 * or less where a control group limits it. 0 where the system does not say. */
size_t mem_available_bytes(void);

#endif
