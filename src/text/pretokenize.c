/* The chain of pre-tokenizers: see pretokenize.h. Pieces are handed down the chain as they are
 * found, so that no list of them is ever kept. */
#include "text/pretokenize.h"

#include <string.h>

struct pretokenizer_step *pretokenizer_add(struct pretokenizer *p, enum pretokenizer_kind kind,
                                           struct error *err) {
  if (p->count == PRETOKENIZER_STEPS_MAX) {
    error_set(err, STATUS_REFUSED, "the tokenizer has more than %d pre-tokenizers",
              PRETOKENIZER_STEPS_MAX);
    return NULL;
  }
  p->steps[p->count].kind = kind;
  return &p->steps[p->count++];
}

enum status pretokenizer_add_split(struct pretokenizer *p, const char *pattern, size_t length,
                                   bool literal, enum split_behavior behavior, bool invert,
                                   struct error *err) {
  struct pretokenizer_step *step = pretokenizer_add(p, PRETOKENIZE_SPLIT, err);
  if (!step) return STATUS_REFUSED;
  step->behavior = behavior;
  step->invert = invert;
  return regex_new(&step->pattern, pattern, length, literal, err);
}

void pretokenizer_release(struct pretokenizer *p) {
  for (int i = 0; i < p->count; i++) regex_free(p->steps[i].pattern);
  p->count = 0;
}

void pretokenizer_run_release(struct pretokenizer_run *run) {
  for (int i = 0; i < PRETOKENIZER_STEPS_MAX; i++) strbuf_free(&run->buffers[i]);
}

static enum status put_piece(struct pretokenizer_run *run, int step, const char *text, size_t bytes,
                             struct error *err);

/* A split in progress: spans, matches and what lies between them, arrive in order; one may wait
 * for what follows it. */
struct split {
  struct pretokenizer_run *run;
  int step;
  const char *text;
  size_t held_start, held_end; /* empty = nothing waits */
  bool held_matches;           /* what waits began as a match */
  bool last_matched;           /* the span before was a match */
};

static enum status put_held(struct split *s, struct error *err) {
  size_t start = s->held_start, bytes = s->held_end - start;
  s->held_start = s->held_end;
  return bytes ? put_piece(s->run, s->step + 1, s->text + start, bytes, err) : STATUS_OK;
}

/* Does the new span belong to the one that waits? */
static bool joins(const struct split *s, enum split_behavior behavior, bool matches) {
  if (s->held_start == s->held_end) return false;
  switch (behavior) {
    case SPLIT_MERGED_WITH_PREVIOUS:
      return matches && !s->last_matched;
    case SPLIT_MERGED_WITH_NEXT:
      return s->held_matches && !matches;
    case SPLIT_CONTIGUOUS:
      return matches == s->last_matched;
    case SPLIT_ISOLATED:
    case SPLIT_REMOVED:
      return false;
  }
  return false;
}

static enum status put_span(struct split *s, size_t start, size_t end, bool matches,
                            struct error *err) {
  const struct pretokenizer_step *step = &s->run->pretokenizer->steps[s->step];
  if (start == end) return STATUS_OK;
  if (step->invert) matches = !matches;
  enum status status = STATUS_OK;
  if (step->behavior == SPLIT_REMOVED && matches) return status;
  if (joins(s, step->behavior, matches)) {
    s->held_end = end;
    if (step->behavior == SPLIT_MERGED_WITH_NEXT) status = put_held(s, err);
  } else {
    status = put_held(s, err);
    s->held_start = start;
    s->held_end = end;
    s->held_matches = matches;
  }
  s->last_matched = matches;
  return status;
}

static enum status run_split(struct pretokenizer_run *run, int step, const char *text, size_t bytes,
                             struct error *err) {
  struct split split = {.run = run, .step = step, .text = text};
  size_t at = 0;
  enum status status = STATUS_OK;
  while (status == STATUS_OK && at < bytes) {
    bool found;
    size_t start, end;
    status = regex_next(run->pretokenizer->steps[step].pattern, run->scratch, text, bytes, at,
                        &found, &start, &end, err);
    if (status != STATUS_OK || !found) break;
    status = put_span(&split, at, start, false, err);
    if (status == STATUS_OK) status = put_span(&split, start, end, true, err);
    at = end;
  }
  if (status == STATUS_OK) status = put_span(&split, at, bytes, false, err);
  if (status == STATUS_OK) status = put_held(&split, err);
  return status;
}

static enum status run_prefix(struct pretokenizer_run *run, int step, const char *text,
                              size_t bytes, struct error *err) {
  if (text[0] == ' ') return put_piece(run, step + 1, text, bytes, err);
  struct strbuf *buffer = &run->buffers[step];
  strbuf_clear(buffer);
  strbuf_putc(buffer, ' ');
  strbuf_append(buffer, text, bytes);
  return put_piece(run, step + 1, buffer->data, buffer->length, err);
}

static enum status run_metaspace(struct pretokenizer_run *run, int index, const char *text,
                                 size_t bytes, struct error *err) {
  const struct pretokenizer_step *step = &run->pretokenizer->steps[index];
  size_t length = strlen(step->replacement);
  struct strbuf *buffer = &run->buffers[index];
  strbuf_clear(buffer);
  bool begins = text[0] == ' ' || (bytes >= length && memcmp(text, step->replacement, length) == 0);
  bool wanted =
      step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && run->at_text_start);
  if (wanted && !begins) strbuf_puts(buffer, step->replacement);
  for (size_t i = 0; i < bytes; i++) {
    if (text[i] == ' ')
      strbuf_puts(buffer, step->replacement);
    else
      strbuf_putc(buffer, text[i]);
  }
  return put_piece(run, index + 1, buffer->data, buffer->length, err);
}

static enum status put_piece(struct pretokenizer_run *run, int step, const char *text, size_t bytes,
                             struct error *err) {
  enum status status;
  if (step == run->pretokenizer->count) {
    status = run->put(run->ctx, text, bytes, err);
    run->at_text_start = false;
    return status;
  }
  switch (run->pretokenizer->steps[step].kind) {
    case PRETOKENIZE_SPLIT:
      return run_split(run, step, text, bytes, err);
    case PRETOKENIZE_PREFIX:
      return run_prefix(run, step, text, bytes, err);
    case PRETOKENIZE_METASPACE:
      return run_metaspace(run, step, text, bytes, err);
  }
  INVARIANT(!"a pre-tokenizer kind without code");
  return STATUS_FAILED;
}

enum status pretokenize(struct pretokenizer_run *run, const char *text, size_t bytes,
                        struct error *err) {
  return bytes ? put_piece(run, 0, text, bytes, err) : STATUS_OK;
}
