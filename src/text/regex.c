/* PCRE2 behind the dialect of tokenizer.json: see regex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"

enum { JIT_STACK_LEAST = 32 << 10, JIT_STACK_MOST = 16 << 20 };

struct regex {
  pcre2_code *code;
};

struct regex_scratch {
  pcre2_match_data *match;
  pcre2_match_context *context;
  pcre2_jit_stack *stack;
};

/* Escapes that mean the same there and in PCRE2 with UTF and UCP. */
static bool escape_is_common(char c) {
  if ((c >= '1' && c <= '9') || c == '0') return false; /* back references, octal */
  bool alphanumeric = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return !alphanumeric || strchr("pPdDnrtfvx", c);
}

static enum status translate(const char *pattern, size_t length, struct strbuf *out,
                             struct error *err) {
  for (size_t i = 0; i < length; i++) {
    if (pattern[i] != '\\' || i + 1 == length) {
      strbuf_putc(out, pattern[i]);
      continue;
    }
    char c = pattern[++i];
    if (c == 's') {
      strbuf_puts(out, "\\p{White_Space}");
    } else if (c == 'S') {
      strbuf_puts(out, "\\P{White_Space}");
    } else if (c == 'v') {
      strbuf_puts(out, "\\x0b"); /* PCRE2's \v is a class */
    } else if (escape_is_common(c)) {
      strbuf_putc(out, '\\');
      strbuf_putc(out, c);
    } else {
      return error_set(err, STATUS_REFUSED,
                       "the pattern \"%.*s\" uses \\%c, which is not supported", (int)length,
                       pattern, c);
    }
  }
  return STATUS_OK;
}

enum status regex_new(struct regex **out, const char *pattern, size_t length, bool literal,
                      struct error *err) {
  if (!length || length > REGEX_PATTERN_BYTES_MAX)
    return error_set(err, STATUS_REFUSED, "a pattern of %zu bytes (1 to %d are possible)", length,
                     REGEX_PATTERN_BYTES_MAX);
  struct strbuf text = {0};
  struct regex *regex = mem_alloc(1, sizeof *regex, err);
  enum status status = regex ? STATUS_OK : STATUS_FAILED;
  if (status == STATUS_OK && literal) strbuf_append(&text, pattern, length);
  if (status == STATUS_OK && !literal) status = translate(pattern, length, &text, err);
  if (status == STATUS_OK) {
    int code;
    PCRE2_SIZE where;
    regex->code =
        pcre2_compile((PCRE2_SPTR)text.data, text.length,
                      PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP), &code, &where, NULL);
    if (!regex->code) {
      char reason[128] = "";
      pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
      status = error_set(err, STATUS_REFUSED, "the pattern \"%.*s\" does not compile: %s",
                         (int)length, pattern, reason);
    }
  }
  /* Without a JIT (another processor) the interpreter does the same, slower. */
  if (status == STATUS_OK) pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
  strbuf_free(&text);
  if (status == STATUS_OK)
    *out = regex;
  else
    regex_free(regex);
  return status;
}

void regex_free(struct regex *regex) {
  if (!regex) return;
  pcre2_code_free(regex->code);
  mem_free(regex);
}

struct regex_scratch *regex_scratch_new(struct error *err) {
  struct regex_scratch *s = mem_alloc(1, sizeof *s, err);
  if (!s) return NULL;
  s->match = pcre2_match_data_create(1, NULL);
  s->context = pcre2_match_context_create(NULL);
  s->stack = pcre2_jit_stack_create(JIT_STACK_LEAST, JIT_STACK_MOST, NULL);
  if (!s->match || !s->context) {
    error_set(err, STATUS_FAILED, "out of memory for pattern matching");
    regex_scratch_free(s);
    return NULL;
  }
  if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
  return s;
}

void regex_scratch_free(struct regex_scratch *s) {
  if (!s) return;
  pcre2_match_data_free(s->match);
  pcre2_match_context_free(s->context);
  if (s->stack) pcre2_jit_stack_free(s->stack);
  mem_free(s);
}

enum status regex_next(const struct regex *regex, struct regex_scratch *s, const char *text,
                       size_t bytes, size_t from, bool *found, size_t *start, size_t *end,
                       struct error *err) {
  *found = false;
  int result = pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from,
                           PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, s->match, s->context);
  if (result == PCRE2_ERROR_NOMATCH) return STATUS_OK;
  if (result < 0) {
    char reason[128] = "";
    pcre2_get_error_message(result, (PCRE2_UCHAR *)reason, sizeof reason);
    return error_set(err, STATUS_REFUSED,
                     "a pattern of the tokenizer cannot be matched at byte %zu of a piece: %s",
                     from, reason);
  }
  const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->match);
  *start = at[0];
  *end = at[1];
  *found = true;
  return STATUS_OK;
}
