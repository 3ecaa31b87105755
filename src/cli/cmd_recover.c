/* tessera recover: fine-tuning of the weights that a mask keeps. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/output.h"
#include "convert/convert.h"
#include "convert/weights.h"
#include "learn/recover.h"
#include "learn/settings.h"
#include "learn/state_file.h"
#include "text/tokenizer.h"

struct settings {
  struct common_options common;
  const char *mask, *data, *out, *budget, *teacher;
  int64_t tokens, window, batch, seed, lora, distill_k;
  double rate, distill, match, checkpoint_every;
  bool resume;
  int precision, distill_kind;
};

static const struct option options[] = {
    {"mask", OPTION_TEXT, offsetof(struct settings, mask), NULL, 0, 0, NULL, "MASK",
     "the mask: what it drops stays zero"},
    {"data", OPTION_TEXT, offsetof(struct settings, data), NULL, 0, 0, NULL, "FILE",
     "text to learn from: UTF-8, .jsonl, or either as .gz or .zst"},
    {"tokens", OPTION_INT, offsetof(struct settings, tokens), "0", 0, 1e15, NULL, "N",
     "token budget"},
    {"budget", OPTION_TEXT, offsetof(struct settings, budget), NULL, 0, 0, NULL, "TIME",
     "instead: as many tokens as this machine learns from in a time such as 90s, 10m or 1.5h; "
     "measured at the start"},
    {"resume", OPTION_FLAG, offsetof(struct settings, resume), NULL, 0, 0, NULL, NULL,
     "go on after the last checkpoint, with the same bits as if it had never stopped"},
    {"checkpoint-every", OPTION_REAL, offsetof(struct settings, checkpoint_every), "300", 0, 1e9,
     NULL, "SECONDS", "time between checkpoints, in DIR.state until the model is written"},
    {"out", OPTION_TEXT, offsetof(struct settings, out), NULL, 0, 0, NULL, "DIR",
     "the Hugging Face directory to write"},
    {"lr", OPTION_REAL, offsetof(struct settings, rate), "0", 0, 1, NULL, "X",
     "highest learning rate; 0: by the size of the model"},
    {"window", OPTION_INT, offsetof(struct settings, window), "512", 2, 1 << 20, NULL, "N",
     "tokens of a sequence, at most the model's context"},
    {"batch", OPTION_INT, offsetof(struct settings, batch), "2", 1, 1 << 16, NULL, "N",
     "sequences of a step"},
    {"lora", OPTION_INT, offsetof(struct settings, lora), "0", 0, 1 << 12, NULL, "RANK",
     "tune low-rank adapters in place of the weights, merged under the mask: half of the memory; "
     "0: the weights themselves"},
    {"distill", OPTION_REAL, offsetof(struct settings, distill), "0", 0, 1, NULL, "W",
     "share of the divergence from the dense model in the loss; the rest is the text's"},
    {"distill-kind", OPTION_CHOICE, offsetof(struct settings, distill_kind), NULL, 0, 0,
     "forward|reverse|top-k", NULL,
     "that divergence: KL(dense || recovered), the other way, or the former over the dense model's "
     "most likely tokens and all others as one (default: forward)"},
    {"distill-k", OPTION_INT, offsetof(struct settings, distill_k), "0", 0, DISTILL_TOP_MOST, NULL,
     "K", "how many those are; 0: 64"},
    {"match", OPTION_REAL, offsetof(struct settings, match), "0", 0, 1, NULL, "W",
     "share, in all of the loss, of the relative squared distance from the dense model's states "
     "behind each block"},
    {"teacher", OPTION_TEXT, offsetof(struct settings, teacher), NULL, 0, 0, NULL, "MODEL",
     "that dense model, where the first MODEL is refit or recovered (default: the first MODEL)"},
    {"seed", OPTION_INT, offsetof(struct settings, seed), "0", 0, 9e15, NULL, "K",
     "which windows of the text are taken"},
    {"precision", OPTION_CHOICE, offsetof(struct settings, precision), NULL, 0, 0, "fp32|bf16",
     NULL, "what matrix products round their operands to (default: bf16 where it is fast)"},
    COMMON_OPTIONS(struct settings, common)};

/* DIR.state: where the work lies until DIR is written. */
static char *state_of(const struct settings *s) {
  size_t length = strlen(s->out);
  while (length > 1 && s->out[length - 1] == '/') length--;
  char *path = malloc(length + sizeof ".state");
  INVARIANT(path);
  memcpy(path, s->out, length);
  memcpy(path + length, ".state", sizeof ".state");
  return path;
}

static enum status check(const struct settings *s, struct error *err) {
  if (!s->mask) return error_set(err, STATUS_USAGE, "--mask is missing: what is to stay zero");
  if (!s->data) return error_set(err, STATUS_USAGE, "--data is missing: a text to learn from");
  if ((s->tokens < 1) == !s->budget)
    return error_set(err, STATUS_USAGE,
                     s->budget ? "--tokens and --budget both say what to spend: give one"
                               : "--tokens is missing (or --budget, a time): what to spend");
  if (!s->out) return error_set(err, STATUS_USAGE, "say where the model goes with --out DIR");
  if (s->teacher && s->distill == 0 && s->match == 0)
    return error_set(err, STATUS_USAGE, "--teacher is asked nothing without --distill or --match");
  double seconds;
  char *state = state_of(s);
  const bool unfinished = state_exists(state);
  free(state);
  if (unfinished && !s->resume && !s->common.force)
    return error_set(err, STATUS_REFUSED,
                     "%s.state holds unfinished work: go on with --resume, or begin anew with "
                     "--force",
                     s->out);
  enum status status = s->budget ? numbers_time(s->budget, "budget", &seconds, err) : STATUS_OK;
  return status ? status : common_check_output(&s->common, s->out, err);
}

static enum status open_text(const struct settings *s, const char *path, int64_t window,
                             struct corpus *corpus, struct windows *windows, struct error *err) {
  /* read beyond the budget, for variety; and for a budget of time, whose tokens are not known yet
   */
  enum { SURPLUS_TOKENS = 1 << 19, TIME_TOKENS = 1 << 22 };
  const int64_t most = s->budget ? TIME_TOKENS : s->tokens + SURPLUS_TOKENS;
  struct tokenizer *tokenizer = NULL;
  enum status status = tokenizer_open(&tokenizer, path, err);
  if (!status) status = corpus_load(corpus, s->data, tokenizer, most, err);
  if (!status) status = windows_cut(windows, corpus, window, false, err);
  tokenizer_close(tokenizer);
  return status;
}

static enum status report(const struct settings *s, const struct recover_report *r,
                          struct error *err) {
  if (output_to_people(&s->common)) {
    printf("%-28s %10s %12s\n", "held-out text", "loss", "perplexity");
    printf("%-28s %10.4f %12.2f\n", "dense", r->dense_loss, exp(r->dense_loss));
    printf("%-28s %10.4f %12.2f\n", "masked, frozen weights", r->masked_loss, exp(r->masked_loss));
    printf("%-28s %10.4f %12.2f\n", "masked, recovered", r->loss, exp(r->loss));
    printf("%lld %s in %lld steps at rate %g, %.1f s, %.0f tokens/s; the mask is as it was\n",
           (long long)r->weights, s->lora ? "numbers of adapters" : "kept weights",
           (long long)r->steps, r->rate, r->seconds, r->tokens_per_second);
    printf("%s\n", s->out);
  }
  if (!s->common.json) return STATUS_OK;
  return common_write_json(
      &s->common,
      json_pack("{s:s, s:b, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I}",
                "path", s->out, "recovered", 1, "weights", (json_int_t)r->weights, "steps",
                (json_int_t)r->steps, "dense_loss", r->dense_loss, "masked_loss", r->masked_loss,
                "loss", r->loss, "seconds", r->seconds, "tokens_per_second", r->tokens_per_second,
                "rate", r->rate, "distill", s->distill, "kl", r->kl, "match", s->match, "distance",
                r->distance, "lora", (json_int_t)s->lora),
      err);
}

static enum status recover(const struct settings *s, struct model *model,
                           const struct model *teacher, const struct mask_set *masks,
                           const struct windows *windows, const char *state, struct error *err) {
  struct recover_settings settings = {
      .state = state,
      .checkpoint_seconds = s->checkpoint_every,
      .resume = s->resume,
      .tokens = s->tokens,
      .batch = s->batch,
      .seed = (uint64_t)s->seed,
      .rate = s->rate,
      .lora_rank = s->lora,
      .objective = {{(enum distill_kind)s->distill_kind, s->distill_k, s->distill}, s->match},
      .teacher = teacher,
      .precision = s->precision < 0 ? precision_fastest() : (enum precision)s->precision};
  struct recover_report result;
  char note[256];
  enum status status =
      s->budget ? numbers_time(s->budget, "budget", &settings.seconds, err) : STATUS_OK;
  if (!status) status = recover_run(model, masks, windows, &settings, &result, err);
  if (status) return status;
  snprintf(
      note, sizeof note,
      "The kept weights were then fine-tuned (tessera recover, %lld tokens at rate %g%s): they "
      "are not those of the original model.",
      (long long)result.steps * s->batch * windows->length, result.rate,
      s->lora ? ", low-rank adapters merged under the mask" : "");
  status = convert_to_hf_noted(model, masks, note, s->out, weights_natural_dtype(model),
                               s->common.force, err);
  if (status) return status;
  state_remove(state);
  return report(s, &result, err);
}

static enum status run(const struct command *command, void *settings_pointer,
                       struct text_list *positionals, struct error *err) {
  struct settings *s = settings_pointer;
  struct model *model = NULL, *teacher = NULL;
  struct mask_set masks = {0};
  struct corpus corpus = {0};
  struct windows windows = {0};
  common_apply(&s->common);
  enum status status = check(s, err);
  if (!status) status = learn_check_distill(&s->distill_kind, &s->distill_k, s->distill, err);
  if (!status) status = model_open(&model, positionals->items[0], err);
  if (!status && (s->distill > 0 || s->match > 0))
    status = model_open(&teacher, s->teacher ? s->teacher : positionals->items[0], err);
  if (!status) status = mask_load(&masks, s->mask, err);
  if (!status) {
    int64_t context = model_config(model)->context_length;
    int64_t window = s->window < context ? s->window : context;
    status = open_text(s, positionals->items[0], window, &corpus, &windows, err);
  }
  if (!status) {
    char *state = state_of(s);
    status = recover(s, model, teacher, &masks, &windows, state, err);
    free(state);
  }
  windows_free(&windows);
  corpus_free(&corpus);
  mask_set_free(&masks);
  model_close(teacher);
  model_close(model);
  return status;
}

const struct command command_recover = {
    .name = "recover",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "fine-tune the weights that a mask keeps; the mask stays",
    .description =
        "Learning a mask leaves the weights as they are; this tunes them under it (AdamW on the\n"
        "kept weights of the masked linears) and writes another model, labelled as such. It may "
        "be\n"
        "packed with the same mask. 16 bytes of memory a weight, 8 with --lora; Ctrl-C saves the\n"
        "work in DIR.state: --resume goes on.",
    .example =
        "tessera recover MODEL --mask run/mask.safetensors --data text.txt --tokens 50000 "
        "--out recovered",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run,
};
