/* tessera generate: continues a text, or holds a conversation. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/output.h"
#include "generate/generate.h"

struct settings {
  const char *mask, *prompt, *system, *device;
  int64_t tokens, context, top_k, seed;
  double temperature, top_p, min_p, repetition_penalty;
  bool chat, graph;
  int precision;
  int kv;
  struct common_options common;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "drop what this mask file drops"},
    {"prompt", OPTION_TEXT, offsetof(struct settings, prompt), NULL, 0, 0, NULL, "TEXT",
     "the text to continue, or with --chat what the user says; without it, it is read from "
     "standard "
     "input"},
    {"chat", OPTION_FLAG, offsetof(struct settings, chat), NULL, 0, 0, NULL, NULL,
     "use the model's chat template; without --prompt at a terminal, talk line by line"},
    {"system", OPTION_TEXT, offsetof(struct settings, system), NULL, 0, 0, NULL, "TEXT",
     "with --chat: the system message"},
    {"tokens", OPTION_INT, offsetof(struct settings, tokens), "256", 1, 1 << 24, NULL, "N",
     "generate at most N tokens (of each answer)"},
    {"context", OPTION_INT, offsetof(struct settings, context), "0", 0, 1 << 24, NULL, "N",
     "tokens of context, prompt and answer together; 0 means what is needed, in a chat 4096, at "
     "most the model's own"},
    {"temperature", OPTION_REAL, offsetof(struct settings, temperature), "0", 0, 100, NULL, "T",
     "0 always takes the likeliest token; 1 samples from the model's own distribution"},
    {"top-k", OPTION_INT, offsetof(struct settings, top_k), "0", 0, 1e9, NULL, "K",
     "sample from the K likeliest tokens; 0 means all"},
    {"top-p", OPTION_REAL, offsetof(struct settings, top_p), "1", 0, 1, NULL, "P",
     "sample from the likeliest tokens whose probability reaches P"},
    {"min-p", OPTION_REAL, offsetof(struct settings, min_p), "0", 0, 1, NULL, "P",
     "drop tokens less likely than P times the likeliest"},
    {"repetition-penalty", OPTION_REAL, offsetof(struct settings, repetition_penalty), "1", 0.01,
     100, NULL, "R", "make tokens that occurred less likely; 1 means off"},
    {"seed", OPTION_INT, offsetof(struct settings, seed), "0", 0, 9e18, NULL, "K",
     "the same seed gives the same text"},
    {"precision", OPTION_CHOICE, offsetof(struct settings, precision), NULL, 0, 0, "fp32|bf16",
     NULL,
     "what products round their operands to while a prompt is read (default: bf16 where the "
     "processor multiplies it, else fp32)"},
    {"kv", OPTION_CHOICE, offsetof(struct settings, kv), "f16", 0, 0, INPUTS_KV_CHOICES, NULL,
     "how keys and values of the context are kept: int8 has a scale for each position and head"},
    INPUTS_DEVICE_OPTION(struct settings, device),
    {"graph", OPTION_FLAG, offsetof(struct settings, graph), NULL, 0, 0, NULL, NULL,
     "on a GPU: record a step once and run it as one piece from then on (a CUDA graph)"},
    COMMON_OPTIONS(struct settings, common)};

enum { CHAT_CONTEXT = 4096, LINE_BYTES_MAX = 1 << 20 };

struct job {
  const struct settings *settings;
  const struct backend *backend;
  struct model *model, *placed; /* placed: on the backend, where that is not the host */
  struct tokenizer *tokenizer;
  struct generator generator;
};

static void print_text(void *ctx, const char *text, size_t bytes) {
  (void)ctx;
  fwrite(text, 1, bytes, stdout);
  fflush(stdout);
}

static struct sampler_settings sampler_of(const struct settings *s) {
  return (struct sampler_settings){.temperature = s->temperature,
                                   .top_k = s->top_k,
                                   .top_p = s->top_p,
                                   .min_p = s->min_p,
                                   .repetition_penalty = s->repetition_penalty,
                                   .seed = (uint64_t)s->seed};
}

static bool on_host(const struct settings *s) { return !strcmp(s->device, "cpu"); }

static enum precision precision_of(const struct settings *s) {
  if (!on_host(s)) return PRECISION_BF16;
  return s->precision < 0 ? precision_fastest() : (enum precision)s->precision;
}

/* `needed` tokens at least, where the context was not given. */
static enum status make_generator(struct job *job, int64_t needed, struct error *err) {
  int64_t most = model_config(job->model)->context_length;
  int64_t capacity = job->settings->context ? job->settings->context : needed;
  if (capacity > most) capacity = most;
  struct sampler_settings sampler = sampler_of(job->settings);
  enum status status =
      generator_init(&job->generator, job->placed ? job->placed : job->model, job->tokenizer,
                     capacity, inputs_kv_types[job->settings->kv], &sampler, err);
  if (status) return status;
  model_session_set_precision(job->generator.session, precision_of(job->settings));
  model_session_record(job->generator.session, job->settings->graph);
  return STATUS_OK;
}

static void report_speed(const struct generate_result *r) {
  double prompt_rate = r->prompt_s > 0 ? (double)r->prompt_computed / r->prompt_s : 0;
  double rate = r->decode_s > 0 ? (double)r->ids.count / r->decode_s : 0;
  log_info("[prompt %lld tokens, %.1f tokens/s; generated %zu tokens, %.1f tokens/s; stopped: %s]",
           (long long)r->prompt_tokens, prompt_rate, r->ids.count, rate,
           generate_stop_name[r->stop]);
}

static json_t *result_json(const struct job *job, const char *prompt,
                           const struct generate_result *r) {
  json_t *out = json_object(), *ids = json_array();
  for (size_t i = 0; i < r->ids.count; i++)
    json_array_append_new(ids, json_integer(r->ids.items[i]));
  json_object_set_new(out, "model", json_string(model_path(job->model)));
  json_object_set_new(out, "mask", output_text(job->settings->mask));
  json_object_set_new(out, "density", output_real(model_density(job->model)));
  json_object_set_new(out, "prompt", json_string(prompt));
  json_object_set_new(out, "text", json_stringn(strbuf_text(&r->text), r->text.length));
  json_object_set_new(out, "ids", ids);
  json_object_set_new(out, "stopped", json_string(generate_stop_name[r->stop]));
  json_object_set_new(out, "prompt_tokens", json_integer(r->prompt_tokens));
  json_object_set_new(out, "prompt_s", output_real(r->prompt_s));
  json_object_set_new(out, "decode_s", output_real(r->decode_s));
  json_object_set_new(out, "device", json_string(job->settings->device));
  json_object_set_new(out, "precision", json_string(precision_name[precision_of(job->settings)]));
  json_object_set_new(out, "kv",
                      json_string(dtype_traits(inputs_kv_types[job->settings->kv])->name));
  json_object_set_new(out, "seed", json_integer(job->settings->seed));
  return out;
}

/* All of standard input, without the newline at its end. */
static enum status read_prompt(struct strbuf *out, struct error *err) {
  char block[4096];
  size_t got;
  while ((got = fread(block, 1, sizeof block, stdin)) > 0) {
    strbuf_append(out, block, got);
    if (out->length > LINE_BYTES_MAX)
      return error_set(err, STATUS_REFUSED, "the prompt on standard input is longer than %d bytes",
                       LINE_BYTES_MAX);
  }
  if (ferror(stdin)) return error_set(err, STATUS_FAILED, "standard input: %s", strerror(errno));
  if (out->length && out->data[out->length - 1] == '\n') out->data[--out->length] = 0;
  if (strlen(strbuf_text(out)) != out->length)
    return error_set(err, STATUS_REFUSED, "the prompt on standard input holds a NUL byte");
  return STATUS_OK;
}

/* Plain continuation of `text`. */
static enum status continue_text(struct job *job, const char *text,
                                 const struct generate_sink *sink, struct generate_result *result,
                                 struct error *err) {
  struct token_ids ids = {0};
  enum status status = tokenizer_encode(job->tokenizer, text, strlen(text), 0, &ids, err);
  if (!status) status = make_generator(job, (int64_t)ids.count + job->settings->tokens, err);
  if (!status)
    status =
        generate(&job->generator, ids.items, ids.count, job->settings->tokens, sink, result, err);
  token_ids_free(&ids);
  return status;
}

/* One answer of a chat. */
static enum status answer_once(struct job *job, const char *text, const struct generate_sink *sink,
                               struct generate_result *result, struct error *err) {
  struct chat chat = {0};
  enum status status = make_generator(job, CHAT_CONTEXT, err);
  if (!status) status = chat_init(&chat, &job->generator, job->settings->system, err);
  if (!status) status = chat_turn(&chat, text, job->settings->tokens, sink, result, err);
  chat_release(&chat);
  return status;
}

static enum status run_once(struct job *job, const char *text, struct error *err) {
  const struct settings *s = job->settings;
  struct generate_sink sink = {print_text, NULL};
  const struct generate_sink *shown = output_to_people(&s->common) ? &sink : NULL;
  struct generate_result result = {0};
  enum status status = s->chat ? answer_once(job, text, shown, &result, err)
                               : continue_text(job, text, shown, &result, err);
  if (shown && result.text.length) putchar('\n');
  if (!status) {
    report_speed(&result);
    status = common_write_json(&s->common, result_json(job, text, &result), err);
  }
  generate_result_free(&result);
  return status;
}

/* Line by line, until the end of input. What goes wrong with one turn is told, and the
 * conversation goes on without it. */
static enum status run_chat(struct job *job, struct error *err) {
  struct chat chat = {0};
  struct generate_sink sink = {print_text, NULL};
  char *line = NULL;
  size_t capacity = 0;
  enum status status = make_generator(job, CHAT_CONTEXT, err);
  if (!status) status = chat_init(&chat, &job->generator, job->settings->system, err);
  if (!status) log_info("An empty line or Ctrl-D ends the conversation.");
  while (!status) {
    fputs("> ", stdout);
    fflush(stdout);
    ssize_t length = getline(&line, &capacity, stdin);
    if (length > 0 && line[length - 1] == '\n') line[--length] = 0;
    if (length <= 0) break;
    struct generate_result result = {0};
    status = chat_turn(&chat, line, job->settings->tokens, &sink, &result, err);
    putchar('\n');
    if (!status) report_speed(&result);
    if (status == STATUS_REFUSED) {
      log_error("%s", err->text);
      status = STATUS_OK;
    }
    generate_result_free(&result);
  }
  free(line);
  chat_release(&chat);
  return status;
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct settings *s = settings;
  common_apply(&s->common);
  struct job job = {.settings = s};
  struct strbuf prompt = {0};
  if (s->system && !s->chat)
    return error_set(err, STATUS_USAGE, "--system belongs to --chat, which is missing");
  if (s->graph && on_host(s))
    return error_set(err, STATUS_USAGE, "--graph is for GPUs: give --device cuda, too");
  if (s->precision == PRECISION_FP32 && !on_host(s))
    return error_set(err, STATUS_USAGE, "a GPU multiplies bf16: leave --precision fp32 away");
  bool talk = s->chat && !s->prompt && isatty(STDIN_FILENO) && output_to_people(&s->common);
  enum status status = backend_open(&job.backend, s->device, err);
  if (!status && !s->prompt && !talk) status = read_prompt(&prompt, err);
  if (!status) status = inputs_model(&job.model, positionals->items[0], s->mask, err);
  if (!status) status = tokenizer_open(&job.tokenizer, positionals->items[0], err);
  if (!status)
    status = job.backend->is_host
                 ? model_prepare(job.model, false, err)
                 : model_place_to_run(&job.placed, job.model, job.backend, true, err);
  if (!status)
    status = talk ? run_chat(&job, err)
                  : run_once(&job, s->prompt ? s->prompt : strbuf_text(&prompt), err);
  if (job.generator.session) generator_release(&job.generator);
  tokenizer_close(job.tokenizer);
  model_close(job.placed);
  model_close(job.model);
  backend_close(job.backend);
  strbuf_free(&prompt);
  return status;
}

const struct command command_generate = {
    .name = "generate",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "continue a text, or chat",
    .description =
        "The text goes to standard output as it comes; the speed goes to standard error.",
    .example =
        "tessera generate MODEL --prompt \"The Moon is\" --tokens 64 --temperature 0.8 "
        "--top-p 0.95",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run};
