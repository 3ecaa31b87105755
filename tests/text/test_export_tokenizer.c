/* Exported tokenizers: what is written from a GGUF reads back as the same tokenizer. (That
 * transformers reads it the same way is checked by tools/compare_tokenizers.py.) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/file.h"
#include "io/gguf.h"
#include "io/json.h"
#include "support/support.h"
#include "text/tokenizer.h"

static const char *const texts[] = {
    "",
    "Hello world, it's 2024 and 3333333 things.\n\n\n  Indented\twords",
    "<s> a</s> b<unk> c <|endoftext|>  d <|user|> \n e",
    "\xe6\x88\x91\xe6\x83\xb3\xe5\x9c\xa8"
    "apple\xe5\xb7\xa5\xe4\xbd\x9c"
    "1314151\xe5\xa4\xa9\xef\xbd\x9e \xf0\x9f\xa6\x99",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa      !!!!!!!!!!!!",
    "caf\xc3\xa9 cafe\xcc\x81 \xef\xac\x81 \xc2\xbd \xd9\xa3\xd9\xa4"};

/* Path of a file in a scratch folder. */
static const char *in(const char *folder, const char *file) {
  char name[128];
  snprintf(name, sizeof name, "%s/%s", folder, file);
  return scratch_path(name);
}

static void check_same(const struct tokenizer *a, const struct tokenizer *b, const char *text,
                       unsigned flags) {
  struct token_ids x = {0}, y = {0};
  struct strbuf s = {0}, u = {0};
  struct error err = {0};
  must(tokenizer_encode(a, text, strlen(text), flags, &x, &err), err);
  must(tokenizer_encode(b, text, strlen(text), flags, &y, &err), err);
  assert_int_equal(x.count, y.count);
  if (x.count) assert_memory_equal(x.items, y.items, x.count * sizeof(int32_t));
  for (int skip_special = 0; skip_special < 2; skip_special++) {
    strbuf_clear(&s);
    strbuf_clear(&u);
    must(tokenizer_decode(a, x.items, x.count, skip_special, &s, &err), err);
    must(tokenizer_decode(b, y.items, y.count, skip_special, &u, &err), err);
    assert_string_equal(strbuf_text(&s), strbuf_text(&u));
  }
  strbuf_free(&s);
  strbuf_free(&u);
  token_ids_free(&x);
  token_ids_free(&y);
}

static void check_gguf(const char *name, bool has_template) {
  char path[128];
  snprintf(path, sizeof path, "tokenizers/ggml-vocab/ggml-vocab-%s.gguf", name);
  const char *model = shared_data(path);
  if (!model) skip();
  const char *directory = scratch_path(name);
  struct tokenizer *a, *b;
  struct error err = {0};
  assert_int_equal(mkdir(directory, 0777), 0);
  must(tokenizer_open(&a, model, &err), err);
  must(tokenizer_export(a, directory, &err), err);
  must(tokenizer_open(&b, directory, &err), err);
  assert_int_equal(tokenizer_vocab_size(a), tokenizer_vocab_size(b));
  assert_int_equal(tokenizer_bos(a), tokenizer_bos(b));
  assert_int_equal(tokenizer_eos(a), tokenizer_eos(b));
  for (int32_t id = 0; id < tokenizer_vocab_size(a); id++)
    assert_int_equal(tokenizer_is_end(a, id), tokenizer_is_end(b, id));
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    for (unsigned flags = 0; flags < 4; flags++) check_same(a, b, texts[i], flags);
  json_t *config = json_read_file(in(name, "tokenizer_config.json"), 1 << 20, &err);
  assert_int_equal(json_get_string(config, "chat_template") != NULL, has_template);
  json_decref(config);
  tokenizer_close(a);
  tokenizer_close(b);
}

static void test_byte_level(void **state) { check_gguf("gpt-2", false); }
static void test_sentencepiece(void **state) { check_gguf("llama-spm", false); }
static void test_right_strip_and_template(void **state) { check_gguf("phi-3", true); }

static void test_directories_are_copied(void **state) {
  const char *model = shared_data("models/stories260K/tokenizer.model");
  if (!model) skip();
  struct error err = {0};
  struct tokenizer *a, *b;
  char *bytes, *copy;
  size_t size, copied;
  const char *from = scratch_path("from"), *to = scratch_path("to");
  assert_int_equal(mkdir(from, 0777) | mkdir(to, 0777), 0);
  must(file_read(model, 1 << 20, &bytes, &size, &err), err);
  must(file_write_all(in("from", "tokenizer.model"), bytes, size, &err), err);
  const char config[] = "{\"add_bos_token\": false, \"add_eos_token\": true}";
  must(file_write_all(in("from", "tokenizer_config.json"), config, strlen(config), &err), err);
  must(file_write_all(in("from", "model.safetensors"), "x", 1, &err), err);
  must(tokenizer_open(&a, from, &err), err);
  must(tokenizer_export(a, to, &err), err);
  must(tokenizer_open(&b, to, &err), err);
  check_same(a, b, "Once upon a time", 0);
  must(file_read(in("to", "tokenizer.model"), 1 << 20, &copy, &copied, &err), err);
  assert_int_equal(size, copied);
  assert_memory_equal(bytes, copy, size);
  assert_false(file_exists(in("to", "model.safetensors")));
  free(bytes);
  free(copy);
  tokenizer_close(a);
  tokenizer_close(b);
}

/* Written as the keys of a GGUF and read back. Not for texts that a tokenizer normalizes. */
static void check_keys(const char *path) {
  struct error err = {0};
  struct tokenizer *a, *b;
  bool agree;
  const char *file = scratch_path("keys.gguf");
  struct gguf_builder *builder = gguf_builder_new();
  must(tokenizer_open(&a, path, &err), err);
  must(tokenizer_to_gguf(a, tokenizer_vocab_size(a) + 3, builder, &err), err);
  must(gguf_write(builder, file, NULL, 0, &err), err);
  gguf_builder_free(builder);
  must(tokenizer_open(&b, file, &err), err);
  assert_int_equal(tokenizer_vocab_size(b), tokenizer_vocab_size(a) + 3);
  assert_int_equal(tokenizer_bos(a), tokenizer_bos(b));
  assert_int_equal(tokenizer_eos(a), tokenizer_eos(b));
  must(tokenizer_agree(a, b, &agree, &err), err);
  if (!agree) fail_msg("%s: other ids from its GGUF keys", path);
  tokenizer_close(a);
  tokenizer_close(b);
}

static void test_keys(void **state) {
  check_keys(golden("tokenizer_byte_level.json"));
  check_keys(golden("tokenizer_bpe.gguf"));
  check_keys(golden("tokenizer_spm.gguf"));
}

static void test_keys_of_real_vocabularies(void **state) {
  static const char *const names[] = {"tokenizers/ggml-vocab/ggml-vocab-gpt-2.gguf",
                                      "tokenizers/ggml-vocab/ggml-vocab-llama-spm.gguf",
                                      "tokenizers/llama2_tokenizer.model"};
  if (!shared_data(names[0])) skip();
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_keys(shared_data(names[i]));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_byte_level),
                                     cmocka_unit_test(test_sentencepiece),
                                     cmocka_unit_test(test_right_strip_and_template),
                                     cmocka_unit_test(test_directories_are_copied),
                                     cmocka_unit_test(test_keys),
                                     cmocka_unit_test(test_keys_of_real_vocabularies)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
