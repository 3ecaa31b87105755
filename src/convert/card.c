/* Licence and base models. Front matter is YAML, of which model cards use little: "key: value", a
 * list of "- value" lines under a key, or "[a, b]" behind it. Anything else is passed over. */
#include "convert/card.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

enum { README_LIMIT_BYTES = 16 << 20 };
#define HUB "https://huggingface.co/"

/* --- front matter --- */

/* Copies a scalar without blanks and quotes around it. */
static void set_scalar(char out[CARD_FIELD_MAX], const char *text, size_t length) {
  while (length && isspace((unsigned char)*text)) text++, length--;
  while (length && isspace((unsigned char)text[length - 1])) length--;
  if (length >= 2 && (*text == '"' || *text == '\'') && text[length - 1] == *text)
    text++, length -= 2;
  if (length >= CARD_FIELD_MAX) length = 0; /* no licence or model has such a name */
  memcpy(out, text, length);
  out[length] = 0;
}

static void add_base(struct model_card *card, const char *text, size_t length) {
  if (card->base_count == CARD_BASES_MAX) return;
  set_scalar(card->bases[card->base_count], text, length);
  if (*card->bases[card->base_count]) card->base_count++;
}

/* "a", or "[a, b]". */
static void add_bases(struct model_card *card, const char *text) {
  const char *open = strchr(text, '[');
  if (!open) {
    add_base(card, text, strlen(text));
    return;
  }
  for (const char *at = open + 1; *at && *at != ']';) {
    const size_t length = strcspn(at, ",]");
    add_base(card, at, length);
    at += length + (at[length] == ',');
  }
}

/* One line of front matter; *in_bases tells whether list items belong to base_model. */
static void read_line(struct model_card *card, const char *line, bool *in_bases) {
  static const char base_key[] = "base_model:";
  const struct {
    const char *key;
    char *field;
  } fields[] = {{"license:", card->license},
                {"license_name:", card->license_name},
                {"license_link:", card->license_link}};
  const char *item = line + strspn(line, " ");
  if (*item == '-' && *in_bases) {
    add_base(card, item + 1, strlen(item + 1));
    return;
  }
  *in_bases = !strncmp(line, base_key, sizeof base_key - 1);
  if (*in_bases) add_bases(card, line + sizeof base_key - 1);
  for (int i = 0; i < 3; i++) {
    const size_t length = strlen(fields[i].key);
    if (!strncmp(line, fields[i].key, length))
      set_scalar(fields[i].field, line + length, strlen(line + length));
  }
}

static void read_front_matter(struct model_card *card, char *text) {
  bool in_bases = false;
  char *save = NULL, *line = strtok_r(text, "\n", &save);
  if (!line || strncmp(line, "---", 3) != 0) return;
  while ((line = strtok_r(NULL, "\n", &save)) && strncmp(line, "---", 3) != 0)
    read_line(card, line, &in_bases);
}

enum status card_from_directory(struct model_card *card, const char *directory, struct error *err) {
  enum status status = STATUS_OK;
  char *path = path_join(directory, "README.md"), *text = NULL;
  size_t bytes;
  *card = (struct model_card){0};
  if (file_exists(path)) {
    status = file_read(path, README_LIMIT_BYTES, &text, &bytes, err);
    if (!status) read_front_matter(card, text);
  }
  free(text);
  free(path);
  return status;
}

/* --- GGUF keys --- */

static void get_field(const struct gguf *gguf, const char *key, char out[CARD_FIELD_MAX]) {
  struct gguf_string value;
  if (gguf_get_string(gguf, key, &value)) set_scalar(out, value.data, value.length);
}

/* "owner/name" of base model `index`: from its address on the hub, else from its two names. */
static void get_base(const struct gguf *gguf, int64_t index, struct model_card *card) {
  char key[96], url[CARD_FIELD_MAX] = "", owner[CARD_FIELD_MAX] = "", name[CARD_FIELD_MAX] = "";
  snprintf(key, sizeof key, "general.base_model.%lld.repo_url", (long long)index);
  get_field(gguf, key, url);
  if (!strncmp(url, HUB, strlen(HUB))) {
    add_base(card, url + strlen(HUB), strlen(url + strlen(HUB)));
    return;
  }
  snprintf(key, sizeof key, "general.base_model.%lld.organization", (long long)index);
  get_field(gguf, key, owner);
  snprintf(key, sizeof key, "general.base_model.%lld.name", (long long)index);
  get_field(gguf, key, name);
  for (char *c = owner; *c; c++)
    if (*c == ' ') *c = '-';
  for (char *c = name; *c; c++)
    if (*c == ' ') *c = '-';
  char both[2 * CARD_FIELD_MAX];
  const int length = snprintf(both, sizeof both, "%s%s%s", owner, *owner ? "/" : "", name);
  if (*name) add_base(card, both, (size_t)length);
}

void card_from_gguf(struct model_card *card, const struct gguf *gguf) {
  int64_t count = 0;
  *card = (struct model_card){0};
  get_field(gguf, "general.license", card->license);
  get_field(gguf, "general.license.name", card->license_name);
  get_field(gguf, "general.license.link", card->license_link);
  gguf_get_int(gguf, "general.base_model.count", &count);
  for (int64_t i = 0; i < count && i < CARD_BASES_MAX; i++) get_base(gguf, i, card);
}

/* --- and out again --- */

static void put_field(struct strbuf *out, const char *key, const char *value) {
  if (*value) strbuf_printf(out, "%s: %s\n", key, value);
}

void card_write(const struct model_card *card, const char *text, struct strbuf *out) {
  strbuf_puts(out, "---\n");
  put_field(out, "license", card->license);
  put_field(out, "license_name", card->license_name);
  put_field(out, "license_link", card->license_link);
  if (card->base_count) strbuf_puts(out, "base_model:\n");
  for (int i = 0; i < card->base_count; i++) strbuf_printf(out, "- %s\n", card->bases[i]);
  strbuf_printf(out, "library_name: transformers\n---\n\n%s", text);
}

static void set_field(struct gguf_builder *b, const char *key, const char *value) {
  if (*value) gguf_set_string(b, key, value, strlen(value));
}

void card_to_gguf(const struct model_card *card, struct gguf_builder *b) {
  set_field(b, "general.license", card->license);
  set_field(b, "general.license.name", card->license_name);
  set_field(b, "general.license.link", card->license_link);
  if (!card->base_count) return;
  gguf_set_u32(b, "general.base_model.count", (uint32_t)card->base_count);
  for (int i = 0; i < card->base_count; i++) {
    char key[96], url[CARD_FIELD_MAX + sizeof HUB];
    const char *base = card->bases[i], *slash = strchr(base, '/');
    snprintf(key, sizeof key, "general.base_model.%d.name", i);
    set_field(b, key, slash ? slash + 1 : base);
    if (!slash) continue;
    snprintf(key, sizeof key, "general.base_model.%d.organization", i);
    gguf_set_string(b, key, base, (size_t)(slash - base));
    snprintf(key, sizeof key, "general.base_model.%d.repo_url", i);
    snprintf(url, sizeof url, "%s%s", HUB, base);
    set_field(b, key, url);
  }
}
