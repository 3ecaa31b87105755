/* JSON: see json.h. */
#include "io/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "io/file.h"

/* Largest magnitude below which every integer is a double. */
static const double EXACT_INTEGER = 9007199254740992.0;

/* Gives back their type to the integers of a document that had to be read as doubles. */
static json_t *restore_integers(json_t *value) {
  const char *key;
  json_t *item;
  size_t index;
  void *next;
  json_object_foreach_safe(value, next, key, item) {
    json_object_set_new(value, key, restore_integers(json_incref(item)));
  }
  json_array_foreach(value, index, item) {
    json_array_set_new(value, index, restore_integers(json_incref(item)));
  }
  double real = json_real_value(value);
  if (!json_is_real(value) || real != floor(real) || fabs(real) > EXACT_INTEGER) return value;
  json_decref(value);
  return json_integer((json_int_t)real);
}

json_t *json_parse(const char *data, size_t bytes, const char *what, struct error *err) {
  const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
  json_error_t wrong;
  json_t *value = json_loadb(data ? data : "", data ? bytes : 0, flags, &wrong);
  /* Tokenizer settings of Hugging Face hold integers such as 10^30 for "no limit". */
  if (!value && json_error_code(&wrong) == json_error_numeric_overflow) {
    value = json_loadb(data, bytes, flags | JSON_DECODE_INT_AS_REAL, &wrong);
    if (value) value = restore_integers(value);
  }
  if (!value)
    error_set(err, STATUS_REFUSED, "%s: no valid JSON in line %d, column %d: %s", what, wrong.line,
              wrong.column, wrong.text);
  return value;
}

json_t *json_read_file(const char *path, size_t limit_bytes, struct error *err) {
  char *data;
  size_t bytes;
  if (file_read(path, limit_bytes, &data, &bytes, err) != STATUS_OK) return NULL;
  json_t *value = json_parse(data, bytes, path, err);
  free(data);
  return value;
}

/* ---- writing ---- */

/* The shortest decimal that reads back as the same double, and that stays a real number. */
static void format_real(struct strbuf *out, double value) {
  char text[40];
  for (int digits = 15; digits <= 17; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, value);
    if (strtod(text, NULL) == value) break;
  }
  strbuf_puts(out, text);
  if (!strpbrk(text, ".en")) strbuf_puts(out, ".0");
}

static void format_string(struct strbuf *out, const char *text, size_t length) {
  strbuf_putc(out, '"');
  for (size_t i = 0; i < length; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\')
      strbuf_printf(out, "\\%c", c);
    else if (c == '\n')
      strbuf_puts(out, "\\n");
    else if (c == '\t')
      strbuf_puts(out, "\\t");
    else if (c < 0x20)
      strbuf_printf(out, "\\u%04x", c);
    else
      strbuf_putc(out, (char)c);
  }
  strbuf_putc(out, '"');
}

static void new_line(struct strbuf *out, int indent, int depth) {
  if (indent) strbuf_printf(out, "\n%*s", indent * depth, "");
}

static void format_value(struct strbuf *out, const json_t *value, int indent, int depth);

static void format_object(struct strbuf *out, const json_t *value, int indent, int depth) {
  const char *key, *comma = "";
  json_t *item;
  strbuf_putc(out, '{');
  json_object_foreach((json_t *)value, key, item) {
    strbuf_puts(out, comma);
    comma = indent ? "," : ", ";
    new_line(out, indent, depth + 1);
    format_string(out, key, strlen(key));
    strbuf_puts(out, ": ");
    format_value(out, item, indent, depth + 1);
  }
  if (*comma) new_line(out, indent, depth);
  strbuf_putc(out, '}');
}

/* Arrays of numbers stay on one line. */
static void format_array(struct strbuf *out, const json_t *value, int indent, int depth) {
  size_t index;
  json_t *item;
  bool flat = !indent || !json_array_size(value) || json_is_number(json_array_get(value, 0));
  strbuf_putc(out, '[');
  json_array_foreach(value, index, item) {
    if (index) strbuf_puts(out, flat ? ", " : ",");
    if (!flat) new_line(out, indent, depth + 1);
    format_value(out, item, indent, depth + 1);
  }
  if (!flat) new_line(out, indent, depth);
  strbuf_putc(out, ']');
}

static void format_value(struct strbuf *out, const json_t *value, int indent, int depth) {
  switch (json_typeof(value)) {
    case JSON_OBJECT:
      format_object(out, value, indent, depth);
      break;
    case JSON_ARRAY:
      format_array(out, value, indent, depth);
      break;
    case JSON_STRING:
      format_string(out, json_string_value(value), json_string_length(value));
      break;
    case JSON_INTEGER:
      strbuf_printf(out, "%lld", (long long)json_integer_value(value));
      break;
    case JSON_REAL:
      format_real(out, json_real_value(value));
      break;
    case JSON_TRUE:
      strbuf_puts(out, "true");
      break;
    case JSON_FALSE:
      strbuf_puts(out, "false");
      break;
    case JSON_NULL:
      strbuf_puts(out, "null");
      break;
  }
}

void json_format(struct strbuf *out, const json_t *value, int indent) {
  format_value(out, value, indent, 0);
}

enum status json_write_file(const char *path, const json_t *value, struct error *err) {
  struct strbuf text = {0};
  json_format(&text, value, 2);
  strbuf_putc(&text, '\n');
  enum status status = file_write_all(path, text.data, text.length, err);
  strbuf_free(&text);
  return status;
}

/* ---- members ---- */

/* The member, or NULL when it is absent or null; *wrong_type (if wanted) starts as false. */
static const json_t *member(const json_t *object, const char *key, bool *wrong_type) {
  if (wrong_type) *wrong_type = false;
  const json_t *value = json_object_get(object, key);
  return json_is_null(value) ? NULL : value;
}

static bool found(bool right, const json_t *value, bool *wrong_type) {
  if (wrong_type) *wrong_type = value && !right;
  return right;
}

bool json_get_int(const json_t *object, const char *key, int64_t *out, bool *wrong_type) {
  const json_t *value = member(object, key, wrong_type);
  double real = json_real_value(value);
  bool whole = json_is_real(value) && real == floor(real) && fabs(real) <= EXACT_INTEGER;
  if (json_is_integer(value)) *out = json_integer_value(value);
  if (whole) *out = (int64_t)real;
  return found(whole || json_is_integer(value), value, wrong_type);
}

bool json_get_real(const json_t *object, const char *key, double *out, bool *wrong_type) {
  const json_t *value = member(object, key, wrong_type);
  if (json_is_number(value)) *out = json_number_value(value);
  return found(json_is_number(value), value, wrong_type);
}

bool json_get_bool(const json_t *object, const char *key, bool *out, bool *wrong_type) {
  const json_t *value = member(object, key, wrong_type);
  if (json_is_boolean(value)) *out = json_is_true(value);
  return found(json_is_boolean(value), value, wrong_type);
}

const char *json_get_string(const json_t *object, const char *key) {
  return json_string_value(json_object_get(object, key));
}
