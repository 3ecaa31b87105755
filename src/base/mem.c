/* Allocation: see mem.h. Small blocks come from aligned_alloc, large ones from mmap, so that a
 * block of gigabytes is zero without being touched and goes back to the system when freed. */
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { HEADER_BYTES = 64, MAP_THRESHOLD_BYTES = 1 << 20 };

struct header {
  size_t total_bytes;
  size_t mapped;
};

void *mem_alloc(size_t count, size_t size, struct error *err) {
  size_t bytes, total;
  if (!checked_mul(count, size, &bytes) || !checked_add(bytes, HEADER_BYTES + 63, &total)) {
    error_set(err, STATUS_FAILED, "a block of %zu x %zu bytes is too large to address", count,
              size);
    return NULL;
  }
  total &= ~(size_t)63;
  bool mapped = total >= MAP_THRESHOLD_BYTES;
  char *base = NULL;
  if (mapped) {
    base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) base = NULL;
#ifdef MADV_HUGEPAGE
    if (base && total >= (8u << 20)) madvise(base, total, MADV_HUGEPAGE);
#endif
  } else {
    base = aligned_alloc(64, total);
    if (base) memset(base, 0, total);
  }
  if (!base) {
    error_set(err, STATUS_FAILED,
              "out of memory: %.1f MiB could not be had; close other programs or choose smaller "
              "settings (--window, --batch)",
              (double)total / 1048576.0);
    return NULL;
  }
  struct header *header = (struct header *)base;
  header->total_bytes = total;
  header->mapped = mapped;
  return base + HEADER_BYTES;
}

void mem_free(void *pointer) {
  if (!pointer) return;
  char *base = (char *)pointer - HEADER_BYTES;
  struct header *header = (struct header *)base;
  if (header->mapped)
    munmap(base, header->total_bytes);
  else
    free(base);
}

enum status mem_grow(void **items, size_t *capacity, size_t need, size_t size, struct error *err) {
  if (need <= *capacity) return STATUS_OK;
  size_t wanted = *capacity + *capacity / 2 + 16;
  if (wanted < need) wanted = need;
  size_t bytes;
  void *grown = checked_mul(wanted, size, &bytes) ? realloc(*items, bytes) : NULL;
  if (!grown)
    return error_set(err, STATUS_FAILED, "out of memory: %zu items of %zu bytes", wanted, size);
  *items = grown;
  *capacity = wanted;
  return STATUS_OK;
}

char *mem_strndup(const char *text, size_t length, struct error *err) {
  char *copy = malloc(length + 1);
  if (!copy) {
    error_set(err, STATUS_FAILED, "out of memory: a string of %zu bytes", length);
    return NULL;
  }
  memcpy(copy, text, length);
  copy[length] = 0;
  return copy;
}

char *mem_strdup(const char *text, struct error *err) {
  return mem_strndup(text, strlen(text), err);
}

size_t mem_peak_bytes(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage)) return 0;
  return (size_t)usage.ru_maxrss * 1024;
}
