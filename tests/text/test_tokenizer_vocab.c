/* The golden ids of the shared data: the same 47 awkward texts in five vocabularies. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "io/file.h"
#include "io/json.h"
#include "support/support.h"
#include "text/tokenizer.h"

static const char separator[] = "\n__ggml_vocab_test__\n";

static char *read_all(const char *path) {
  struct error err = {0};
  char *data;
  size_t bytes;
  must(file_read(path, 1 << 24, &data, &bytes, &err), err);
  return data;
}

/* Compares the ids of one text with a line of numbers; moves *line behind it. */
static void check_text(const struct tokenizer *t, const char *text, size_t bytes,
                       const char **line) {
  struct error err = {0};
  struct token_ids ids = {0};
  must(tokenizer_encode(t, text, bytes, TOKENIZE_NO_BOS, &ids, &err), err);
  size_t count = 0;
  const char *at = *line;
  while (*at && *at != '\n') {
    char *end;
    long expected = strtol(at, &end, 10);
    if (end == at) break;
    if (count >= ids.count || ids.items[count] != expected)
      fail_msg("\"%.*s\": id %zu is %d, expected %ld", (int)bytes, text, count,
               count < ids.count ? ids.items[count] : -1, expected);
    count++;
    at = end;
  }
  assert_int_equal(ids.count, count);
  *line = strchr(at, '\n');
  *line = *line ? *line + 1 : at + strlen(at);
  token_ids_free(&ids);
}

/* Decoding gives the text back, but for one leading space that SentencePiece adds. */
static void check_round_trip(const struct tokenizer *t, const char *text, size_t bytes) {
  struct error err = {0};
  struct token_ids ids = {0};
  struct strbuf back = {0}, stream = {0};
  must(tokenizer_encode(t, text, bytes, TOKENIZE_NO_BOS, &ids, &err), err);
  must(tokenizer_decode(t, ids.items, ids.count, false, &back, &err), err);
  assert_int_equal(back.length, bytes);
  assert_memory_equal(strbuf_text(&back), text, bytes);
  struct token_stream s;
  token_stream_init(&s, t);
  for (size_t i = 0; i < ids.count; i++)
    must(token_stream_put(&s, ids.items[i], &stream, &err), err);
  token_stream_finish(&s, &stream);
  assert_string_equal(strbuf_text(&stream), strbuf_text(&back));
  strbuf_free(&back);
  strbuf_free(&stream);
  token_ids_free(&ids);
}

static void check_vocabulary(const char *model, const char *cases) {
  struct error err = {0};
  char name[128];
  struct tokenizer *t;
  snprintf(name, sizeof name, "tokenizers/ggml-vocab/ggml-vocab-%s.gguf.inp", cases);
  char *inputs = read_all(shared_data(name));
  snprintf(name, sizeof name, "tokenizers/ggml-vocab/ggml-vocab-%s.gguf.out", cases);
  char *outputs = read_all(shared_data(name));
  must(tokenizer_open(&t, model, &err), err);
  const char *text = inputs, *line = outputs;
  int count = 0;
  for (;; count++) {
    const char *end = strstr(text, separator);
    size_t bytes = end ? (size_t)(end - text) : strlen(text);
    check_text(t, text, bytes, &line);
    check_round_trip(t, text, bytes);
    if (!end) break;
    text = end + strlen(separator);
  }
  assert_int_equal(*line, 0);
  assert_true(count > 40);
  tokenizer_close(t);
  free(inputs);
  free(outputs);
}

static void check_gguf(const char *name) {
  char path[128];
  snprintf(path, sizeof path, "tokenizers/ggml-vocab/ggml-vocab-%s.gguf", name);
  const char *model = shared_data(path);
  if (!model) skip();
  check_vocabulary(model, name);
}

static void test_gpt2_gguf(void **state) { check_gguf("gpt-2"); }
static void test_llama_spm_gguf(void **state) { check_gguf("llama-spm"); }
static void test_phi3_gguf(void **state) { check_gguf("phi-3"); }

static void test_llama2_model(void **state) {
  const char *model = shared_data("tokenizers/llama2_tokenizer.model");
  if (!model) skip();
  check_vocabulary(model, "llama-spm");
}

static void test_llama3_model(void **state) {
  const char *model = shared_data("tokenizers/llama3_tokenizer.model");
  if (!model) skip();
  check_vocabulary(model, "llama-bpe");
}

/* A tokenizer.json from a vocabulary and its merges, as transformers writes it. */
static const char *write_json(const char *vocab, const char *merges, const char *normalizer,
                              const char *pretokenizer, const char *name) {
  struct error err = {0};
  json_t *tokens = json_read_file(shared_data(vocab), 1 << 24, &err);
  assert_non_null(tokens);
  json_t *list = json_array();
  char *text = read_all(shared_data(merges)), *rest = text;
  for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n"))
    if (*line && strncmp(line, "#version", 8)) json_array_append_new(list, json_string(line));
  json_t *root = json_pack("{s:o?, s:o, s:{s:s}, s:{s:s, s:o, s:o}}", "normalizer",
                           normalizer ? json_pack("{s:s}", "type", normalizer) : NULL,
                           "pre_tokenizer", json_loads(pretokenizer, 0, NULL), "decoder", "type",
                           "ByteLevel", "model", "type", "BPE", "vocab", tokens, "merges", list);
  const char *path = scratch_path(name);
  must(json_write_file(path, root, &err), err);
  json_decref(root);
  free(text);
  return path;
}

static void test_qwen_json(void **state) {
  if (!shared_data("tokenizers/qwen2.5_vocab.json")) skip();
  check_vocabulary(
      write_json("tokenizers/qwen2.5_vocab.json", "tokenizers/qwen2.5_merges.txt", "NFC",
                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                 "{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
                 "\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
                 "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},"
                 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}",
                 "qwen.json"),
      "qwen2");
}

static void test_gpt2_json(void **state) {
  if (!shared_data("tokenizers/gpt2_vocab.json")) skip();
  check_vocabulary(write_json("tokenizers/gpt2_vocab.json", "tokenizers/gpt2_merges.txt", NULL,
                              "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "gpt2.json"),
                   "gpt-2");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_gpt2_gguf),    cmocka_unit_test(test_llama_spm_gguf),
      cmocka_unit_test(test_phi3_gguf),    cmocka_unit_test(test_llama2_model),
      cmocka_unit_test(test_llama3_model), cmocka_unit_test(test_qwen_json),
      cmocka_unit_test(test_gpt2_json)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
