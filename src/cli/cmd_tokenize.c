/* tessera tokenize: text to ids and back. Texts go through byte for byte: nothing is trimmed, and
 * a decoded text gets no newline that its ids do not hold (unless --lines puts one per line). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "cli/commands.h"
#include "io/file.h"
#include "text/tokenizer.h"

struct settings {
  struct common_options common;
  bool lines, decode, no_bos, no_special;
};

static const struct option options[] = {
    {"lines", OPTION_FLAG, offsetof(struct settings, lines), NULL, 0, 0, NULL, NULL,
     "every line of the input is a text of its own"},
    {"decode", OPTION_FLAG, offsetof(struct settings, decode), NULL, 0, 0, NULL, NULL,
     "the input is ids; print their text"},
    {"no-bos", OPTION_FLAG, offsetof(struct settings, no_bos), NULL, 0, 0, NULL, NULL,
     "add no BOS or EOS, whatever the tokenizer's settings say"},
    {"no-special", OPTION_FLAG, offsetof(struct settings, no_special), NULL, 0, 0, NULL, NULL,
     "read the names of special tokens as plain text; with --decode, leave these tokens out"},
    COMMON_OPTIONS(struct settings, common)};

struct job {
  const struct settings *settings;
  struct tokenizer *tokenizer;
  struct token_ids ids; /* of one text */
  struct strbuf text;   /* of one list of ids */
  json_t *results;      /* one entry per text, or NULL */
  bool print;
};

static enum status read_stdin(struct strbuf *out, struct error *err) {
  char block[1 << 16];
  size_t got;
  while ((got = fread(block, 1, sizeof block, stdin)) > 0) strbuf_append(out, block, got);
  if (ferror(stdin)) return error_set(err, STATUS_FAILED, "standard input: %s", strerror(errno));
  return STATUS_OK;
}

static enum status parse_ids(const char *text, size_t bytes, struct token_ids *out,
                             struct error *err) {
  out->count = 0;
  for (size_t at = 0; at < bytes;) {
    if (strchr(" \t\r\n", text[at]) && text[at]) {
      at++;
      continue;
    }
    size_t start = at;
    int64_t id = 0;
    for (; at < bytes && text[at] >= '0' && text[at] <= '9' && id <= INT32_MAX; at++)
      id = id * 10 + (text[at] - '0');
    if (at == start || id > INT32_MAX ||
        (at < bytes && (!strchr(" \t\r\n", text[at]) || !text[at])))
      return error_set(err, STATUS_REFUSED,
                       "byte %zu of the input is not part of a token id; --decode wants ids with "
                       "spaces between",
                       start);
    enum status status = token_ids_push(out, (int32_t)id, err);
    if (status != STATUS_OK) return status;
  }
  return STATUS_OK;
}

static enum status run_encode(struct job *job, const char *text, size_t bytes, struct error *err) {
  unsigned flags = (job->settings->no_bos ? TOKENIZE_NO_BOS : 0) |
                   (job->settings->no_special ? TOKENIZE_NO_SPECIAL : 0);
  job->ids.count = 0;
  enum status status = tokenizer_encode(job->tokenizer, text, bytes, flags, &job->ids, err);
  if (status != STATUS_OK) return status;
  json_t *list = job->results ? json_array() : NULL;
  for (size_t i = 0; i < job->ids.count; i++) {
    if (job->print) printf(i ? " %d" : "%d", job->ids.items[i]);
    if (list) json_array_append_new(list, json_integer(job->ids.items[i]));
  }
  if (job->print) putchar('\n');
  if (list) json_array_append_new(job->results, list);
  return STATUS_OK;
}

static enum status run_decode(struct job *job, const char *text, size_t bytes, struct error *err) {
  enum status status = parse_ids(text, bytes, &job->ids, err);
  strbuf_clear(&job->text);
  if (status == STATUS_OK)
    status = tokenizer_decode(job->tokenizer, job->ids.items, job->ids.count,
                              job->settings->no_special, &job->text, err);
  if (status != STATUS_OK) return status;
  if (job->print) {
    fwrite(strbuf_text(&job->text), 1, job->text.length, stdout);
    if (job->settings->lines) putchar('\n');
  }
  if (job->results)
    json_array_append_new(job->results, json_stringn(strbuf_text(&job->text), job->text.length));
  return STATUS_OK;
}

static enum status run_text(struct job *job, const char *text, size_t bytes, struct error *err) {
  return job->settings->decode ? run_decode(job, text, bytes, err)
                               : run_encode(job, text, bytes, err);
}

static enum status run_lines(struct job *job, const char *text, size_t bytes, struct error *err) {
  size_t line = 1;
  for (size_t at = 0, length; at < bytes; at += length + 1, line++) {
    const char *end = memchr(text + at, '\n', bytes - at);
    length = end ? (size_t)(end - (text + at)) : bytes - at;
    enum status status = run_text(job, text + at, length, err);
    if (status != STATUS_OK) return error_prefix(err, "line %zu", line);
  }
  return STATUS_OK;
}

static enum status run_input(struct job *job, const char *path, struct error *err) {
  struct strbuf input = {0};
  struct file_map map = {0};
  bool from_stdin = !path || !strcmp(path, "-");
  enum status status = from_stdin ? read_stdin(&input, err) : file_map_open(&map, path, err);
  if (status == STATUS_OK) {
    const char *text = from_stdin ? strbuf_text(&input) : map.data ? (const char *)map.data : "";
    size_t bytes = from_stdin ? input.length : map.size_bytes;
    status =
        job->settings->lines ? run_lines(job, text, bytes, err) : run_text(job, text, bytes, err);
    if (status != STATUS_OK) error_prefix(err, "%s", from_stdin ? "standard input" : path);
  }
  strbuf_free(&input);
  file_map_close(&map);
  return status;
}

/* {"ids": [...]} or {"text": "..."}; with --lines the member is a list of them. */
static enum status write_json(struct job *job, struct error *err) {
  json_t *value = job->settings->lines ? json_incref(job->results)
                                       : json_incref(json_array_get(job->results, 0));
  return common_write_json(&job->settings->common,
                           json_pack("{s:o}", job->settings->decode ? "text" : "ids", value), err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  struct settings *settings = settings_pointer;
  const char *json = settings->common.json;
  common_apply(&settings->common);
  struct job job = {.settings = settings,
                    .results = json ? json_array() : NULL,
                    .print = !json || strcmp(json, "-") != 0};
  const char *input = positionals->count > 1 ? positionals->items[1] : NULL;
  enum status status = tokenizer_open(&job.tokenizer, positionals->items[0], err);
  if (status == STATUS_OK) status = run_input(&job, input, err);
  if (status == STATUS_OK && json) status = write_json(&job, err);
  tokenizer_close(job.tokenizer);
  token_ids_free(&job.ids);
  strbuf_free(&job.text);
  json_decref(job.results);
  return status;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .positionals = "MODEL [FILE|-]",
    .least_positionals = 1,
    .most_positionals = 2,
    .summary = "turn text into token ids, or ids into text",
    .description =
        "Prints the ids of FILE (standard input when it is - or missing) on one line. MODEL may "
        "be\n"
        "a model, a tokenizer.json or tokenizer.model alone, or a GGUF file that holds only a\n"
        "vocabulary.",
    .example = "tessera tokenize model.gguf --lines prompts.txt",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
