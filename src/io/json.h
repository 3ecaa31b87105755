/* JSON through jansson, with tessera's error sentences and limits. Files from outside are parsed
 * with duplicate keys refused and depth bounded by jansson (2048). */
#ifndef TSR_IO_JSON_H
#define TSR_IO_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/strbuf.h"

/* Parses one JSON value; `what` names it in errors (a path). Integers beyond 64 bits become reals.
 * NUL characters in strings are refused, so that every string ends where C thinks it does. NULL
 * and a filled error on failure; json_decref the result. */
json_t *json_parse(const char *data, size_t bytes, const char *what, struct error *err);
json_t *json_read_file(const char *path, size_t limit_bytes, struct error *err);
/* Appends the value: on one line with `indent` 0, else indented by that many spaces a level.
 * Members keep their order; reals get the fewest digits that read back equal. The value must not
 * hold NaN or infinities (jansson makes none). */
void json_format(struct strbuf *out, const json_t *value, int indent);
/* Writes indented JSON with a final newline, atomically. */
enum status json_write_file(const char *path, const json_t *value, struct error *err);

/* Typed access to a member of `object`: false when absent or null; a present member of another
 * type is false with *wrong_type set (may be NULL). */
bool json_get_int(const json_t *object, const char *key, int64_t *out, bool *wrong_type);
bool json_get_real(const json_t *object, const char *key, double *out, bool *wrong_type);
bool json_get_bool(const json_t *object, const char *key, bool *out, bool *wrong_type);
const char *json_get_string(const json_t *object, const char *key);

#endif
