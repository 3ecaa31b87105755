/* One NumPy array: see npz.h.
 *
 * The header is a Python dictionary written as text. What NumPy writes is a narrow dialect of it,
 * and only that is read: three keys in any order, quoted strings, True or False, a tuple. */
#include "io/npy.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"

enum {
  HEADER_LIMIT_BYTES = 10000, /* NumPy's own */
  DESCR_BYTES = 24,
  TEXT_ITEM_LIMIT_BYTES = 64 << 20
};
static const uint8_t MAGIC[6] = {0x93, 'N', 'U', 'M', 'P', 'Y'};

static const struct {
  const char *descr;
  enum dtype dtype;
} known_types[] = {
    {"<f4", DTYPE_F32}, {"<f2", DTYPE_F16}, {"<f8", DTYPE_F64}, {"|i1", DTYPE_I8},
    {"|u1", DTYPE_U8},  {"<i2", DTYPE_I16}, {"<u2", DTYPE_U16}, {"<i4", DTYPE_I32},
    {"<u4", DTYPE_U32}, {"<i8", DTYPE_I64}, {"<u8", DTYPE_U64}, {"|b1", DTYPE_BOOL},
};

const char *npy_descr(enum dtype dtype) {
  for (size_t i = 0; i < sizeof known_types / sizeof *known_types; i++)
    if (known_types[i].dtype == dtype) return known_types[i].descr;
  return NULL;
}

void npy_array_free(struct npy_array *a) {
  mem_free(a->data);
  *a = (struct npy_array){0};
}

int64_t npy_array_count(const struct npy_array *a) {
  int64_t count = 1;
  for (int i = 0; i < a->rank; i++) count *= a->shape[i];
  return count;
}

/* ---- the dictionary ---- */

struct scanner {
  const char *at; /* NUL-terminated text */
  const char *what;
  struct error *err;
};

static void skip_space(struct scanner *s) {
  while (*s->at == ' ' || *s->at == '\n' || *s->at == '\t') s->at++;
}

static enum status malformed(const struct scanner *s) {
  return error_set(s->err, STATUS_REFUSED, "%s: the array's header is damaged at \"%.20s\"",
                   s->what, s->at);
}

static bool accept(struct scanner *s, const char *token) {
  skip_space(s);
  size_t length = strlen(token);
  if (strncmp(s->at, token, length) != 0) return false;
  s->at += length;
  return true;
}

static enum status scan_string(struct scanner *s, char *out, size_t capacity) {
  skip_space(s);
  char quote = *s->at;
  if (quote != '\'' && quote != '"') return malformed(s);
  const char *end = strchr(s->at + 1, quote);
  size_t length = end ? (size_t)(end - s->at - 1) : 0;
  if (!end || length >= capacity) return malformed(s);
  memcpy(out, s->at + 1, length);
  out[length] = 0;
  s->at = end + 1;
  return STATUS_OK;
}

static enum status scan_shape(struct scanner *s, struct npy_array *a) {
  if (!accept(s, "(")) return malformed(s);
  for (a->rank = 0; !accept(s, ")"); a->rank++) {
    char *end;
    if (a->rank == TENSOR_RANK_MAX)
      return error_set(s->err, STATUS_REFUSED, "%s: an array of more than %d dimensions", s->what,
                       TENSOR_RANK_MAX);
    if (!isdigit((unsigned char)*s->at) || strspn(s->at, "0123456789") > 15) return malformed(s);
    a->shape[a->rank] = strtoll(s->at, &end, 10);
    s->at = end;
    if (accept(s, ",")) continue;
    if (!accept(s, ")")) return malformed(s);
    a->rank++;
    return STATUS_OK;
  }
  return STATUS_OK;
}

static enum status scan_order(struct scanner *s) {
  if (accept(s, "False")) return STATUS_OK;
  if (!accept(s, "True")) return malformed(s);
  return error_set(s->err, STATUS_REFUSED,
                   "%s: the array is in Fortran order; save it after numpy.ascontiguousarray",
                   s->what);
}

static enum status refuse_descr(const struct scanner *s, const char *descr) {
  const char *why = descr[0] == '>'   ? "is big-endian"
                    : descr[1] == 'O' ? "holds Python objects, which are never loaded"
                                      : "is of a type that is not read";
  return error_set(s->err, STATUS_REFUSED, "%s: the array %s (\"%s\")", s->what, why, descr);
}

/* "<f4" and the like, "<U12", "|S12". */
static enum status interpret_descr(const struct scanner *s, const char *descr,
                                   struct npy_array *a) {
  for (size_t i = 0; i < sizeof known_types / sizeof *known_types; i++)
    if (!strcmp(descr, known_types[i].descr)) {
      a->kind = NPY_NUMBERS;
      a->dtype = known_types[i].dtype;
      a->item_bytes = (size_t)dtype_traits(a->dtype)->block_bytes;
      return STATUS_OK;
    }
  bool wide = !strncmp(descr, "<U", 2);
  if (!wide && strncmp(descr, "|S", 2) != 0) return refuse_descr(s, descr);
  size_t digits = strspn(descr + 2, "0123456789");
  if (digits < 1 || digits > 9 || descr[2 + digits]) return refuse_descr(s, descr);
  a->kind = wide ? NPY_UNICODE : NPY_BYTES;
  a->item_bytes = (size_t)strtoul(descr + 2, NULL, 10) * (wide ? 4 : 1);
  if (a->item_bytes <= TEXT_ITEM_LIMIT_BYTES) return STATUS_OK;
  return error_set(s->err, STATUS_REFUSED, "%s: texts of %zu bytes; at most %d are allowed",
                   s->what, a->item_bytes, TEXT_ITEM_LIMIT_BYTES);
}

static enum status scan_descr(struct scanner *s, struct npy_array *a) {
  char descr[DESCR_BYTES] = "";
  skip_space(s);
  if (*s->at == '[')
    return error_set(s->err, STATUS_REFUSED, "%s: an array of structures is not read", s->what);
  enum status status = scan_string(s, descr, sizeof descr);
  if (status != STATUS_OK) return status;
  return strlen(descr) < 3 ? refuse_descr(s, descr[0] ? descr : "??")
                           : interpret_descr(s, descr, a);
}

static enum status scan_header(struct scanner *s, struct npy_array *a) {
  static const char *const keys[] = {"descr", "fortran_order", "shape"};
  bool seen[3] = {false};
  if (!accept(s, "{")) return malformed(s);
  while (!accept(s, "}")) {
    char key[16];
    int which = -1;
    enum status status = scan_string(s, key, sizeof key);
    for (int i = 0; i < 3; i++)
      if (status == STATUS_OK && !strcmp(key, keys[i])) which = i;
    if (which < 0 || seen[which] || !accept(s, ":")) return malformed(s);
    seen[which] = true;
    status = which == 0 ? scan_descr(s, a) : which == 1 ? scan_order(s) : scan_shape(s, a);
    if (status != STATUS_OK) return status;
    if (!accept(s, ",") && *s->at != '}') return malformed(s);
  }
  skip_space(s);
  return *s->at || !seen[0] || !seen[1] || !seen[2] ? malformed(s) : STATUS_OK;
}

/* ---- the file ---- */

/* Finds the header's text: *start and *length within the bytes. */
static enum status find_header(const uint8_t *bytes, size_t size, const char *what, size_t *start,
                               size_t *length, struct error *err) {
  if (size < 10 || memcmp(bytes, MAGIC, sizeof MAGIC) != 0)
    return error_set(err, STATUS_REFUSED, "%s is not a NumPy array", what);
  uint8_t version = bytes[6];
  if (version < 1 || version > 3)
    return error_set(err, STATUS_REFUSED, "%s is of .npy version %d; 1 to 3 are read", what,
                     version);
  *start = version == 1 ? 10 : 12;
  uint32_t wide = (uint32_t)bytes[8] | (uint32_t)bytes[9] << 8;
  if (version > 1 && size >= 12) memcpy(&wide, bytes + 8, sizeof wide);
  *length = wide;
  if (size < *start || *length > HEADER_LIMIT_BYTES || *length > size - *start)
    return error_set(err, STATUS_REFUSED, "%s: the array's header is cut short or too long", what);
  if (memchr(bytes + *start, 0, *length))
    return error_set(err, STATUS_REFUSED, "%s: the array's header holds a NUL", what);
  return STATUS_OK;
}

static enum status check_size(const struct npy_array *a, size_t available, const char *what,
                              struct error *err) {
  uint64_t bytes = a->item_bytes;
  bool possible = true;
  for (int i = 0; i < a->rank; i++)
    possible = possible && !__builtin_mul_overflow(bytes, (uint64_t)a->shape[i], &bytes);
  if (possible && bytes == available) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "%s: the array's shape does not fit the %zu bytes that follow", what, available);
}

enum status npy_parse(const uint8_t *bytes, size_t size_bytes, const char *what,
                      struct npy_array *out, struct error *err) {
  *out = (struct npy_array){0};
  struct npy_array a = {0};
  size_t start = 0, length = 0;
  enum status status = find_header(bytes, size_bytes, what, &start, &length, err);
  if (status != STATUS_OK) return status;
  char *text = mem_strndup((const char *)bytes + start, length, err);
  if (!text) return STATUS_FAILED;
  struct scanner s = {text, what, err};
  status = scan_header(&s, &a);
  free(text);
  a.size_bytes = size_bytes - start - length;
  if (status == STATUS_OK) status = check_size(&a, a.size_bytes, what, err);
  if (status != STATUS_OK) return status;
  a.data = mem_alloc(a.size_bytes, 1, err);
  if (!a.data) return STATUS_FAILED;
  memcpy(a.data, bytes + start + length, a.size_bytes);
  *out = a;
  return STATUS_OK;
}

enum status npy_text(const struct npy_array *a, int64_t index, struct strbuf *out,
                     struct error *err) {
  if (a->kind == NPY_NUMBERS || index < 0 || index >= npy_array_count(a))
    return error_set(err, STATUS_REFUSED, "the array holds no text there");
  const uint8_t *item = a->data + (size_t)index * a->item_bytes;
  if (a->kind == NPY_BYTES) {
    strbuf_append(out, (const char *)item, strnlen((const char *)item, a->item_bytes));
    return STATUS_OK;
  }
  for (size_t i = 0; i < a->item_bytes; i += 4) {
    utf8proc_uint8_t encoded[4];
    uint32_t code;
    memcpy(&code, item + i, sizeof code);
    if (code == 0) break;
    utf8proc_ssize_t length = code <= 0x10ffff && (code < 0xd800 || code > 0xdfff)
                                  ? utf8proc_encode_char((utf8proc_int32_t)code, encoded)
                                  : 0;
    if (length <= 0)
      return error_set(err, STATUS_REFUSED, "the array's text holds no character U+%" PRIX32, code);
    strbuf_append(out, (const char *)encoded, (size_t)length);
  }
  return STATUS_OK;
}

void npy_format_header(struct strbuf *out, const char *descr, int rank, const int64_t *shape) {
  struct strbuf text = {0};
  strbuf_printf(&text, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
  for (int i = 0; i < rank; i++)
    strbuf_printf(&text, "%s%" PRId64 "%s", i ? ", " : "", shape[i], rank == 1 ? "," : "");
  strbuf_puts(&text, "), }");
  while ((10 + text.length + 1) % NPY_ALIGNMENT) strbuf_putc(&text, ' ');
  strbuf_putc(&text, '\n');
  strbuf_append(out, (const char *)MAGIC, sizeof MAGIC);
  const char version[4] = {1, 0, (char)(text.length & 255), (char)(text.length >> 8)};
  strbuf_append(out, version, sizeof version);
  strbuf_append(out, text.data, text.length);
  strbuf_free(&text);
}
