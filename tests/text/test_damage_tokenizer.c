/* Damaged tokenizer files of every kind: opened or refused with a sentence, never a crash. */
#include "support/damage.h"
#include "support/support.h"
#include "support/walk.h"

enum { ROUNDS = 600 };

static void run(const char *name, const char *suffix, uint64_t seed) {
  struct damage d = {name, suffix, NULL, 0, walk_tokenizer, NULL, seed, ROUNDS};
  damage_run_file(&d, golden(name));
}

static void damaged_byte_level(void **state) { run("tokenizer_byte_level.json", ".json", 1); }
static void damaged_llama_style(void **state) { run("tokenizer_llama_style.json", ".json", 2); }
static void damaged_metaspace(void **state) { run("tokenizer_metaspace.json", ".json", 3); }
static void damaged_charsmap(void **state) { run("tokenizer_rules.model", ".model", 4); }
static void damaged_model(void **state) { run("tokenizer_fallback.model", ".model", 5); }
static void damaged_gguf_bpe(void **state) { run("tokenizer_bpe.gguf", ".gguf", 6); }
static void damaged_gguf_spm(void **state) { run("tokenizer_spm.gguf", ".gguf", 7); }

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(damaged_byte_level), cmocka_unit_test(damaged_llama_style),
      cmocka_unit_test(damaged_metaspace),  cmocka_unit_test(damaged_charsmap),
      cmocka_unit_test(damaged_model),      cmocka_unit_test(damaged_gguf_bpe),
      cmocka_unit_test(damaged_gguf_spm)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
