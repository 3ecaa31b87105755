/* Configurations: what the two forms of config.json and GGUF keys mean, what is refused and by
 * which name, round trips through the config.json that tessera writes, and damage. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/config.h"
#include "model/store.h"
#include "support/support.h"

static struct error err;

#define SIZES                                                                               \
  "\"vocab_size\":100,\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":4," \
  "\"num_attention_heads\":4"

static enum status parse(struct model_config *config, const char *text) {
  json_t *json = json_loads(text, 0, NULL);
  if (!json) fail_msg("not JSON: %s", text);
  enum status status = model_config_from_json(config, json, "config.json", &err);
  json_decref(json);
  return status;
}

static void refused(const char *text, const char *name) {
  static struct model_config config;
  err = (struct error){0};
  assert_int_equal(parse(&config, text), STATUS_REFUSED);
  if (!strstr(err.text, name)) fail_msg("\"%s\" does not name \"%s\"", err.text, name);
  assert_non_null(strstr(err.text, "config.json"));
}

static void llama_old_form(void **state) {
  static struct model_config c;
  must(parse(&c, "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"]," SIZES
                 ",\"rope_theta\":500000.0,\"max_position_embeddings\":131072,"
                 "\"rope_scaling\":{\"factor\":32.0,\"high_freq_factor\":4.0,\"low_freq_factor\":"
                 "1.0,\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},"
                 "\"eos_token_id\":[7,8],\"bos_token_id\":5,\"num_key_value_heads\":2}"),
       err);
  assert_string_equal(model_family_name(&c), "llama");
  assert_int_equal(c.rope.scaling, ROPE_LLAMA3);
  assert_true(c.rope.factor == 32 && c.rope.original_context == 8192 && c.rope.theta == 5e5);
  assert_int_equal(c.head_dim, 8);
  assert_int_equal(c.kv_heads, 2);
  assert_int_equal(c.eos_id, 7);
  assert_int_equal(c.bos_id, 5);
  assert_false(c.tied_embeddings);
  assert_true(fabs(c.query_scale - 1 / sqrt(8)) < 1e-15);
}

static void llama_new_form(void **state) {
  static struct model_config c;
  must(parse(&c, "{\"model_type\":\"llama\"," SIZES
                 ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":"
                 "20000.0},\"num_key_value_heads\":null,\"head_dim\":null}"),
       err);
  assert_int_equal(c.rope.scaling, ROPE_LINEAR);
  assert_true(c.rope.factor == 4 && c.rope.theta == 20000);
  assert_int_equal(c.kv_heads, 4);
}

static void silent_defaults(void **state) {
  static struct model_config c;
  must(parse(&c, "{\"model_type\":\"llama\"," SIZES "}"), err);
  assert_true(c.rope.theta == 1e4 && c.rms_eps == 1e-6);
  assert_int_equal(c.context_length, 2048);
  must(parse(&c, "{\"model_type\":\"qwen3\",\"num_key_value_heads\":2," SIZES "}"), err);
  assert_int_equal(c.head_dim, 128);
  assert_true(c.qk_norm && !c.qkv_bias);
}

static void windows(void **state) {
  static struct model_config c;
  must(parse(&c, "{\"model_type\":\"mistral\",\"num_key_value_heads\":2,\"sliding_window\":9," SIZES
                 "}"),
       err);
  assert_true(c.sliding_window == 9 && c.layer_sliding[0] && c.layer_sliding[3]);
  must(parse(&c,
             "{\"model_type\":\"mistral\",\"num_key_value_heads\":2,\"sliding_window\":null," SIZES
             "}"),
       err);
  assert_false(c.layer_sliding[0]);
  must(parse(&c,
             "{\"model_type\":\"qwen2\",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
             "\"sliding_window\":9,\"max_window_layers\":3," SIZES "}"),
       err);
  assert_true(!c.layer_sliding[2] && c.layer_sliding[3]);
  must(parse(&c,
             "{\"model_type\":\"qwen2\",\"num_key_value_heads\":2,\"use_sliding_window\":false,"
             "\"sliding_window\":9,\"max_window_layers\":0," SIZES "}"),
       err);
  assert_false(c.layer_sliding[3]);
}

/* The config.json of gemma-3-4b-it leaves most sizes to transformers' defaults. */
static void gemma_wrapper(void **state) {
  static struct model_config c;
  must(parse(&c,
             "{\"model_type\":\"gemma3\",\"architectures\":[\"Gemma3ForConditionalGeneration\"],"
             "\"text_config\":{\"hidden_size\":2560,\"intermediate_size\":10240,\"model_type\":"
             "\"gemma3_text\",\"num_hidden_layers\":34,\"rope_scaling\":{\"factor\":8.0,"
             "\"rope_type\":\"linear\"},\"sliding_window\":1024}}"),
       err);
  assert_int_equal(c.heads, 8);
  assert_int_equal(c.kv_heads, 4);
  assert_int_equal(c.head_dim, 256);
  assert_int_equal(c.vocab_size, 262208);
  assert_true(c.tied_embeddings && c.sandwich_norms && c.qk_norm && c.norm_plus_one);
  assert_true(c.layer_sliding[4] && !c.layer_sliding[5] && c.layer_sliding[6]);
  assert_true(c.rope.theta == 1e6 && c.rope.factor == 8 && c.rope.scaling == ROPE_LINEAR);
  assert_true(c.rope_sliding.theta == 1e4 && c.rope_sliding.scaling == ROPE_PLAIN);
  assert_true(c.embed_scale == sqrt(2560));
}

static void refusals(void **state) {
#define LLAMA "{\"model_type\":\"llama\"," SIZES
  refused("{\"model_type\":\"mamba\"," SIZES "}", "mamba");
  refused("{" SIZES "}", "model_type");
  refused("[1]", "object");
  refused(LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]}", "SequenceClass");
  refused(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", "yarn");
  refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}}", "dynamic");
  refused(LLAMA ",\"rope_parameters\":{\"rope_type\":\"longrope\"}}", "longrope");
  refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\"}}", "factor");
  refused(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor");
  refused(LLAMA ",\"rope_scaling\":7}", "rotary");
  refused(LLAMA ",\"partial_rotary_factor\":0.5}", "partial");
  refused(LLAMA ",\"hidden_act\":\"relu\"}", "relu");
  refused(LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "gptq");
  refused(LLAMA ",\"num_key_value_heads\":3}", "3 key-value heads");
  refused(LLAMA ",\"head_dim\":7}", "odd");
  refused(LLAMA ",\"head_dim\":\"8\"}", "head_dim");
  refused(LLAMA ",\"rms_norm_eps\":-1}", "rms_norm_eps");
  refused(LLAMA ",\"max_position_embeddings\":0}", "max_position_embeddings");
  refused(LLAMA ",\"eos_token_id\":\"</s>\"}", "eos_token_id");
  refused("{\"model_type\":\"llama\",\"hidden_size\":32}", "vocabulary");
  refused("{\"model_type\":\"llama\",\"num_hidden_layers\":99999999999}", "num_hidden_layers");
  refused("{\"model_type\":\"gemma3_text\",\"use_bidirectional_attention\":true}", "bidirectional");
  refused("{\"model_type\":\"gemma3_text\",\"layer_types\":[\"full_attention\"]}", "layer_types");
  refused("{\"model_type\":\"gemma3\"}", "text_config");
  refused(
      "{\"model_type\":\"qwen3\",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
      "\"layer_types\":[\"full_attention\",\"chunked_attention\",\"full_attention\","
      "\"full_attention\"]," SIZES "}",
      "chunked_attention");
}

/* What is written, read again, is the same configuration, for every golden model. */
static void round_trip(void **state) {
  static const char *const names[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};
  static struct model_config first, second;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s/config.json", golden("models"), names[i]);
    json_t *json = json_read_file(path, 1 << 20, &err);
    assert_non_null(json);
    must(model_config_from_json(&first, json, path, &err), err);
    json_decref(json);
    json = model_config_to_json(&first, "bfloat16");
    must(model_config_from_json(&second, json, path, &err), err);
    json_decref(json);
    assert_memory_equal(&first, &second, sizeof first);
  }
}

/* --- GGUF keys --- */

static struct gguf_builder *builder;

static void start_gguf(const char *arch) {
  char key[64];
  static const struct {
    const char *key;
    uint32_t value;
  } sizes[] = {
      {"block_count", 2},          {"embedding_length", 32},       {"feed_forward_length", 64},
      {"attention.head_count", 4}, {"attention.head_count_kv", 2}, {"context_length", 77}};
  builder = gguf_builder_new();
  gguf_set_string(builder, "general.architecture", arch, strlen(arch));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    snprintf(key, sizeof key, "%s.%s", arch, sizes[i].key);
    gguf_set_u32(builder, key, sizes[i].value);
  }
}

static enum status finish_gguf(struct model_config *config, const float *divisors) {
  static float table[10 * 32];
  const char *path = scratch_path("keys.gguf");
  struct gguf *gguf;
  struct tensor_source tensors[] = {
      {.name = "token_embd.weight",
       .dtype = DTYPE_F32,
       .rank = 2,
       .shape = {10, 32},
       .data = table},
      {.name = "rope_freqs.weight", .dtype = DTYPE_F32, .rank = 1, .shape = {4}, .data = divisors}};
  must(gguf_write(builder, path, tensors, divisors ? 2 : 1, &err), err);
  gguf_builder_free(builder);
  must(gguf_open(&gguf, path, &err), err);
  err = (struct error){0};
  enum status status = model_config_from_gguf(config, gguf, path, &err);
  gguf_close(gguf);
  return status;
}

static void gguf_keys(void **state) {
  static struct model_config c;
  start_gguf("llama");
  gguf_set_f32(builder, "llama.rope.freq_base", 5e5f);
  gguf_set_f32(builder, "llama.rope.scaling.factor", 2);
  must(finish_gguf(&c, NULL), err);
  assert_true(c.rope_sliding.theta == c.rope.theta && c.rope_sliding.factor == c.rope.factor);
  assert_int_equal(c.vocab_size, 10);
  assert_int_equal(c.head_dim, 8);
  assert_int_equal(c.kv_heads, 2);
  assert_int_equal(c.context_length, 77);
  assert_true(c.tied_embeddings && !c.qkv_bias && !c.norm_plus_one);
  assert_true(c.rope.theta == 5e5 && c.rope.scaling == ROPE_LINEAR && c.rope.factor == 2);
  start_gguf("gemma3");
  gguf_set_u32(builder, "gemma3.attention.sliding_window", 512);
  must(finish_gguf(&c, NULL), err);
  assert_true(c.sandwich_norms && !c.norm_plus_one && c.layer_sliding[0]);
  assert_true(c.rope_sliding.theta == 1e4 && c.sliding_window == 512);
}

static void gguf_llama3_scaling(void **state) {
  static struct model_config c;
  static const float none[4] = {1, 3, 2, 1};
  /* what LLaMA 3.2's settings give for base 500000 and heads of 8: kept, blended, divided */
  static const float divisors[4] = {1, 1, 3.2922621f, 32};
  start_gguf("llama");
  assert_int_equal(finish_gguf(&c, none), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "rope_freqs.weight"));
  start_gguf("llama");
  gguf_set_f32(builder, "llama.rope.freq_base", 5e5f);
  must(finish_gguf(&c, divisors), err);
  assert_int_equal(c.rope.scaling, ROPE_LLAMA3);
  assert_true(c.rope.factor == 32 && c.rope.original_context == 8192);
}

static void gguf_refused(struct model_config *config, const char *name) {
  assert_int_equal(finish_gguf(config, NULL), STATUS_REFUSED);
  if (!strstr(err.text, name)) fail_msg("\"%s\" does not name \"%s\"", err.text, name);
}

static void gguf_refusals(void **state) {
  static struct model_config c;
  start_gguf("mamba");
  gguf_refused(&c, "mamba");
  start_gguf("llama");
  gguf_set_string(builder, "llama.rope.scaling.type", "yarn", 4);
  gguf_refused(&c, "yarn");
  start_gguf("llama");
  gguf_set_u32(builder, "llama.expert_count", 8);
  gguf_refused(&c, "experts");
  start_gguf("llama");
  gguf_set_u32(builder, "llama.attention.sliding_window", 8);
  gguf_refused(&c, "sliding window");
  start_gguf("llama");
  gguf_set_u32(builder, "llama.rope.dimension_count", 4);
  gguf_refused(&c, "partial");
  start_gguf("qwen2");
  gguf_set_u32(builder, "qwen2.attention.key_length", 16);
  gguf_set_u32(builder, "qwen2.attention.value_length", 8);
  gguf_refused(&c, "equal");
  start_gguf("gemma3");
  gguf_refused(&c, "sliding_window");
}

/* small.gguf holds a tensor of IQ4_XS, which is not expanded: the whole model is refused by name.
 */
static void gguf_types_not_read(void **state) {
  (void)state;
  struct tensor_store store;
  assert_int_equal(store_open(&store, golden("io/small.gguf"), &err), STATUS_REFUSED);
  assert_non_null(strstr(err.text, "IQ4_XS"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(llama_old_form),      cmocka_unit_test(llama_new_form),
      cmocka_unit_test(silent_defaults),     cmocka_unit_test(windows),
      cmocka_unit_test(gemma_wrapper),       cmocka_unit_test(refusals),
      cmocka_unit_test(round_trip),          cmocka_unit_test(gguf_keys),
      cmocka_unit_test(gguf_llama3_scaling), cmocka_unit_test(gguf_refusals),
      cmocka_unit_test(gguf_types_not_read),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
