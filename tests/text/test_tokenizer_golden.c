/* Small tokenizers of every kind against tokenizers, sentencepiece and llama.cpp, text by text
 * (tools/golden/tokenizers.py), and what the golden files cannot say: refusals, streams, pieces of
 * odd length, threads. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/file.h"
#include "io/json.h"
#include "support/support.h"
#include "text/tokenizer.h"

static struct tokenizer *open_golden(const char *name) {
  struct error err = {0};
  struct tokenizer *t;
  must(tokenizer_open(&t, golden(name), &err), err);
  return t;
}

static json_t *read_expected(void) {
  struct error err = {0};
  json_t *root;
  char *data;
  size_t bytes;
  must(file_read(golden("tokenizer_expected.json"), 1 << 20, &data, &bytes, &err), err);
  root = json_loadb(data, bytes, JSON_ALLOW_NUL, NULL); /* one of the texts holds U+0000 */
  free(data);
  assert_non_null(root);
  return root;
}

/* ---- golden ids and texts ---- */

static void check_ids(const struct token_ids *ids, const json_t *expected, const char *what) {
  for (size_t i = 0; i < json_array_size(expected); i++)
    if (i >= ids->count ||
        ids->items[i] != (int32_t)json_integer_value(json_array_get(expected, i)))
      fail_msg("%s: id %zu is %d, expected %lld", what, i, i < ids->count ? ids->items[i] : -1,
               (long long)json_integer_value(json_array_get(expected, i)));
  if (ids->count != json_array_size(expected))
    fail_msg("%s: %zu ids, expected %zu", what, ids->count, json_array_size(expected));
}

static void check_one(const struct tokenizer *t, const json_t *text, const json_t *expected,
                      unsigned flags, const char *name) {
  struct error err = {0};
  struct token_ids ids = {0};
  struct strbuf decoded = {0}, what = {0};
  strbuf_printf(&what, "%s, \"%s\"", name, json_string_value(text));
  must(tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &ids, &err),
       err);
  check_ids(&ids, json_array_get(expected, 0), strbuf_text(&what));
  const json_t *back = json_array_get(expected, 1);
  if (back) {
    must(tokenizer_decode(t, ids.items, ids.count, true, &decoded, &err), err);
    if (decoded.length != json_string_length(back) ||
        memcmp(strbuf_text(&decoded), json_string_value(back), decoded.length))
      fail_msg("%s decodes to \"%s\", expected \"%s\"", strbuf_text(&what), strbuf_text(&decoded),
               json_string_value(back));
  }
  strbuf_free(&decoded);
  strbuf_free(&what);
  token_ids_free(&ids);
}

static void check_all(const struct tokenizer *t, const json_t *texts, const json_t *expected,
                      unsigned flags, const char *name) {
  assert_int_equal(json_array_size(texts), json_array_size(expected));
  for (size_t i = 0; i < json_array_size(texts); i++)
    check_one(t, json_array_get(texts, i), json_array_get(expected, i), flags, name);
}

static void test_golden(void **state) {
  json_t *root = read_expected(), *one;
  const char *name;
  size_t checked = 0;
  json_object_foreach(root, name, one) {
    if (!strcmp(name, "texts")) continue;
    struct tokenizer *t = open_golden(name);
    const json_t *texts = json_object_get(root, "texts"), *ids = json_object_get(one, "ids");
    /* sentencepiece adds no BOS by itself and knows no special texts */
    bool bare = strstr(name, ".model") != NULL;
    if (ids) check_all(t, texts, ids, 0, name);
    check_all(t, texts, json_object_get(one, "plain"),
              TOKENIZE_NO_SPECIAL | (bare ? TOKENIZE_NO_BOS : 0), name);
    tokenizer_close(t);
    checked++;
  }
  assert_int_equal(checked, 7);
  json_decref(root);
}

static const char *const all_names[] = {"tokenizer_byte_level.json", "tokenizer_llama_style.json",
                                        "tokenizer_metaspace.json",  "tokenizer_rules.model",
                                        "tokenizer_fallback.model",  "tokenizer_bpe.gguf",
                                        "tokenizer_spm.gguf"};
enum { NAMES = sizeof all_names / sizeof *all_names };

/* A stream gives what decoding at once gives, whole characters at a time. */
static void test_streams(void **state) {
  static const char text[] =
      "na\xc3\xafve \xe6\x88\x91\xe6\x83\xb3 \xf0\x9f\xa6\x99\xf0\x9f\x91\x8d the end";
  for (int i = 0; i < NAMES; i++) {
    struct tokenizer *t = open_golden(all_names[i]);
    struct token_ids ids = {0};
    struct strbuf whole = {0}, streamed = {0};
    struct error err = {0};
    must(tokenizer_encode(t, text, strlen(text), 0, &ids, &err), err);
    must(tokenizer_decode(t, ids.items, ids.count, true, &whole, &err), err);
    struct token_stream s;
    token_stream_init(&s, t);
    for (size_t k = 0; k < ids.count; k++) {
      size_t before = streamed.length;
      must(token_stream_put(&s, ids.items[k], &streamed, &err), err);
      assert_true(before == streamed.length || (streamed.data[before] & 0xc0) != 0x80);
    }
    token_stream_finish(&s, &streamed);
    assert_string_equal(strbuf_text(&whole), strbuf_text(&streamed));
    assert_int_equal(token_stream_put(&s, 1 << 20, &streamed, &err), STATUS_REFUSED);
    strbuf_free(&whole);
    strbuf_free(&streamed);
    token_ids_free(&ids);
    tokenizer_close(t);
  }
}

/* A character that never becomes whole is replaced: at the end, and in the middle. */
static void test_broken_characters(void **state) {
  struct tokenizer *t = open_golden("tokenizer_byte_level.json");
  struct token_ids ids = {0};
  struct strbuf out = {0};
  struct error err = {0};
  static const char llama[] = "\xf0\x9f\xa6\x99"; /* four bytes, four tokens at most */
  must(tokenizer_encode(t, llama, 4, TOKENIZE_NO_BOS, &ids, &err), err);
  assert_true(ids.count > 1);
  must(tokenizer_decode(t, ids.items, ids.count - 1, true, &out, &err), err);
  assert_string_equal(strbuf_text(&out), "\xef\xbf\xbd");
  struct token_stream s;
  strbuf_clear(&out);
  token_stream_init(&s, t);
  must(token_stream_put(&s, ids.items[0], &out, &err), err);
  assert_int_equal(out.length, 0);
  ids.count = 0;
  must(tokenizer_encode(t, "a", 1, TOKENIZE_NO_BOS, &ids, &err), err);
  must(token_stream_put(&s, ids.items[0], &out, &err), err);
  token_stream_finish(&s, &out);
  assert_string_equal(strbuf_text(&out),
                      "\xef\xbf\xbd"
                      "a");
  strbuf_free(&out);
  token_ids_free(&ids);
  tokenizer_close(t);
}

static void test_invalid_utf8_is_refused(void **state) {
  static const struct {
    const char *text;
    size_t bytes;
    const char *offset;
  } bad[] = {{"abc\xff", 4, "byte 3"},          {"\x80", 1, "byte 0"},
             {"a\xc0\x80", 3, "byte 1"},        {"12345678\xed\xa0\x80z", 12, "byte 8"},
             {"\xf4\x90\x80\x80", 4, "byte 0"}, {"ok\xe2\x82", 4, "byte 2"}};
  struct tokenizer *t = open_golden("tokenizer_byte_level.json");
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    struct token_ids ids = {0};
    struct error err = {0};
    assert_int_equal(tokenizer_encode(t, bad[i].text, bad[i].bytes, 0, &ids, &err), STATUS_REFUSED);
    assert_non_null(strstr(err.text, bad[i].offset));
    assert_int_equal(ids.count, 0);
    token_ids_free(&ids);
  }
  tokenizer_close(t);
}

/* Long texts take the way of the cache and of many heap merges; they give what their parts give. */
static void test_long_texts(void **state) {
  enum { REPEATS = 3000 };
  static const char line[] = "The quick brown fox, 123 times; \xe6\x88\x91 \xc3\xa9t\xc3\xa9.\n";
  for (int i = 0; i < NAMES; i++) {
    struct tokenizer *t = open_golden(all_names[i]);
    struct strbuf text = {0};
    struct token_ids once = {0}, twice = {0}, many = {0};
    struct error err = {0};
    for (int k = 0; k < REPEATS; k++) strbuf_puts(&text, line);
    must(tokenizer_encode(t, line, strlen(line), TOKENIZE_NO_BOS, &once, &err), err);
    must(tokenizer_encode(t, text.data, 2 * strlen(line), TOKENIZE_NO_BOS, &twice, &err), err);
    must(tokenizer_encode(t, text.data, text.length, TOKENIZE_NO_BOS, &many, &err), err);
    size_t step = twice.count - once.count;
    assert_int_equal(many.count, once.count + (REPEATS - 1) * step);
    for (size_t k = 2 * step; k + 2 * step < many.count; k++)
      assert_int_equal(many.items[k], many.items[k - step]);
    token_ids_free(&once);
    token_ids_free(&twice);
    token_ids_free(&many);
    strbuf_free(&text);
    tokenizer_close(t);
  }
}

static void test_one_long_word(void **state) {
  enum { BYTES = 300000 };
  char *text = malloc(BYTES);
  memset(text, 'a', BYTES);
  for (int i = 0; i < NAMES; i++) {
    struct tokenizer *t = open_golden(all_names[i]);
    struct token_ids ids = {0};
    struct strbuf back = {0};
    struct error err = {0};
    must(tokenizer_encode(t, text, BYTES, TOKENIZE_NO_BOS, &ids, &err), err);
    must(tokenizer_decode(t, ids.items, ids.count, true, &back, &err), err);
    assert_int_equal(back.length, BYTES);
    token_ids_free(&ids);
    strbuf_free(&back);
    tokenizer_close(t);
  }
  free(text);
}

static void *encode_again(void *argument) {
  const struct tokenizer *t = argument;
  static const char text[] = "One tokenizer, several threads: the same ids every time. 42";
  struct token_ids ids = {0};
  uintptr_t sum = 0;
  for (int k = 0; k < 50; k++) {
    ids.count = 0;
    if (tokenizer_encode(t, text, strlen(text), 0, &ids, NULL)) return NULL;
    for (size_t i = 0; i < ids.count; i++) sum = sum * 31 + (uintptr_t)ids.items[i];
  }
  token_ids_free(&ids);
  return (void *)sum;
}

static void test_threads(void **state) {
  struct tokenizer *t = open_golden("tokenizer_byte_level.json");
  pthread_t threads[4];
  void *expected = encode_again(t), *result;
  assert_non_null(expected);
  for (int i = 0; i < 4; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, encode_again, t), 0);
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], &result);
    assert_ptr_equal(result, expected);
  }
  tokenizer_close(t);
}

/* ---- what is not supported is refused by name ---- */

static void check_refused(const char *members, const char *reason) {
  struct strbuf text = {0};
  struct error err = {0};
  struct tokenizer *t = NULL;
  const char *path = scratch_path("refused.json");
  strbuf_printf(&text, "{%s}", members);
  must(file_write_all(path, text.data, text.length, &err), err);
  assert_int_equal(tokenizer_open(&t, path, &err), STATUS_REFUSED);
  if (!strstr(err.text, reason)) fail_msg("\"%s\" does not say \"%s\"", err.text, reason);
  assert_null(t);
  strbuf_free(&text);
}

#define TINY "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void test_refusals(void **state) {
  check_refused("\"model\":{\"type\":\"Unigram\",\"vocab\":[]}", "Unigram");
  check_refused("\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}", "WordPiece");
  check_refused("\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}", "\"b\", which is missing");
  check_refused("\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}", "merge 0");
  check_refused("\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", "the id 0");
  check_refused("\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}", "out of range");
  check_refused("\"model\":{\"vocab\":{\"a\":99999999},\"merges\":[]}", "out of range");
  check_refused("\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}", "dropout");
  check_refused("\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"x\"}", "\"x\"");
  check_refused("\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}",
                "</w>");
  check_refused(TINY ",\"normalizer\":{\"type\":\"BertNormalizer\"}", "BertNormalizer");
  check_refused(TINY ",\"normalizer\":{\"type\":\"Precompiled\"}", "Precompiled");
  check_refused(TINY ",\"pre_tokenizer\":{\"type\":\"Whitespace\"}", "\"Whitespace\"");
  check_refused(TINY
                ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},"
                "\"behavior\":\"Isolated\"}",
                "\\w");
  check_refused(TINY
                ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
                "\"behavior\":\"Isolated\"}",
                "does not compile");
  check_refused(TINY
                ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
                "\"ByteLevel\"},{\"type\":\"Digits\"}]}",
                "behind ByteLevel");
  check_refused(TINY ",\"post_processor\":{\"type\":\"BertProcessing\"}", "BertProcessing");
  check_refused(TINY ",\"decoder\":{\"type\":\"WordPiece\"}", "WordPiece");
  check_refused(TINY ",\"added_tokens\":[{\"id\":1,\"content\":\"c\"}]", "the id 1");
  check_refused("\"model\":3", "model");
}

static void test_missing_files(void **state) {
  struct tokenizer *t = NULL;
  struct error err = {0};
  assert_int_not_equal(tokenizer_open(&t, scratch_path("nothing.json"), &err), STATUS_OK);
  assert_non_null(strstr(err.text, "nothing.json"));
  const char *empty = scratch_path("empty");
  assert_int_equal(mkdir(empty, 0777), 0);
  assert_int_equal(tokenizer_open(&t, empty, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "tokenizer.json"));
}

/* ---- settings beside a tokenizer ---- */

static void write_beside(const char *folder, const char *file, const char *data, size_t bytes) {
  char name[64];
  struct error err = {0};
  snprintf(name, sizeof name, "%s/%s", folder, file);
  must(file_write_all(scratch_path(name), data, bytes, &err), err);
}

static struct tokenizer *open_with(const char *source, const char *target, const char *config,
                                   const char *generation) {
  struct error err = {0};
  struct tokenizer *t;
  char *data;
  size_t bytes;
  static int number;
  char name[32];
  snprintf(name, sizeof name, "settings%d", number++);
  const char *folder = scratch_path(name);
  assert_int_equal(mkdir(folder, 0777), 0);
  must(file_read(golden(source), 1 << 20, &data, &bytes, &err), err);
  write_beside(name, target, data, bytes);
  if (config) write_beside(name, "tokenizer_config.json", config, strlen(config));
  if (generation) write_beside(name, "generation_config.json", generation, strlen(generation));
  must(tokenizer_open(&t, folder, &err), err);
  free(data);
  return t;
}

/* First and last id of "a"; closes the tokenizer. */
static void check_ends(struct tokenizer *t, bool bos, bool eos) {
  struct token_ids ids = {0};
  struct error err = {0};
  must(tokenizer_encode(t, "a", 1, 0, &ids, &err), err);
  assert_int_equal(ids.items[0] == tokenizer_bos(t), bos);
  assert_int_equal(ids.items[ids.count - 1] == tokenizer_eos(t), eos);
  token_ids_free(&ids);
  tokenizer_close(t);
}

static void test_bos_and_eos_settings(void **state) {
  const char *model = "tokenizer_fallback.model", *json = "tokenizer_byte_level.json";
  const char *names = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
  check_ends(open_with(model, "tokenizer.model", NULL, NULL), true, false);
  check_ends(open_with(model, "tokenizer.model", names, NULL), true, false);
  check_ends(open_with(model, "tokenizer.model",
                       "{\"add_bos_token\": false, \"add_eos_token\": true}", NULL),
             false, true);
  check_ends(open_with(json, "tokenizer.json", names, NULL), true, true);
  check_ends(open_with(json, "tokenizer.json",
                       "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_bos_token\": false,"
                       " \"add_eos_token\": false}",
                       NULL),
             true, true); /* its post-processor decides */
}

static void test_end_ids(void **state) {
  struct tokenizer *t =
      open_with("tokenizer_fallback.model", "tokenizer.model", NULL, "{\"eos_token_id\": [7, 2]}");
  assert_true(tokenizer_is_end(t, 7));
  assert_true(tokenizer_is_end(t, 2));
  assert_false(tokenizer_is_end(t, 1));
  tokenizer_close(t);
}

static void test_added_tokens_beside_a_model(void **state) {
  struct tokenizer *t = open_with(
      "tokenizer_fallback.model", "tokenizer.model",
      "{\"added_tokens_decoder\": {\"520\": {\"content\": \"<|im_end|>\", \"special\": true}}}",
      NULL);
  struct token_ids ids = {0};
  struct error err = {0};
  must(tokenizer_encode(t, "<|im_end|>", 10, TOKENIZE_NO_BOS, &ids, &err), err);
  assert_int_equal(ids.count, 1);
  assert_int_equal(ids.items[0], 520);
  assert_true(tokenizer_is_end(t, 520));
  assert_int_equal(tokenizer_vocab_size(t), 521);
  token_ids_free(&ids);
  tokenizer_close(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),
                                     cmocka_unit_test(test_streams),
                                     cmocka_unit_test(test_broken_characters),
                                     cmocka_unit_test(test_invalid_utf8_is_refused),
                                     cmocka_unit_test(test_long_texts),
                                     cmocka_unit_test(test_one_long_word),
                                     cmocka_unit_test(test_threads),
                                     cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_missing_files),
                                     cmocka_unit_test(test_bos_and_eos_settings),
                                     cmocka_unit_test(test_end_ids),
                                     cmocka_unit_test(test_added_tokens_beside_a_model)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
