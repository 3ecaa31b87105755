/* Corpora by name, windows, and the seeded order of draws. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "data/windows.h"
#include "io/file.h"
#include "support/support.h"

static struct tokenizer *open_tokenizer(const char *name) {
  const char *path = golden(name);
  struct error err = {0};
  struct tokenizer *t;
  must(tokenizer_open(&t, path, &err), err);
  return t;
}

static const char small[] = "tokenizer_fallback.model";

static const char *write_text(const char *name, const char *text, size_t bytes) {
  struct error err = {0};
  const char *path = scratch_path(name);
  must(file_write_all(path, text, bytes, &err), err);
  return path;
}

static void load(struct corpus *corpus, const char *path, const struct tokenizer *t,
                 int64_t limit) {
  struct error err = {0};
  must(corpus_load(corpus, path, t, limit, &err), err);
}

/* Lines of some length with all kinds of characters; free() it. */
static char *sample_text(size_t lines, size_t *bytes) {
  char *text = malloc(lines * 80);
  size_t at = 0;
  for (size_t i = 0; i < lines; i++)
    at += (size_t)sprintf(text + at,
                          "Line %zu: the qu\xc3\xa4"
                          "ck fox, \xe6\x97\xa5\xe6\x9c\xac!\n",
                          i);
  *bytes = at;
  return text;
}

static void test_plain_is_one_document(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  struct corpus corpus;
  load(&corpus, write_text("a.txt", "Once upon a time", 16), t, 0);
  assert_int_equal(corpus.documents, 1);
  assert_int_equal(corpus.ids.items[0], tokenizer_bos(t));
  for (size_t i = 1; i < corpus.ids.count; i++)
    assert_int_not_equal(corpus.ids.items[i], tokenizer_bos(t));
  assert_int_equal(corpus.document_start[1], corpus.ids.count);
  assert_int_equal(corpus.text_bytes, 16);
  corpus_free(&corpus);
  tokenizer_close(t);
}

static void test_limit_is_a_prefix(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  size_t bytes;
  char *text = sample_text(40000, &bytes);
  const char *path = write_text("long.txt", text, bytes);
  struct corpus all, part;
  load(&all, path, t, 0);
  const int64_t limits[] = {1, 100, 5000, 200000, (int64_t)all.ids.count + 5};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    load(&part, path, t, limits[i]);
    size_t expected = (size_t)limits[i] < all.ids.count ? (size_t)limits[i] : all.ids.count;
    assert_int_equal(part.ids.count, expected);
    assert_memory_equal(part.ids.items, all.ids.items, expected * sizeof(int32_t));
    assert_int_equal(part.document_start[1], expected);
    corpus_free(&part);
  }
  corpus_free(&all);
  free(text);
  tokenizer_close(t);
}

static const char three[] =
    "{\"text\": \"One day\"}\n\n{\"text\": \"Two \\u00e4 days\", \"n\": 1}\r\n{\"text\": "
    "\"Three\"}";

static void check_three(const char *path, const struct tokenizer *t) {
  struct corpus corpus;
  load(&corpus, path, t, 0);
  assert_int_equal(corpus.documents, 3);
  for (size_t d = 0; d < 3; d++)
    assert_int_equal(corpus.ids.items[corpus.document_start[d]], tokenizer_bos(t));
  struct token_ids second = {0};
  struct error err = {0};
  must(tokenizer_encode(t, "Two \xc3\xa4 days", 11, 0, &second, &err), err);
  assert_int_equal(corpus.document_start[2] - corpus.document_start[1], second.count);
  assert_memory_equal(corpus.ids.items + corpus.document_start[1], second.items,
                      second.count * sizeof(int32_t));
  token_ids_free(&second);
  corpus_free(&corpus);
}

static const char *write_gz(const char *name, const char *text, size_t bytes) {
  const char *path = scratch_path(name);
  gzFile f = gzopen(path, "wb");
  assert_int_equal(gzwrite(f, text, (unsigned)bytes), (int)bytes);
  gzclose(f);
  return path;
}

static const char *write_zst(const char *name, const char *text, size_t bytes) {
  size_t most = ZSTD_compressBound(bytes);
  char *packed = malloc(most);
  size_t n = ZSTD_compress(packed, most, text, bytes, 3);
  const char *path = write_text(name, packed, n);
  free(packed);
  return path;
}

static void test_jsonl_plain_and_packed(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  check_three(write_text("a.jsonl", three, strlen(three)), t);
  check_three(write_gz("a.jsonl.gz", three, strlen(three)), t);
  check_three(write_zst("a.jsonl.zst", three, strlen(three)), t);
  tokenizer_close(t);
}

static void test_nul_is_a_character(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  static const char line[] = "{\"text\": \"a\\u0000b\"}\n";
  struct corpus corpus;
  struct token_ids ids = {0};
  struct error err = {0};
  load(&corpus, write_text("nul.jsonl", line, strlen(line)), t, 0);
  must(tokenizer_encode(t, "a\0b", 3, 0, &ids, &err), err);
  assert_int_equal(corpus.ids.count, ids.count);
  assert_memory_equal(corpus.ids.items, ids.items, ids.count * sizeof(int32_t));
  token_ids_free(&ids);
  corpus_free(&corpus);
  tokenizer_close(t);
}

static void test_packed_text(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  size_t bytes;
  char *text = sample_text(20000, &bytes);
  struct corpus plain, packed;
  load(&plain, write_text("b.txt", text, bytes), t, 0);
  const char *paths[] = {write_gz("b.txt.gz", text, bytes), write_zst("b.txt.zst", text, bytes)};
  for (int i = 0; i < 2; i++) {
    load(&packed, paths[i], t, 0);
    assert_int_equal(packed.ids.count, plain.ids.count);
    assert_memory_equal(packed.ids.items, plain.ids.items, plain.ids.count * sizeof(int32_t));
    corpus_free(&packed);
  }
  corpus_free(&plain);
  free(text);
  tokenizer_close(t);
}

static void check_refused(const char *path, const struct tokenizer *t, const char *reason) {
  struct corpus corpus;
  struct error err = {0};
  assert_int_equal(corpus_load(&corpus, path, t, 0, &err), STATUS_REFUSED);
  if (!strstr(err.text, reason)) fail_msg("\"%s\" does not say \"%s\"", err.text, reason);
  assert_null(corpus.ids.items);
}

static void test_bad_files_are_refused(void **state) {
  struct tokenizer *t = open_tokenizer(small);
  size_t bytes;
  char *text = sample_text(30000, &bytes), *packed;
  struct error err = {0};
  check_refused(scratch_path("missing.txt"), t, "No such file");
  check_refused(scratch(), t, "directory");
  check_refused(write_text("latin1.txt", "caf\xe9 au lait", 12), t, "byte 3");
  check_refused(write_text("cut.txt", "caf\xc3", 4), t, "byte 3");
  check_refused(write_text("c.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n", 25), t, "line 2");
  check_refused(write_text("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b", 23), t, "line 2");
  check_refused(write_text("e.txt.zst", text, 1000), t, "unpacked");
  check_refused(write_text("h.txt.gz", text, 1000), t, "gzip");
  packed = NULL;
  const char *whole[] = {write_gz("f.gz", text, bytes), write_zst("f.zst", text, bytes)};
  const char *cut[] = {"g.gz", "g.zst"};
  for (int i = 0; i < 2; i++) {
    size_t size;
    must(file_read(whole[i], 1 << 24, &packed, &size, &err), err);
    check_refused(write_text(cut[i], packed, size / 2), t, "breaks off");
    /* The name decides: packed bytes under a plain name are no text. */
    check_refused(write_text("packed.txt", packed, size), t, "UTF-8");
    free(packed);
  }
  free(text);
  tokenizer_close(t);
}

/* A corpus of made-up ids in documents of the given sizes. */
static struct corpus make_corpus(const size_t *sizes, size_t documents) {
  struct corpus c = {.documents = documents};
  c.document_start = calloc(documents + 1, sizeof *c.document_start);
  struct error err = {0};
  for (size_t d = 0; d < documents; d++) {
    for (size_t i = 0; i < sizes[d]; i++)
      must(token_ids_push(&c.ids, (int32_t)c.ids.count, &err), err);
    c.document_start[d + 1] = c.ids.count;
  }
  return c;
}

static void test_windows(void **state) {
  const size_t sizes[] = {7, 3, 9};
  struct corpus c = make_corpus(sizes, 3);
  struct windows w;
  struct error err = {0};
  must(windows_cut(&w, &c, 4, false, &err), err);
  assert_int_equal(w.count, 4);
  for (int64_t i = 0; i < w.count; i++) assert_int_equal(windows_at(&w, i)[0], 4 * i);
  windows_free(&w);
  must(windows_cut(&w, &c, 4, true, &err), err);
  const int32_t first[] = {0, 10, 14};
  assert_int_equal(w.count, 3);
  for (int64_t i = 0; i < w.count; i++) assert_int_equal(windows_at(&w, i)[0], first[i]);
  windows_free(&w);
  assert_int_equal(windows_cut(&w, &c, 20, false, &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "19 tokens"));
  assert_int_equal(windows_cut(&w, &c, 10, true, &err), STATUS_REFUSED);
  assert_int_equal(windows_cut(&w, &c, 0, true, &err), STATUS_USAGE);
  must(windows_cut(&w, &c, 19, false, &err), err);
  assert_int_equal(w.count, 1);
  windows_free(&w);
  corpus_free(&c);
}

static void test_draws_are_permutations(void **state) {
  const int64_t counts[] = {1, 2, 3, 5, 16, 17, 100, 1000};
  for (size_t k = 0; k < sizeof counts / sizeof *counts; k++)
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
      bool seen[1000] = {false};
      for (int64_t i = 0; i < counts[k]; i++) {
        int64_t index = windows_draw(counts[k], 5, epoch * (uint64_t)counts[k] + (uint64_t)i);
        assert_in_range(index, 0, counts[k] - 1);
        assert_false(seen[index]);
        seen[index] = true;
      }
    }
}

/* Each place is equally often first, and epochs and seeds give other orders. */
static void test_draws_are_fair(void **state) {
  enum { COUNT = 10, EPOCHS = 4000 };
  int first[COUNT] = {0}, same_epoch = 0, same_seed = 0;
  for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
    int64_t index = windows_draw(COUNT, 9, epoch * COUNT);
    first[index]++;
    same_epoch += index == windows_draw(COUNT, 9, (epoch + 1) * COUNT);
    same_seed += index == windows_draw(COUNT, 10, epoch * COUNT);
  }
  for (int i = 0; i < COUNT; i++) assert_in_range(first[i], 300, 500);
  assert_in_range(same_epoch, 300, 500);
  assert_in_range(same_seed, 300, 500);
}

/* The order is part of what a seed means: it must not change from version to version. */
static void test_draws_are_fixed(void **state) {
  const int64_t expected[] = {53, 24, 63, 32, 82, 6, 94, 37};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    assert_int_equal(windows_draw(100, 1, i), expected[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain_is_one_document),
                                     cmocka_unit_test(test_limit_is_a_prefix),
                                     cmocka_unit_test(test_jsonl_plain_and_packed),
                                     cmocka_unit_test(test_packed_text),
                                     cmocka_unit_test(test_nul_is_a_character),
                                     cmocka_unit_test(test_bad_files_are_refused),
                                     cmocka_unit_test(test_windows),
                                     cmocka_unit_test(test_draws_are_permutations),
                                     cmocka_unit_test(test_draws_are_fair),
                                     cmocka_unit_test(test_draws_are_fixed)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
