/* generate: greedy text against transformers (tools/golden/make_eval.py), the reuse of what a
 * session holds, limits, chat, and the command. */
#include "generate/generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/interrupt.h"
#include "io/file.h"
#include "io/json.h"
#include "support/support.h"

struct fixture {
  struct model *model;
  struct tokenizer *tokenizer;
  struct generator generator;
  json_t *golden;
};

static const char *model_path_or_skip(void) {
  const char *path = shared_data("models/stories260K");
  if (!path) skip();
  return path;
}

static void open_fixture(struct fixture *f, const char *path, int64_t capacity) {
  struct error err = {0};
  struct sampler_settings settings = sampler_settings_default();
  f->golden = json_read_file(golden("eval_stories260k.json"), 1 << 20, &err);
  assert_non_null(f->golden);
  must(model_open(&f->model, path, &err), err);
  must(tokenizer_open(&f->tokenizer, path, &err), err);
  must(generator_init(&f->generator, f->model, f->tokenizer, capacity, DTYPE_F32, &settings, &err),
       err);
}

static void close_fixture(struct fixture *f) {
  generator_release(&f->generator);
  tokenizer_close(f->tokenizer);
  model_close(f->model);
  json_decref(f->golden);
}

static struct token_ids encode(const struct fixture *f, const char *text) {
  struct error err = {0};
  struct token_ids ids = {0};
  must(tokenizer_encode(f->tokenizer, text, strlen(text), 0, &ids, &err), err);
  return ids;
}

static void collect(void *ctx, const char *text, size_t bytes) { strbuf_append(ctx, text, bytes); }

static void greedy_is_that_of_transformers(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct strbuf streamed = {0};
  struct generate_sink sink = {collect, &streamed};
  struct generate_result r;
  open_fixture(&f, model_path_or_skip(), 256);
  const json_t *expected = json_object_get(f.golden, "greedy_ids");
  struct token_ids prompt = encode(&f, json_get_string(f.golden, "prompt"));
  must(generate(&f.generator, prompt.items, prompt.count, (int64_t)json_array_size(expected), &sink,
                &r, &err),
       err);
  assert_int_equal(r.ids.count, json_array_size(expected));
  for (size_t i = 0; i < r.ids.count; i++)
    assert_int_equal(r.ids.items[i], json_integer_value(json_array_get(expected, i)));
  assert_string_equal(strbuf_text(&r.text), json_get_string(f.golden, "greedy_text"));
  assert_string_equal(strbuf_text(&streamed), strbuf_text(&r.text));
  assert_int_equal(r.stop, GENERATE_STOP_LENGTH);
  strbuf_free(&streamed);
  generate_result_free(&r);
  token_ids_free(&prompt);
  close_fixture(&f);
}

static void what_is_held_is_not_computed_again(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct generate_result first, again, other, back;
  open_fixture(&f, model_path_or_skip(), 200);
  struct token_ids a = encode(&f, "Once upon a time there was a dog");
  struct token_ids b = encode(&f, "Once upon a time there was a small cat who");
  must(generate(&f.generator, a.items, a.count, 30, NULL, &first, &err), err);
  assert_int_equal(first.prompt_computed, a.count);
  must(generate(&f.generator, a.items, a.count, 30, NULL, &again, &err), err);
  assert_int_equal(again.prompt_computed, 1); /* only for its logits */
  must(generate(&f.generator, b.items, b.count, 30, NULL, &other, &err), err);
  assert_in_range(other.prompt_computed, 1, b.count - 1);
  must(generate(&f.generator, a.items, a.count, 30, NULL, &back, &err), err);
  assert_string_equal(strbuf_text(&first.text), strbuf_text(&again.text));
  assert_string_equal(strbuf_text(&first.text), strbuf_text(&back.text));
  assert_string_not_equal(strbuf_text(&first.text), strbuf_text(&other.text));
  generate_result_free(&first);
  generate_result_free(&again);
  generate_result_free(&other);
  generate_result_free(&back);
  token_ids_free(&a);
  token_ids_free(&b);
  close_fixture(&f);
}

static void limits_are_kept(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f;
  struct generate_result r;
  open_fixture(&f, model_path_or_skip(), 20);
  struct token_ids prompt = encode(&f, "Once upon a time there was a dog");
  assert_in_range(prompt.count, 8, 18);
  must(generate(&f.generator, prompt.items, prompt.count, 1000, NULL, &r, &err), err);
  assert_int_equal(r.stop, GENERATE_STOP_CONTEXT);
  /* the last token drawn needs no place of its own */
  assert_int_equal(r.ids.count, 20 - prompt.count + 1);
  generate_result_free(&r);
  must(generate(&f.generator, prompt.items, prompt.count, 0, NULL, &r, &err), err);
  assert_int_equal(r.ids.count, 0);
  generate_result_free(&r);
  int32_t long_prompt[20] = {1};
  assert_int_equal(generate(&f.generator, long_prompt, 20, 5, NULL, &r, &err), STATUS_REFUSED);
  assert_int_equal(generate(&f.generator, NULL, 0, 5, NULL, &r, &err), STATUS_REFUSED);
  interrupt_set(true);
  assert_int_equal(generate(&f.generator, prompt.items, prompt.count, 5, NULL, &r, &err),
                   STATUS_INTERRUPTED);
  interrupt_set(false);
  generate_result_free(&r);
  token_ids_free(&prompt);
  close_fixture(&f);
}

/* --- chat --- */

/* stories260K with a chat template beside it; it has never seen one, which does not matter here. */
static const char *chat_model(void) {
  static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.model"};
  struct error err = {0};
  const char *source = model_path_or_skip(), *folder = scratch_path("chatty");
  mkdir(folder, 0777);
  for (int i = 0; i < 3; i++) {
    char *from = path_join(source, files[i]), *to = path_join(folder, files[i]);
    if (symlink(from, to) != 0) assert_true(file_exists(to));
    free(from);
    free(to);
  }
  static const char config[] =
      "{\"add_bos_token\": true, \"bos_token\": \"<s>\", \"chat_template\": \"{% for message in "
      "messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
      "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
      "'<|im_start|>assistant\\n' }}{% endif %}\"}";
  char *path = path_join(folder, "tokenizer_config.json");
  must(file_write_all(path, config, sizeof config - 1, &err), err);
  free(path);
  return folder;
}

static void a_conversation_goes_on(void **state) {
  (void)state;
  struct error err = {0};
  struct fixture f, fresh;
  struct chat chat, whole;
  struct generate_result first, second, alone, repeated;
  const char *path = chat_model();
  open_fixture(&f, path, 400);
  open_fixture(&fresh, path, 400);
  must(chat_init(&chat, &f.generator, "Be brief.", &err), err);
  must(chat_turn(&chat, "Tell me of a dog.", 12, NULL, &first, &err), err);
  must(chat_turn(&chat, "And of a cat.", 12, NULL, &second, &err), err);
  assert_true(second.prompt_computed < second.prompt_tokens);
  assert_true(second.prompt_tokens > first.prompt_tokens + 12);
  assert_int_equal(chat.count, 5);
  assert_string_equal(chat.messages[2].content, strbuf_text(&first.text));
  /* the same conversation computed from nothing answers the same */
  must(chat_init(&whole, &fresh.generator, "Be brief.", &err), err);
  must(chat_turn(&whole, "Tell me of a dog.", 12, NULL, &repeated, &err), err);
  model_session_truncate(fresh.generator.session, 0);
  must(chat_turn(&whole, "And of a cat.", 12, NULL, &alone, &err), err);
  assert_int_equal(alone.prompt_computed, alone.prompt_tokens);
  assert_string_equal(strbuf_text(&alone.text), strbuf_text(&second.text));
  /* a turn that does not fit is refused and leaves no trace */
  char text[4096];
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = 0;
  generate_result_free(&alone);
  assert_int_equal(chat_turn(&chat, text, 12, NULL, &alone, &err), STATUS_REFUSED);
  assert_int_equal(chat.count, 5);
  generate_result_free(&first);
  generate_result_free(&second);
  generate_result_free(&repeated);
  generate_result_free(&alone);
  chat_release(&chat);
  chat_release(&whole);
  close_fixture(&f);
  close_fixture(&fresh);
}

/* --- the command --- */

static void command_ends_as_documented(void **state) {
  (void)state;
  char output[8192];
  const char *model = model_path_or_skip(), *talker = chat_model();
  const struct {
    int status;
    const char *says, *model, *arguments;
  } cases[] = {
      {0, "named Lily", model, "--prompt 'Once upon a time, there was a little girl' --tokens 30"},
      {0, "\"ids\"", model, "--prompt Once --tokens 3 --json -"},
      {0, "", talker, "--chat --prompt Hello --tokens 3"},
      {2, "--temperature", model, "--prompt x --temperature -1"},
      {2, "--tokens", model, "--prompt x --tokens 0"},
      {2, "--chat", model, "--prompt x --system y"},
      {2, "repetition", model, "--prompt x --repetition-penalty 0"},
      {3, "chat template", model, "--chat --prompt x"},
      {3, "context", model, "--prompt 'one two three four five six' --context 4"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int status = run_command(output, sizeof output, "'%s' generate '%s' %s", program(),
                             cases[i].model, cases[i].arguments);
    if (status != cases[i].status || !strstr(output, cases[i].says))
      fail_msg("generate %s: status %d, saying: %s", cases[i].arguments, status, output);
  }
  int status = run_command(output, sizeof output,
                           "printf 'Once upon a time\\n' | '%s' generate '%s' --tokens 5 -q",
                           program(), model);
  assert_int_equal(status, 0);
  assert_string_equal(output, ", there was a little\n");
}

static void equal_seeds_give_equal_text(void **state) {
  (void)state;
  char first[2048], second[2048], third[2048];
  const char *model = model_path_or_skip();
  const char *form =
      "'%s' generate '%s' --prompt Once --tokens 40 --temperature 1 --top-p 0.95 -q "
      "--seed %d --threads %d";
  assert_int_equal(run_command(first, sizeof first, form, program(), model, 5, 1), 0);
  assert_int_equal(run_command(second, sizeof second, form, program(), model, 5, 3), 0);
  assert_int_equal(run_command(third, sizeof third, form, program(), model, 6, 1), 0);
  assert_string_equal(first, second);
  assert_string_not_equal(first, third);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(greedy_is_that_of_transformers),
      cmocka_unit_test(what_is_held_is_not_computed_again),
      cmocka_unit_test(limits_are_kept),
      cmocka_unit_test(a_conversation_goes_on),
      cmocka_unit_test(command_ends_as_documented),
      cmocka_unit_test(equal_seeds_give_equal_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
