/* Conversations: the whole text is made anew by the template every turn, and the generator finds
 * out for itself how much of it the session already holds. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "generate/generate.h"

static enum status add_message(struct chat *chat, const char *role, const char *content,
                               struct error *err) {
  enum status status = mem_grow((void **)&chat->messages, &chat->capacity, chat->count + 1,
                                sizeof *chat->messages, err);
  char *copy = status ? NULL : mem_strdup(content, err);
  if (!copy) return STATUS_FAILED;
  chat->messages[chat->count++] = (struct chat_message){.role = role, .content = copy};
  return STATUS_OK;
}

static void drop_message(struct chat *chat) { free((char *)chat->messages[--chat->count].content); }

enum status chat_init(struct chat *chat, struct generator *generator, const char *system,
                      struct error *err) {
  *chat = (struct chat){.generator = generator};
  if (!tokenizer_has_chat(generator->tokenizer))
    return error_set(err, STATUS_REFUSED,
                     "%s has no chat template that tessera knows; leave --chat out to continue "
                     "plain text",
                     model_path(generator->model));
  return system ? add_message(chat, "system", system, err) : STATUS_OK;
}

void chat_release(struct chat *chat) {
  while (chat->count) drop_message(chat);
  free(chat->messages);
  *chat = (struct chat){0};
}

enum status chat_turn(struct chat *chat, const char *text, int64_t most,
                      const struct generate_sink *sink, struct generate_result *result,
                      struct error *err) {
  *result = (struct generate_result){0};
  const struct tokenizer *tokenizer = chat->generator->tokenizer;
  struct strbuf prompt = {0};
  struct token_ids ids = {0};
  enum status status = add_message(chat, "user", text, err);
  if (status) return status;
  status = tokenizer_chat(tokenizer, chat->messages, chat->count, &prompt, err);
  if (!status)
    status = tokenizer_encode(tokenizer, strbuf_text(&prompt), prompt.length, TOKENIZE_NO_BOS, &ids,
                              err);
  if (!status) status = generate(chat->generator, ids.items, ids.count, most, sink, result, err);
  if (!status) status = add_message(chat, "assistant", strbuf_text(&result->text), err);
  if (status) drop_message(chat);
  strbuf_free(&prompt);
  token_ids_free(&ids);
  return status;
}
