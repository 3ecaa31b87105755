/* Tokenizes many texts, or exports, for tools/compare/tokenizers.py.
 *
 *     tokenize MODEL FLAGS < texts
 *     tokenize MODEL export DIRECTORY
 *
 * Texts come as a little-endian 32-bit length and the bytes; for each a line goes out: the ids,
 * a slash, and the bytes that they decode to (special tokens left out), in hex. */
#include <stdio.h>
#include <stdlib.h>

#include "text/tokenizer.h"

static int fail(const struct error *err) {
  fprintf(stderr, "%s\n", err->text);
  return 1;
}

int main(int argc, char **argv) {
  struct error err = {0};
  struct tokenizer *t;
  if (argc < 3) return 2;
  if (tokenizer_open(&t, argv[1], &err)) return fail(&err);
  if (argc == 4) {
    if (tokenizer_export(t, argv[3], &err)) return fail(&err);
    tokenizer_close(t);
    return 0;
  }
  unsigned char head[4];
  while (fread(head, 1, 4, stdin) == 4) {
    size_t bytes = head[0] | head[1] << 8 | head[2] << 16 | (size_t)head[3] << 24;
    char *text = malloc(bytes + 1);
    struct token_ids ids = {0};
    struct strbuf out = {0};
    if (!text || fread(text, 1, bytes, stdin) != bytes) return 2;
    if (tokenizer_encode(t, text, bytes, (unsigned)atoi(argv[2]), &ids, &err)) return fail(&err);
    if (tokenizer_decode(t, ids.items, ids.count, true, &out, &err)) return fail(&err);
    for (size_t i = 0; i < ids.count; i++) printf("%d ", ids.items[i]);
    putchar('/');
    for (size_t i = 0; i < out.length; i++) printf("%02x", (unsigned char)out.data[i]);
    putchar('\n');
    free(text);
    token_ids_free(&ids);
    strbuf_free(&out);
  }
  tokenizer_close(t);
  return 0;
}
