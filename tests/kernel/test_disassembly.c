/* Whether the compiler kept what the AVX2 kernels are written for: their innermost loops multiply
 * in whole vectors, and sums stay in registers. Read out of this very program by objdump; skipped
 * aloud where that is absent, where the processor is another, and where checks are compiled in. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernel/select.h"
#include "support/support.h"

enum {
  LINES_MOST = 6000,
  LINE_BYTES = 120,
  SHARE_SPILLED = 4 /* at most a store for so many products */
};

/* A function's instructions. */
static struct {
  unsigned long address;
  char text[LINE_BYTES];
} lines[LINES_MOST];
static int line_count;

/* Kernels by what they are called, and the least number of vector products in an innermost loop. */
static const struct {
  const char *name, *product;
  int least;
} kernels[] = {
    {"dense_BF16_2_1", "vfmadd", 16},       {"dense_BF16_1_4", "vfmadd", 16},
    {"sparse_BF16_2_1", "vfmadd", 8},       {"sparse_BF16_1_8", "vfmadd", 16},
    {"dense_F16_2_1", "vfmadd", 8},         {"sparse_F16_1_8", "vfmadd", 16},
    {"run_FORM_I8_0_1", "vpmadd", 4},       {"run_FORM_I8_0_4", "vpmadd", 16},
    {"run_FORM_I8_1_4", "vpmadd", 16},      {"run_FORM_I4_0_4", "vpmadd", 16},
    {"run_FORM_I4_1_8", "vpmadd", 16},      {"run_FORM_I4_MINS_0_4", "vpmadd", 16},
    {"run_FORM_I4_MINS_1_4", "vpmadd", 16},
};
enum { KERNELS = sizeof kernels / sizeof *kernels };
static bool seen[KERNELS];

static bool is_vector_store_to_stack(const char *text) {
  const char *to = strrchr(text, ',');
  return !strncmp(text, "vmov", 4) && strstr(text, "%ymm") && to && strstr(to, "(%rsp)");
}
static bool is_scalar_product(const char *text) {
  return (!strncmp(text, "vfmadd", 6) && strstr(text, "ss ")) || !strncmp(text, "vmulss", 6);
}

/* The line that a jump at line `at` goes back to, or -1. */
static int jumps_back_to(int at) {
  if (lines[at].text[0] != 'j') return -1;
  const char *target = lines[at].text + strcspn(lines[at].text, " ");
  const unsigned long address = strtoul(target, NULL, 16);
  if (address > lines[at].address) return -1;
  for (int i = at; i >= 0; i--)
    if (lines[i].address == address) return i;
  return -1;
}

/* The most vector products of an innermost loop; every such loop is held to what is asked. */
static int check_loops(const char *name, const char *product) {
  int most = 0;
  for (int end = 0; end < line_count; end++) {
    const int begin = jumps_back_to(end);
    int products = 0, stores = 0;
    bool innermost = begin >= 0;
    for (int i = begin < 0 ? end : begin; i < end; i++) {
      innermost = innermost && jumps_back_to(i) < begin;
      products +=
          !strncmp(lines[i].text, product, strlen(product)) && strstr(lines[i].text, "%ymm");
      stores += is_vector_store_to_stack(lines[i].text);
      if (innermost && is_scalar_product(lines[i].text))
        fail_msg("%s multiplies number by number: %s", name, lines[i].text);
    }
    if (!innermost || !products) continue;
    if (stores * SHARE_SPILLED > products)
      fail_msg("%s: %d vectors go to the stack in a loop of %d products", name, stores, products);
    if (products > most) most = products;
  }
  return most;
}

/* Functions of the same names are there for AVX-512, too. */
static bool is_avx2(void) {
  for (int i = 0; i < line_count; i++)
    if (strstr(lines[i].text, "%zmm") || strstr(lines[i].text, "%k1")) return false;
  return line_count > 0;
}

static void check_function(const char *name) {
  for (int k = 0; k < KERNELS; k++) {
    if (strcmp(kernels[k].name, name) || !is_avx2()) continue;
    const int products = check_loops(name, kernels[k].product);
    if (products < kernels[k].least)
      fail_msg("%s: no loop has %d vector products, but %d", name, kernels[k].least, products);
    seen[k] = true;
  }
}

static void read_listing(FILE *listing) {
  char line[512], name[128] = "";
  while (fgets(line, sizeof line, listing)) {
    char *open = strchr(line, '<'), *close = strstr(line, ">:");
    if (isxdigit((unsigned char)line[0]) && open && close) {
      check_function(name);
      snprintf(name, sizeof name, "%.*s", (int)(close - open - 1), open + 1);
      line_count = 0;
      continue;
    }
    char *colon = strchr(line, ':');
    if (line[0] != ' ' || !colon || line_count == LINES_MOST) continue;
    lines[line_count].address = strtoul(line, NULL, 16);
    const char *text = colon + 1 + strspn(colon + 1, " \t");
    snprintf(lines[line_count++].text, LINE_BYTES, "%.*s", (int)strcspn(text, "\n"), text);
  }
  check_function(name);
}

static void kernels_are_vectors_in_registers(void **state) {
  (void)state;
#if !defined(__x86_64__) || !defined(__GNUC__) || defined(__clang__) || \
    defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
  printf("skip: what other compilers and checks make of the kernels is not looked at\n");
  skip();
#else
  char path[4096], command[4200];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0 || system("objdump --version > /dev/null 2>&1")) {
    printf("skip: no objdump here\n");
    skip();
  }
  path[length] = '\0';
  snprintf(command, sizeof command, "objdump -d --no-show-raw-insn -j .text '%s'", path);
  FILE *listing = popen(command, "r");
  assert_non_null(listing);
  read_listing(listing);
  assert_int_equal(pclose(listing), 0);
  for (int k = 0; k < KERNELS; k++)
    if (!seen[k]) fail_msg("no AVX2 kernel %s in this program", kernels[k].name);
#endif
}

int main(void) {
  /* the kernels are linked into whatever asks for their table */
  if (!kernel_table()) return 1;
  const struct CMUnitTest tests[] = {cmocka_unit_test(kernels_are_vectors_in_registers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
