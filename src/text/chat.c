/* Chat: a conversation in the words of the model's own template.
 *
 * Templates are Jinja programs. Instead of running them, each family's rendering is one function
 * here, chosen by the marks in the stored template; what varies inside a family (a default system
 * prompt, blanks around [INST], the place of the system message) is read off the template's text.
 * A template without a known family's marks is refused, not guessed. */
#include <string.h>
#include <time.h>

#include "text/normalize.h"
#include "text/parts.h"
#include "text/utf8.h"

struct chat {
  const struct tokenizer *tokenizer;
  const char *program; /* the stored template */
  const struct chat_message *messages;
  size_t count;
  struct strbuf *out;
};

/* ---- words ---- */

struct span {
  const char *text;
  size_t length;
};

/* What Python's str.strip() takes away. */
static bool is_blank(uint32_t c) { return codepoint_is_space(c) || (c >= 0x1c && c <= 0x1f); }

static struct span trimmed(const char *text) {
  size_t start = 0, end = strlen(text);
  while (start < end && is_blank(utf8_decode(text + start))) start += utf8_length(text[start]);
  while (end > start) {
    size_t before = end - 1;
    while (((uint8_t)text[before] & 0xc0) == 0x80) before--;
    if (!is_blank(utf8_decode(text + before))) break;
    end = before;
  }
  return (struct span){text + start, end - start};
}

static void put(struct chat *c, const char *text) { strbuf_puts(c->out, text); }
static void put_span(struct chat *c, struct span s) { strbuf_append(c->out, s.text, s.length); }

static void put_token(struct chat *c, int32_t id) {
  size_t length;
  if (id < 0) return;
  const char *text = vocab_text(&c->tokenizer->vocab, id, &length);
  strbuf_append(c->out, text, length);
}

static bool says(const struct chat *c, const char *words) {
  return strstr(c->program, words) != NULL;
}

static bool is_role(const struct chat_message *m, const char *role) {
  return strcmp(m->role, role) == 0;
}

/* The system message that a conversation may begin with, or NULL. */
static const char *first_system(const struct chat *c) {
  return c->count && is_role(&c->messages[0], "system") ? c->messages[0].content : NULL;
}

/* Behind the system message only user and assistant speak, in turn where the template insists. */
static enum status check_turns(const struct chat *c, struct error *err) {
  bool in_turn = says(c, "roles must alternate");
  size_t start = first_system(c) ? 1 : 0;
  for (size_t i = start; i < c->count; i++) {
    bool user = is_role(&c->messages[i], "user"), assistant = is_role(&c->messages[i], "assistant");
    if (in_turn ? ((i - start) % 2 ? assistant : user) : (user || assistant)) continue;
    return error_set(err, STATUS_REFUSED,
                     "message %zu of the conversation is from \"%s\"; this model's template wants "
                     "user and assistant in turn",
                     i + 1, c->messages[i].role);
  }
  return STATUS_OK;
}

static enum status refuse_system(struct error *err) {
  return error_set(err, STATUS_REFUSED, "this model's chat template knows no system message");
}

/* ---- ChatML: Qwen, SmolLM2 ---- */

/* The literal text after `start` up to `end`, when it is not put together from expressions. */
static bool find_literal(const char *program, const char *start, const char *end,
                         struct span *out) {
  for (const char *at = strstr(program, start); at; at = strstr(at + 1, start)) {
    const char *text = at + strlen(start), *stop = strstr(text, end);
    if (!stop) return false;
    *out = (struct span){text, (size_t)(stop - text)};
    if (!memchr(text, '\'', out->length) && !memchr(text, '"', out->length) &&
        !memchr(text, '{', out->length))
      return true;
  }
  return false;
}

/* A template's newline in a literal is a real one or a backslash and an n. */
static bool default_system(const struct chat *c, struct span *out) {
  return find_literal(c->program, "<|im_start|>system\\n", "<|im_end|>", out) ||
         find_literal(c->program, "<|im_start|>system\n", "<|im_end|>", out);
}

/* Qwen3 keeps thoughts between <think> and </think>: those of the past are left out, those behind
 * the last question are written in a fixed form. */
static void put_thinking_answer(struct chat *c, const char *content, bool behind_question,
                                bool is_last) {
  struct span thought = {"", 0};
  const char *end = NULL;
  for (const char *at = strstr(content, "</think>"); at; at = strstr(at + 1, "</think>")) end = at;
  const char *answer = end ? end + strlen("</think>") : content;
  if (end) {
    const char *first_end = strstr(content, "</think>"), *start = content;
    for (const char *at = content; (at = strstr(at, "<think>")) && at < first_end; at++)
      start = at + strlen("<think>");
    thought = (struct span){start, (size_t)(first_end - start)};
    while (thought.length && *thought.text == '\n') thought.text++, thought.length--;
    while (thought.length && thought.text[thought.length - 1] == '\n') thought.length--;
    while (*answer == '\n') answer++;
  }
  if (behind_question && (is_last || thought.length)) {
    put(c, "<think>\n");
    put_span(c, thought);
    put(c, "\n</think>\n\n");
    while (*answer == '\n') answer++;
  }
  put(c, answer);
}

static enum status render_chatml(struct chat *c, struct error *err) {
  struct span system;
  bool thinks = says(c, "</think>");
  size_t last_user = c->count;
  for (size_t i = 0; i < c->count; i++)
    if (is_role(&c->messages[i], "user")) last_user = i;
  if (!first_system(c) && default_system(c, &system)) {
    put(c, "<|im_start|>system\n");
    put_span(c, system);
    put(c, "<|im_end|>\n");
  }
  for (size_t i = 0; i < c->count; i++) {
    const struct chat_message *m = &c->messages[i];
    put(c, "<|im_start|>");
    put(c, m->role);
    put(c, "\n");
    if (thinks && is_role(m, "assistant"))
      put_thinking_answer(c, m->content, i > last_user, i + 1 == c->count);
    else
      put(c, m->content);
    put(c, "<|im_end|>\n");
  }
  put(c, "<|im_start|>assistant\n");
  return STATUS_OK;
}

/* A template that makes the model begin with anything but a plain assistant turn is another one. */
static bool is_chatml(const struct chat *c) {
  static const char *const turns[] = {"<|im_start|>assistant\n'", "<|im_start|>assistant\\n'",
                                      "<|im_start|>assistant\n\"", "<|im_start|>assistant\\n\"",
                                      "<|im_start|>assistant\n{%"};
  bool plain = false;
  for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) plain |= says(c, turns[i]);
  return plain && says(c, "<|im_end|>") && !says(c, "## Metadata");
}

/* ---- LLaMA 3 ---- */

static void put_header(struct chat *c, const char *role) {
  put(c, "<|start_header_id|>");
  put(c, role);
  put(c, "<|end_header_id|>\n\n");
}

/* LLaMA 3.1 and later name a date: today's where the template asks for it, else its own. */
static void put_dates(struct chat *c) {
  struct span date = {"26 Jul 2024", strlen("26 Jul 2024")};
  char today[32];
  time_t now = time(NULL);
  struct tm parts;
  if (says(c, "strftime_now") && localtime_r(&now, &parts)) {
    date.length = strftime(today, sizeof today, "%d %b %Y", &parts);
    date.text = today;
  } else {
    find_literal(c->program, "date_string = \"", "\"", &date);
  }
  put(c, "Cutting Knowledge Date: December 2023\nToday Date: ");
  put_span(c, date);
  put(c, "\n\n");
}

static enum status render_llama3(struct chat *c, struct error *err) {
  const char *system = first_system(c);
  bool dated = says(c, "Cutting Knowledge Date: December 2023");
  if (says(c, "bos_token")) put_token(c, c->tokenizer->bos);
  if (dated) {
    put_header(c, "system");
    put_dates(c);
    if (system) put_span(c, trimmed(system));
    put(c, "<|eot_id|>");
  }
  for (size_t i = dated && system ? 1 : 0; i < c->count; i++) {
    put_header(c, c->messages[i].role);
    put_span(c, trimmed(c->messages[i].content));
    put(c, "<|eot_id|>");
  }
  put_header(c, "assistant");
  return STATUS_OK;
}

/* ---- Gemma ---- */

static enum status render_gemma(struct chat *c, struct error *err) {
  const char *system = first_system(c);
  if (system && !says(c, "first_user_prefix")) return refuse_system(err);
  enum status status = check_turns(c, err);
  if (status != STATUS_OK) return status;
  if (says(c, "bos_token")) put_token(c, c->tokenizer->bos);
  size_t start = system ? 1 : 0;
  for (size_t i = start; i < c->count; i++) {
    const struct chat_message *m = &c->messages[i];
    put(c, "<start_of_turn>");
    put(c, is_role(m, "assistant") ? "model" : m->role);
    put(c, "\n");
    if (system && i == start) {
      put(c, system);
      put(c, "\n\n");
    }
    put_span(c, trimmed(m->content));
    put(c, "<end_of_turn>\n");
  }
  put(c, "<start_of_turn>model\n");
  return STATUS_OK;
}

/* ---- LLaMA 2 ---- */

static enum status render_llama2(struct chat *c, struct error *err) {
  const char *system = first_system(c);
  enum status status = check_turns(c, err);
  if (status != STATUS_OK) return status;
  bool bos_each_turn = says(c, "bos_token + '[INST]") || says(c, "bos_token+'[INST]");
  size_t start = system ? 1 : 0;
  if (!bos_each_turn && says(c, "bos_token")) put_token(c, c->tokenizer->bos);
  for (size_t i = start; i < c->count; i++) {
    const struct chat_message *m = &c->messages[i];
    if (is_role(m, "assistant")) {
      put(c, " ");
      put_span(c, trimmed(m->content));
      put(c, " ");
      put_token(c, c->tokenizer->eos);
      continue;
    }
    struct strbuf content = {0}; /* stripped as a whole, the system message included */
    if (system && i == start) strbuf_printf(&content, "<<SYS>>\n%s\n<</SYS>>\n\n", system);
    strbuf_puts(&content, m->content);
    if (bos_each_turn) put_token(c, c->tokenizer->bos);
    put(c, "[INST] ");
    put_span(c, trimmed(strbuf_text(&content)));
    put(c, " [/INST]");
    strbuf_free(&content);
  }
  return STATUS_OK;
}

/* ---- Mistral ---- */

enum system_place { SYSTEM_NOWHERE, SYSTEM_FIRST, SYSTEM_LAST, SYSTEM_APART };

struct mistral {
  const char *open, *close;
  const char *before_answer, *after_answer;
  bool trim_answer;
  enum system_place system;
};

/* A quoted text of the template, in either kind of quotes. */
static bool quotes(const struct chat *c, const char *words) {
  struct strbuf single = {0}, twice = {0};
  strbuf_printf(&single, "'%s'", words);
  strbuf_printf(&twice, "\"%s\"", words);
  bool found = says(c, strbuf_text(&single)) || says(c, strbuf_text(&twice));
  strbuf_free(&single);
  strbuf_free(&twice);
  return found;
}

static struct mistral read_mistral(const struct chat *c) {
  struct mistral m = {.before_answer = "", .after_answer = ""};
  m.open = quotes(c, " [INST] ") ? " [INST] " : quotes(c, "[INST] ") ? "[INST] " : "[INST]";
  m.close = quotes(c, " [/INST]") ? " [/INST]" : "[/INST]";
  if (says(c, "' ' + message['content'] + eos_token") ||
      says(c, "\" \" + message[\"content\"] + eos_token") ||
      says(c, "\" \" + message[\"content\"]|trim + eos_token"))
    m.before_answer = " ";
  m.trim_answer = says(c, "message[\"content\"]|trim + eos_token");
  if (says(c, "eos_token + ' '")) m.after_answer = " ";
  m.system = says(c, "[SYSTEM_PROMPT] ")                           ? SYSTEM_APART
             : says(c, "loop.first and system_message is defined") ? SYSTEM_FIRST
             : says(c, "loop.last and system_message is defined")  ? SYSTEM_LAST
                                                                   : SYSTEM_NOWHERE;
  return m;
}

static void put_mistral_answer(struct chat *c, const struct mistral *style, const char *content) {
  put(c, style->before_answer);
  if (style->trim_answer)
    put_span(c, trimmed(content));
  else
    put(c, content);
  put_token(c, c->tokenizer->eos);
  put(c, style->after_answer);
}

static enum status render_mistral(struct chat *c, struct error *err) {
  const struct mistral style = read_mistral(c);
  const char *system = first_system(c);
  if (system && style.system == SYSTEM_NOWHERE) return refuse_system(err);
  enum status status = check_turns(c, err);
  if (status != STATUS_OK) return status;
  size_t start = system ? 1 : 0;
  put_token(c, c->tokenizer->bos);
  if (system && style.system == SYSTEM_APART) {
    put(c, "[SYSTEM_PROMPT] ");
    put(c, system);
    put(c, "[/SYSTEM_PROMPT]");
  }
  for (size_t i = start; i < c->count; i++) {
    const struct chat_message *m = &c->messages[i];
    if (is_role(m, "assistant")) {
      put_mistral_answer(c, &style, m->content);
      continue;
    }
    bool here = (style.system == SYSTEM_FIRST && i == start) ||
                (style.system == SYSTEM_LAST && i + 1 == c->count);
    put(c, style.open);
    if (system && here) {
      put(c, system);
      put(c, "\n\n");
    }
    put(c, m->content);
    put(c, style.close);
  }
  return STATUS_OK;
}

/* ---- choosing ---- */

typedef enum status render_fn(struct chat *c, struct error *err);

static render_fn *find_family(const struct chat *c) {
  if (says(c, "<|im_start|>")) return is_chatml(c) ? render_chatml : NULL;
  if (says(c, "<|start_header_id|>")) return render_llama3;
  if (says(c, "<start_of_turn>")) return render_gemma;
  if (!says(c, "[INST]")) return NULL;
  if (says(c, "<<SYS>>")) return render_llama2;
  return says(c, "default_system_message") ? NULL : render_mistral;
}

bool tokenizer_has_chat(const struct tokenizer *t) {
  struct chat c = {.tokenizer = t, .program = t->chat_template};
  return t->chat_template && find_family(&c);
}

enum status tokenizer_chat(const struct tokenizer *t, const struct chat_message *messages,
                           size_t count, struct strbuf *out, struct error *err) {
  struct chat c = {t, t->chat_template, messages, count, out};
  if (!t->chat_template)
    return error_set(err, STATUS_REFUSED, "%s holds no chat template; generate without --chat",
                     t->path);
  render_fn *render = find_family(&c);
  if (!render)
    return error_set(err, STATUS_REFUSED,
                     "the chat template in %s is of no family known here (LLaMA 2 and 3, Mistral, "
                     "ChatML, Gemma); generate without --chat",
                     t->path);
  if (!count) return error_set(err, STATUS_USAGE, "the conversation has no message");
  for (size_t i = 0; i < count; i++) {
    size_t length = strlen(messages[i].content);
    if (utf8_check(messages[i].content, length) < length)
      return error_set(err, STATUS_REFUSED, "message %zu of the conversation is not UTF-8", i + 1);
  }
  size_t before = out->length;
  enum status status = render(&c, err);
  if (status != STATUS_OK && out->data) {
    out->length = before;
    out->data[before] = 0;
  }
  return status;
}
