/* The pre-tokenizers of the model families, by the names that GGUF files store under
 * tokenizer.ggml.pre. Each is a list of patterns that run in sequence, each on the pieces of the
 * one before; text between matches is a piece, too.
 *
 * The patterns are facts of the models, written down as llama.cpp runs them: upper and lower case
 * of contractions is spelled out in ASCII, which differs from (?i:'s) for the long s. */
#include <string.h>

#include "text/parts.h"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CONTRACTION "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
#define WORD "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TEKKEN                                                                        \
  "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER \
  "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const char *const gpt2_patterns[] = {GPT2, NULL};
static const char *const digits_gpt2_patterns[] = {"\\p{N}", GPT2, NULL};
static const char *const llama3_patterns[] = {CONTRACTION WORD "|\\p{N}{1,3}" REST, NULL};
static const char *const qwen2_patterns[] = {CONTRACTION WORD "|\\p{N}" REST, NULL};
static const char *const tekken_patterns[] = {TEKKEN, NULL};
static const char *const default_patterns[] = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+",
                                               "[0-9][0-9][0-9]", NULL};
static const char *const falcon_patterns[] = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]",
                                              NULL};
static const char *const deepseek_coder_patterns[] = {
    "[\\r\\n]",    "\\s?\\p{L}+",
    "\\s?\\p{P}+", "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
    "\\p{N}",      NULL};
static const char *const deepseek_v3_patterns[] = {
    "\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL};

static const struct {
  const char *name;
  const char *const *patterns;
  bool ignore_merges, add_bos;
} table[] = {
    {"default", default_patterns, false, false},
    {"gpt-2", gpt2_patterns, false, false},
    {"gpt2", gpt2_patterns, false, false},
    {"phi-2", gpt2_patterns, false, false},
    {"olmo", gpt2_patterns, false, false},
    {"mpt", gpt2_patterns, false, false},
    {"smollm", digits_gpt2_patterns, false, false},
    {"starcoder", digits_gpt2_patterns, false, false},
    {"refact", digits_gpt2_patterns, false, false},
    {"command-r", digits_gpt2_patterns, false, false},
    {"codeshell", digits_gpt2_patterns, false, false},
    {"llama3", llama3_patterns, true, true},
    {"llama-v3", llama3_patterns, true, true},
    {"llama-bpe", llama3_patterns, true, true},
    {"falcon3", llama3_patterns, true, true},
    {"pixtral", llama3_patterns, true, true},
    {"dbrx", llama3_patterns, false, false},
    {"smaug-bpe", llama3_patterns, false, false},
    {"qwen2", qwen2_patterns, false, false},
    {"deepseek-r1-qwen", qwen2_patterns, false, false},
    {"megrez", qwen2_patterns, false, false},
    {"stablelm2", qwen2_patterns, false, false},
    {"tekken", tekken_patterns, true, true},
    {"falcon", falcon_patterns, false, false},
    {"deepseek-coder", deepseek_coder_patterns, false, false},
    {"deepseek-v3", deepseek_v3_patterns, false, false},
};

const char *const *pretokenizer_patterns(const char *name, bool *ignore_merges, bool *add_bos) {
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    if (strcmp(name, table[i].name) != 0) continue;
    *ignore_merges = table[i].ignore_merges;
    *add_bos = table[i].add_bos;
    return table[i].patterns;
  }
  return NULL;
}

enum status pretokenizer_add_gpt2(struct pretokenizer *p, struct error *err) {
  return pretokenizer_add_split(p, GPT2, strlen(GPT2), false, SPLIT_ISOLATED, false, err);
}

enum status pretokenizer_add_named(struct tokenizer *t, const char *name, struct error *err) {
  bool ignore_merges, add_bos;
  const char *const *pattern = pretokenizer_patterns(name, &ignore_merges, &add_bos);
  if (!pattern)
    return error_set(err, STATUS_REFUSED, "pre-tokenizer \"%s\" (tokenizer.ggml.pre) is not known",
                     name);
  t->byte_level = true;
  t->bpe.ignore_merges = ignore_merges;
  enum status status = STATUS_OK;
  for (; status == STATUS_OK && *pattern; pattern++)
    status = pretokenizer_add_split(&t->pretokenizer, *pattern, strlen(*pattern), false,
                                    SPLIT_ISOLATED, false, err);
  return status;
}
