/* tessera eval: perplexity over a text, the divergence from a reference model, zero-shot tasks. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "cli/eval_tasks.h"
#include "cli/inputs.h"
#include "cli/output.h"
#include "eval/eval.h"
#include "kernel/ops.h"

enum { WINDOW_MOST = 4096 }; /* the field's, where the model's context is at least as long */

struct settings {
  const char *mask, *ppl, *kl_to, *kl_cache, *device;
  int64_t window, batch, tokens;
  int precision;
  bool decode;
  struct task_settings zeroshot;
  struct common_options common;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "drop what this mask file drops"},
    {"ppl", OPTION_TEXT, offsetof(struct settings, ppl), NULL, 0, 0, NULL, "FILE",
     "the text: UTF-8, .jsonl, or either as .gz or .zst"},
    {"window", OPTION_INT, offsetof(struct settings, window), "0", 0, 1 << 20, NULL, "L",
     "tokens of a window, at least 2; 0 means the model's context, at most 4096"},
    {"kl-to", OPTION_TEXT, offsetof(struct settings, kl_to), NULL, 0, 0, NULL, "MODEL",
     "also measure KL(MODEL || this model) and how often both find the same token likeliest"},
    {"kl-cache", OPTION_TEXT, offsetof(struct settings, kl_cache), NULL, 0, 0, NULL, "FILE",
     "keep the last hidden states of --kl-to's model in FILE and use them again for the same text: "
     "4 bytes x hidden size a token"},
    {"batch", OPTION_INT, offsetof(struct settings, batch), "0", 0, 4096, NULL, "N",
     "windows in one pass; 0 means about 2048 tokens"},
    {"tokens", OPTION_INT, offsetof(struct settings, tokens), "0", 0, 1e12, NULL, "N",
     "use only the first N tokens of the text; 0 means all"},
    {"precision", OPTION_CHOICE, offsetof(struct settings, precision), "fp32", 0, 0, "fp32|bf16",
     NULL,
     "what products round their operands to: fp32 is exact, bf16 faster where the processor has it "
     "(--kl-to's model stays fp32)"},
    {"decode", OPTION_FLAG, offsetof(struct settings, decode), NULL, 0, 0, NULL, NULL,
     "--ppl as `generate` computes: weights brought into the order of decoding, token by token, "
     "keys and values kept as f16; integers multiply activations rounded to int8"},
    INPUTS_DEVICE_OPTION(struct settings, device),
    TASK_OPTIONS(struct settings, zeroshot),
    COMMON_OPTIONS(struct settings, common)};

/* Everything that the command opens. */
struct inputs {
  struct model *model, *reference;
  const struct backend *backend;
  struct model *placed[2]; /* both in its memory, where that is not the host's */
  struct tokenizer *tokenizer;
  struct corpus corpus;
  struct windows windows;
};

static void close_inputs(struct inputs *in) {
  windows_free(&in->windows);
  corpus_free(&in->corpus);
  tokenizer_close(in->tokenizer);
  for (int i = 0; i < 2; i++) model_close(in->placed[i]);
  backend_close(in->backend);
  model_close(in->model);
  model_close(in->reference);
}

static enum status check_settings(const struct settings *s, struct error *err) {
  if (!s->ppl && !s->zeroshot.tasks)
    return error_set(err, STATUS_USAGE,
                     "tessera eval needs --ppl FILE, the text, or --tasks NAMES");
  if (s->window == 1) return error_set(err, STATUS_USAGE, "--window must be at least 2, or 0");
  if (s->kl_to && !s->ppl)
    return error_set(err, STATUS_USAGE, "--kl-to belongs to --ppl FILE, which is missing");
  if (s->kl_cache && !s->kl_to)
    return error_set(err, STATUS_USAGE, "--kl-cache belongs to --kl-to MODEL, which is missing");
  if (s->decode && (!s->ppl || s->zeroshot.tasks))
    return error_set(err, STATUS_USAGE, "--decode is for --ppl FILE, without --tasks");
  return eval_tasks_check(&s->zeroshot, &s->common, err);
}

/* The window, and a warning where it is longer than what the model was made for. */
static int64_t choose_window(const struct settings *s, const struct model *model) {
  int64_t context = model_config(model)->context_length;
  if (s->window == 0) return context < WINDOW_MOST ? context : WINDOW_MOST;
  if (s->window > context)
    log_warn("windows of %lld tokens are longer than the %lld of the model's context",
             (long long)s->window, (long long)context);
  return s->window;
}

/* On strips: the packing of products expands them faster than rows, and tasks ask with few tokens.
 * Integers would meet rounded activations there, and stay as they are unless they are to. */
static enum status prepare(struct model *model, bool integers_too, struct error *err) {
  bool floats = dtype_is_native(linear_dtype(model_head(model)));
  for (int i = 0; i < model_site_count(model); i++)
    floats = floats && dtype_is_native(linear_dtype(&model_site(model, i)->weight));
  return floats || integers_too ? model_prepare(model, false, err) : STATUS_OK;
}

static enum status open_inputs(struct inputs *in, const struct settings *s, const char *path,
                               struct error *err) {
  enum status status = inputs_model(&in->model, path, s->mask, err);
  /* what decodes on a card is packed there from what the file holds */
  if (!status && !(s->decode && !in->backend->is_host)) status = prepare(in->model, s->decode, err);
  if (!status) status = tokenizer_open(&in->tokenizer, path, err);
  if (status || !s->ppl) return status;
  status = corpus_load(&in->corpus, s->ppl, in->tokenizer, s->tokens, err);
  if (!status)
    status = windows_cut(&in->windows, &in->corpus, choose_window(s, in->model), false, err);
  if (!status && s->kl_to) status = model_open_to_run(&in->reference, s->kl_to, err);
  if (!status && s->kl_to) status = prepare(in->reference, false, err);
  return status;
}

/* Brings the models to where they run: the reference of a model that decodes stays on the CPU. */
static enum status place_inputs(struct inputs *in, bool decode, struct error *err) {
  const struct model *hosts[2] = {in->model, in->reference};
  enum status status = STATUS_OK;
  if (decode && !in->backend->is_host)
    return model_place_to_run(&in->placed[0], in->model, in->backend, true, err);
  for (int i = 0; i < 2 && !status && !in->backend->is_host; i++)
    if (hosts[i]) status = model_place(&in->placed[i], hosts[i], in->backend, err);
  return status;
}

/* Decoding on a GPU always multiplies bf16. */
static enum precision precision_of(const struct settings *s) {
  return s->decode && strcmp(s->device, "cpu") != 0 ? PRECISION_BF16 : (enum precision)s->precision;
}

static json_t *model_json_of(const struct settings *s, const struct model *model) {
  json_t *out = json_object();
  json_object_set_new(out, "model", json_string(model_path(model)));
  json_object_set_new(out, "mask", output_text(s->mask));
  json_object_set_new(out, "density", output_real(model_density(model)));
  json_object_set_new(out, "device", json_string(s->device));
  json_object_set_new(out, "precision", json_string(precision_name[precision_of(s)]));
  json_object_set_new(out, "isa", json_string(kernel_isa()));
  json_object_set_new(out, "threads", json_integer(parallel_threads()));
  return out;
}

static void put_perplexity(json_t *out, const struct settings *s, const struct inputs *in,
                           const struct eval_result *r) {
  json_object_set_new(out, "text", json_string(s->ppl));
  json_object_set_new(out, "perplexity", output_real(r->perplexity));
  json_object_set_new(out, "perplexity_stderr", output_real(r->perplexity_error));
  json_object_set_new(out, "nll", output_real(r->nll.mean));
  json_object_set_new(out, "nll_stderr", output_real(r->nll.standard_error));
  if (in->reference) {
    json_object_set_new(out, "kl_to", json_string(s->kl_to));
    json_object_set_new(out, "kl", output_real(r->kl.mean));
    json_object_set_new(out, "kl_stderr", output_real(r->kl.standard_error));
    json_object_set_new(out, "top1_agreement", output_real(r->agreement.mean));
    json_object_set_new(out, "top1_agreement_stderr", output_real(r->agreement.standard_error));
  }
  json_object_set_new(out, "predictions", json_integer(r->predictions));
  json_object_set_new(out, "window", json_integer(in->windows.length));
  json_object_set_new(out, "windows", json_integer(r->windows));
  json_object_set_new(out, "tokens", json_integer((json_int_t)in->corpus.ids.count));
  json_object_set_new(out, "decode", json_boolean(s->decode));
  json_object_set_new(out, "batch", json_integer(r->batch));
  json_object_set_new(out, "seconds", output_real(r->seconds));
}

/* " +- 0.0123", or nothing where one window gives no error. */
static const char *plus_minus(char out[40], double scale, double standard_error) {
  *out = 0;
  if (isfinite(standard_error)) snprintf(out, 40, " \xc2\xb1 %.*g", 2, scale * standard_error);
  return out;
}

static void print_result(const struct settings *s, const struct inputs *in,
                         const struct eval_result *r) {
  char compute[96], tokens[32], predictions[32], error[40];
  struct table facts = output_facts();
  inputs_describe_compute((enum precision)s->precision, compute);
  format_integer(tokens, (long long)in->corpus.ids.count);
  format_integer(predictions, r->predictions);
  output_fact(&facts, "model", "%s%s%s", model_path(in->model), s->mask ? " under " : "",
              s->mask ? s->mask : "");
  output_fact(&facts, "computed in", "%s%s", compute, s->decode ? ", token by token" : "");
  output_fact(&facts, "text", "%s: %s tokens, %lld windows of %lld", s->ppl, tokens,
              (long long)r->windows, (long long)in->windows.length);
  output_fact(&facts, "density", "%.4f of the prunable weights", model_density(in->model));
  output_fact(&facts, "perplexity", "%.4f%s", r->perplexity,
              plus_minus(error, 1, r->perplexity_error));
  output_fact(&facts, "nll", "%.5f%s nats per token over %s predictions", r->nll.mean,
              plus_minus(error, 1, r->nll.standard_error), predictions);
  if (in->reference) {
    output_fact(&facts, "KL", "%.5f%s nats per token from %s", r->kl.mean,
                plus_minus(error, 1, r->kl.standard_error), s->kl_to);
    output_fact(&facts, "same top-1", "%.2f%s %%", 100 * r->agreement.mean,
                plus_minus(error, 100, r->agreement.standard_error));
  }
  output_fact(&facts, "took", "%.1f s, %.0f tokens/s", r->seconds,
              (double)(r->windows * in->windows.length) / r->seconds);
  output_table(&facts);
  table_free(&facts);
}

static enum status measure_text(const struct settings *s, const struct inputs *in, json_t *json,
                                struct error *err) {
  struct eval_result result;
  struct eval_request request = {.model = in->placed[0] ? in->placed[0] : in->model,
                                 .reference = in->placed[1] ? in->placed[1] : in->reference,
                                 .windows = &in->windows,
                                 .batch = s->batch,
                                 .precision = (enum precision)s->precision,
                                 .decode = s->decode,
                                 .reference_cache = s->kl_cache};
  enum status status = eval_run(&result, &request, err);
  if (status) return status;
  if (output_to_people(&s->common)) print_result(s, in, &result);
  put_perplexity(json, s, in, &result);
  return STATUS_OK;
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct settings *s = settings;
  common_apply(&s->common);
  struct inputs in = {0};
  enum status status = check_settings(s, err);
  if (!status) status = backend_open(&in.backend, s->device, err);
  if (!status) status = open_inputs(&in, s, positionals->items[0], err);
  if (!status) status = place_inputs(&in, s->decode, err);
  json_t *json = status ? NULL : model_json_of(s, in.model);
  if (!status && s->ppl) status = measure_text(s, &in, json, err);
  if (!status && s->zeroshot.tasks)
    status = eval_tasks_run(&s->zeroshot, &s->common, in.placed[0] ? in.placed[0] : in.model,
                            in.tokenizer, (enum precision)s->precision, json, err);
  if (!status)
    status = common_write_json(&s->common, json, err);
  else
    json_decref(json);
  close_inputs(&in);
  return status;
}

const struct command command_eval = {
    .name = "eval",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "measure perplexity, the divergence from another model, zero-shot tasks",
    .description =
        "The text is tokenized once and cut into non-overlapping windows of L tokens; the rest is\n"
        "dropped. Each window gives L - 1 predictions. L changes the number: state it with every\n"
        "figure. Standard errors are over windows.\n"
        "Tasks are those of lm-evaluation-harness, by its names, templates and metrics.",
    .example = "tessera eval MODEL --mask run/mask.safetensors --ppl heldout.txt --kl-to MODEL",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run};
