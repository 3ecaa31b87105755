/* Allocation: see mem.h. Small blocks come from aligned_alloc, large ones from mmap, so that a
 * block of gigabytes is zero without being touched and goes back to the system when freed. */
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { HEADER_BYTES = 64, MAP_THRESHOLD_BYTES = 1 << 20, HUGE_PAGE_BYTES = 2 << 20 };

struct header {
  size_t total_bytes;
  size_t mapped;
};

/* Blocks of huge pages begin at one: the matrices would otherwise need more pages than the
 * processor remembers. What lies in front and behind is given back. NULL when memory is out. */
static char *map_zeros(size_t total) {
  size_t slack = total >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 0, whole;
  if (!checked_add(total, slack, &whole)) return NULL;
  char *base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return NULL;
  if (!slack) return base;
  size_t front = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
  size_t page = (size_t)sysconf(_SC_PAGESIZE), end = (front + total + page - 1) / page * page;
  if (front) munmap(base, front);
  if (end < whole) munmap(base + end, whole - end);
#ifdef MADV_HUGEPAGE
  madvise(base + front, total, MADV_HUGEPAGE);
#endif
  return base + front;
}

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
    base = map_zeros(total);
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

/* The number behind `key` in the first line of a file that begins with it; 0 when there is none. */
static size_t number_in(const char *path, const char *key) {
  char line[256];
  size_t value = 0;
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  while (!value && fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key))) value = strtoull(line + strlen(key), NULL, 10);
  fclose(file);
  return value;
}

size_t mem_available_bytes(void) {
  size_t system = number_in("/proc/meminfo", "MemAvailable:") * 1024;
  size_t limit = number_in("/sys/fs/cgroup/memory.max", ""); /* 0 for "max" */
  size_t used = number_in("/sys/fs/cgroup/memory.current", "");
  if (!limit) return system;
  size_t group = limit > used ? limit - used : 1;
  return group < system ? group : system;
}
