/* tessera learn: options to a learning run, and its outcome as a table and JSON. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/numbers.h"
#include "learn/run.h"

struct learn_options {
  struct learn_settings s;
  int mode;
  const char *data, *out, *budget, *device, *pattern;
  struct text_list prior, skip;
  int64_t seed, tile, calib_tokens;
  double lr, checkpoint_every;
  bool resume, dry_run, tfevents, recompute, compact, offload, graphs;
  struct common_options common;
};

#define AT(member) offsetof(struct learn_options, member)
#define REAL(name, member, text) \
  { name, OPTION_REAL, AT(s.member), NULL, 0, 0, NULL, "X", text " (default: by mode and tokens)" }
#define COUNT(name, member, initial, least, most, text) \
  { name, OPTION_INT, AT(s.member), initial, least, most, NULL, "N", text }
#define CHOICE(name, member, choices, text) \
  { name, OPTION_CHOICE, AT(s.member), NULL, 0, 0, choices, NULL, text }

static const struct option options[] = {
    {"mode", OPTION_CHOICE, AT(mode), NULL, 0, 0, "joint|tile|maskllm", NULL,
     "learn tiles and 2:4 masks, tiles over a frozen 2:4 mask, or 2:4 masks only"},
    {"sparsity", OPTION_FRACTION, AT(s.sparsity), NULL, 0, 0, NULL, "S",
     "share of zeros over all prunable weights, 0 to 0.5 (maskllm: 0.5)"},
    {"pattern", OPTION_TEXT, AT(pattern), "2:4", 0, 0, NULL, "N:M",
     "what tiles that are not dense keep: N of every M weights, with at most 70 ways to do so, as "
     "4:8 has; kernels run 2:4 alone faster than dense"},
    {"speedup", OPTION_REAL, AT(s.speedup), NULL, 1, 16, NULL, "X",
     "in place of --sparsity: decode X times as fast as dense, by what matrices cost on this "
     "machine (measured at the start, kept in RUN)"},
    {"data", OPTION_TEXT, AT(data), NULL, 0, 0, NULL, "FILE",
     "text to learn from: UTF-8, .jsonl, or either as .gz or .zst"},
    COUNT("tokens", tokens, "0", 0, 1e15, "token budget"),
    {"budget", OPTION_TEXT, AT(budget), NULL, 0, 0, NULL, "TIME",
     "instead: as many tokens as this machine learns from in a time such as 90s, 10m or 1.5h, the "
     "prior included; measured at the start, and fixed from then on"},
    {"seed", OPTION_INT, AT(seed), "0", 0, 9e15, NULL, "K", "seed of noise, sampling and logits"},
    {"out", OPTION_TEXT, AT(out), NULL, 0, 0, NULL, "RUN", "directory of the run"},
    {"prior", OPTION_LIST, AT(prior), NULL, 0, 0, NULL, "MASK",
     "start from this mask; may be given twice: a 2:4 mask, and an unstructured one for the tiles "
     "(default: SparseGPT's, made from --data)"},
    {"resume", OPTION_FLAG, AT(resume), NULL, 0, 0, NULL, NULL,
     "continue RUN after its last checkpoint, with the same bits as if it had never stopped"},
    {"dry-run", OPTION_FLAG, AT(dry_run), NULL, 0, 0, NULL, NULL,
     "print settings, memory, disk and time, and do nothing"},
    {"tile", OPTION_INT, AT(tile), "128", 4, 4096, NULL, "N", "side of a tile, a multiple of 4"},
    {"per-block", OPTION_FLAG, AT(s.per_block), NULL, 0, 0, NULL, NULL,
     "hold the sparsity in every transformer block instead of over the model"},
    {"skip", OPTION_LIST, AT(skip), NULL, 0, 0, NULL, "PATTERN",
     "leave linears whose name matches dense; may be given several times"},
    COUNT("window", window, "0", 0, 1 << 20, "tokens of a sequence; 0: by the budget"),
    COUNT("batch", batch, "0", 0, 1 << 20, "sequences of a step; 0: by the budget"),
    COUNT("micro", micro, "0", 0, 1 << 20, "sequences at a time; 0: what 2048 tokens hold"),
    {"calib-tokens", OPTION_INT, AT(calib_tokens), "0", 0, 1e12, NULL, "N",
     "tokens a prior is calibrated on; 0: as many as --tokens, 8192 to 262144"},
    COUNT("heldout-windows", heldout_windows, "-1", -1, 1 << 20,
          "windows set aside for the held-out loss; less than 1: 2048 tokens"),
    COUNT("evaluations", evaluations, "-1", -1, 1 << 20,
          "times the held-out loss is measured; -1: 4"),
    {"checkpoint-every", OPTION_REAL, AT(checkpoint_every), "120", 0, 1e9, NULL, "SECONDS",
     "time between checkpoints"},
    {"tfevents", OPTION_FLAG, AT(tfevents), NULL, 0, 0, NULL, NULL,
     "also write TensorBoard event files into RUN"},
    CHOICE("density", density, "held|soft",
           "hold the density in every step, or the paper's loss term (default: held)"),
    CHOICE("noise", noise, "step|micro|none",
           "new Gumbel noise every step or micro-batch, or none (default: micro)"),
    CHOICE("regularizer", regularizer, "none|paper|reference|maskllm",
           "weight regularizer (default: paper; maskllm mode: maskllm)"),
    CHOICE("precision", precision, "fp32|bf16",
           "what matrix products round their operands to; masks and optimizer are fp32 (default: "
           "bf16 where that is faster, else fp32)"),
    CHOICE(
        "tile-prior", tile_prior, "linear|global|rank",
        "how the prior scores tiles: the best of each linear, of the model, or by rank (default: "
        "rank)"),
    {"lr", OPTION_REAL, AT(lr), NULL, 0, 0, NULL, "X",
     "learning rate of the tile logits, in maskllm mode of the 2:4 logits (default: by mode and "
     "tokens)"},
    REAL("lr-24", lr_24, "learning rate of the 2:4 logits"),
    REAL("lr-floor", lr_floor, "share of the rate at the cosine's end"),
    COUNT("warmup-steps", warmup_steps, "-1", -1, 1 << 30, "steps of rising rate; -1: 5"),
    REAL("beta1", beta1, "AdamW's first decay"),
    REAL("beta2", beta2, "AdamW's second decay"),
    REAL("adam-eps", adam_eps, "AdamW's epsilon"),
    REAL("weight-decay", weight_decay, "AdamW's weight decay"),
    REAL("clip", clip, "largest norm of the gradient"),
    REAL("kappa-first", tile.kappa_first, "kappa of the tile logits in the first step"),
    REAL("kappa-last", tile.kappa_last, "and in the last"),
    REAL("tau-first", tile.tau_first, "temperature of the tile logits in the first step"),
    REAL("tau-last", tile.tau_last, "and in the last"),
    REAL("kappa-24-first", two_four.kappa_first, "kappa of the 2:4 logits in the first step"),
    REAL("kappa-24-last", two_four.kappa_last, "and in the last"),
    REAL("tau-24-first", two_four.tau_first, "temperature of the 2:4 logits in the first step"),
    REAL("tau-24-last", two_four.tau_last, "and in the last"),
    REAL("l1", l1, "weight of the soft density term"),
    REAL("l2", l2, "weight of the regularizer"),
    REAL("distill", distill,
         "share of the KL from the dense model in the loss, 0 to 1; above 0 a step takes a third "
         "more time"),
    CHOICE("distill-kind", distill_kind, "forward|reverse|top-k",
           "that KL: of the dense model to the masked, the other way, or the former over the dense "
           "model's most likely tokens and all others as one (default: forward)"),
    COUNT("distill-k", distill_k, "0", 0, DISTILL_TOP_MOST, "how many those are; 0: 64"),
    REAL(
        "match", match,
        "share, in all of the loss, of the relative squared distance from the dense model's states "
        "behind each block, 0 to 1; its forward pass is the same as for --distill"),
    INPUTS_DEVICE_OPTION(struct learn_options, device),
    {"recompute", OPTION_FLAG, AT(recompute), NULL, 0, 0, NULL, NULL,
     "keep each block's input only and compute the rest again in the backward pass: a fraction of "
     "the activations' memory for a third more time"},
    {"compact", OPTION_FLAG, AT(compact), NULL, 0, 0, NULL, NULL,
     "keep 2:4 logits, their gradients and moments in 8 bytes a weight in place of 21, rounded at "
     "random: where memory is short; config.json names it, for the bits are others"},
    {"offload", OPTION_FLAG, AT(offload), NULL, 0, 0, NULL, NULL,
     "--device cuda: moments lie in the host's memory and pass through the card once a step; the "
     "same bits, slower: the last resort where memory is short"},
    {"graphs", OPTION_FLAG, AT(graphs), NULL, 0, 0, NULL, NULL,
     "--device cuda: queue what repeats in a step as graphs; the same bits"},
    REAL("init-std", init_std, "standard deviation of random logits"),
    REAL("prior-strength", prior_strength_tile, "strength of the tile prior"),
    REAL("prior-strength-24", prior_strength_24, "strength of the 2:4 prior"),
    COMMON_OPTIONS(struct learn_options, common),
};
#undef REAL
#undef COUNT
#undef CHOICE

static enum status check_given(const struct learn_options *o, struct error *err) {
  if (o->mode < 0) return error_set(err, STATUS_USAGE, "--mode is missing: joint, tile or maskllm");
  if (!o->data) return error_set(err, STATUS_USAGE, "--data is missing: a text to learn from");
  if (!o->out && !o->dry_run)
    return error_set(err, STATUS_USAGE, "--out is missing: a directory for the run");
  if (o->s.tokens < 1 && !o->budget)
    return error_set(err, STATUS_USAGE, "--tokens is missing (or --budget, a time): what to spend");
  if (o->s.tokens > 0 && o->budget)
    return error_set(err, STATUS_USAGE, "--tokens and --budget both say what to spend: give one");
  if ((o->offload || o->graphs) && !o->dry_run && !strcmp(o->device, "cpu"))
    return error_set(err, STATUS_USAGE, "--%s is for --device cuda",
                     o->offload ? "offload" : "graphs");
  if (o->prior.count > PRIOR_FILES_MAX)
    return error_set(err, STATUS_USAGE, "--prior may be given %d times", PRIOR_FILES_MAX);
  return STATUS_OK;
}

static void fill_request(struct learn_request *q, const struct learn_options *o,
                         const char *model) {
  *q = (struct learn_request){.model = model,
                              .data = o->data,
                              .out = o->out,
                              .settings = o->s,
                              .prior_count = o->prior.count,
                              .skip_count = o->skip.count,
                              .calibration_tokens = o->calib_tokens,
                              .checkpoint_seconds = o->checkpoint_every,
                              .resume = o->resume,
                              .force = o->common.force,
                              .dry_run = o->dry_run,
                              .tfevents = o->tfevents};
  q->settings.mode = (enum learn_mode)o->mode;
  q->settings.recompute = o->recompute;
  q->settings.compact = o->compact;
  q->settings.offload = o->offload;
  q->settings.graphs = o->graphs;
  q->settings.seed = (uint64_t)o->seed;
  q->settings.tile_rows = q->settings.tile_cols = o->tile;
  q->settings.lr_tile = NAN;
  if (!isnan(o->lr))
    *(o->mode == LEARN_MASKLLM ? &q->settings.lr_24 : &q->settings.lr_tile) = o->lr;
  for (int i = 0; i < o->prior.count; i++) q->priors[i] = o->prior.items[i];
  for (int i = 0; i < o->skip.count; i++) q->skip[i] = o->skip.items[i];
}

static enum status parse_pattern(const char *text, struct learn_settings *s, struct error *err) {
  struct prune_settings pattern = prune_defaults();
  enum status status = prune_pattern_parse(text, &pattern, err);
  if (status == STATUS_OK && pattern.pattern != PRUNE_2_4 && pattern.pattern != PRUNE_N_M)
    status =
        error_set(err, STATUS_USAGE,
                  "--pattern %s: give 2:4 or another n:m; --mode says whether tiles are learned "
                  "too",
                  text);
  s->keep = pattern.keep;
  s->of = pattern.of;
  return status;
}

static void print_outcome(const struct learn_report *r, const char *out) {
  printf("%-28s %10s %12s\n", "held-out text", "loss", "perplexity");
  printf("%-28s %10.4f %12.2f\n", "dense", r->dense_loss, exp(r->dense_loss));
  printf("%-28s %10.4f %12.2f\n", "prior", r->prior_loss, exp(r->prior_loss));
  printf("%-28s %10.4f %12.2f\n", "last, before projection", r->last_loss_before,
         exp(r->last_loss_before));
  printf("%-28s %10.4f %12.2f\n", "last, projected", r->last_loss, exp(r->last_loss));
  printf("%-28s %10.4f %12.2f\n", "kept", r->best_loss, exp(r->best_loss));
  printf("density %.6f (%.6f before %lld tiles were moved), of step %lld of %lld\n", r->density,
         r->density_before, (long long)r->moved_tiles, (long long)r->best_step, (long long)r->step);
  if (r->settings.costs) printf("decodes %.3f times as fast as dense, by its costs\n", r->speedup);
  printf("%.0f tokens/s, %.1f s learning, %.1f s prior, %.2f GiB at the peak\n",
         r->tokens_per_second, r->seconds, r->prior_seconds,
         (double)r->peak_bytes / (double)(1 << 30));
  printf("%s/mask.safetensors\n", out);
}

/* {"cpu": {"weights": bytes, ...}, "cuda": {...}} */
static json_t *memory_json(const struct learn_memory *m) {
  json_t *out = json_object();
  for (int p = 0; p < MEMORY_PLACES; p++) {
    json_t *place = json_object();
    for (int i = 0; i < MEMORY_PARTS; i++)
      json_object_set_new(place, memory_part_name[i], json_real(m->bytes[p][i]));
    json_object_set_new(out, memory_place_name[p], place);
  }
  return out;
}

static json_t *report_json(const struct learn_report *r) {
  json_t *o = json_pack("{s:o, s:b, s:{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}}", "settings",
                        learn_settings_to_json(&r->settings), "finished_before", r->finished_before,
                        "plan", "learned_weights", (json_int_t)r->plan.learned_weights, "tiles",
                        (json_int_t)r->plan.tiles, "memory_bytes", r->plan.memory_bytes,
                        "disk_bytes", r->plan.disk_bytes, "prior_seconds", r->plan.prior_seconds,
                        "learn_seconds", r->plan.learn_seconds, "heldout_seconds",
                        r->plan.heldout_seconds, "gflops", r->plan.gflops);
  INVARIANT(o);
  json_object_set_new(json_object_get(o, "plan"), "memory", memory_json(&r->plan.memory));
  if (r->budget.steps)
    json_object_set_new(
        o, "budget",
        json_pack("{s:f, s:f, s:I}", "seconds", r->budget.seconds, "tokens_per_second",
                  r->budget.tokens_per_second, "tokens", (json_int_t)r->budget.tokens));
  if (r->dry_run || r->finished_before) return o;
  json_t *figures = learn_report_figures(r);
  json_object_update(o, figures);
  json_decref(figures);
  return o;
}

static void print_settings(const struct learn_settings *s) {
  json_t *o = learn_settings_to_json(s);
  const char *key;
  json_t *value;
  json_object_foreach(o, key, value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
    printf("%-22s %s\n", key, text);
    free(text);
  }
  json_decref(o);
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct learn_options *o = settings;
  struct learn_request request;
  struct learn_report report;
  common_apply(&o->common);
  enum status status = check_given(o, err);
  if (status != STATUS_OK) return status;
  fill_request(&request, o, positionals->items[0]);
  status = parse_pattern(o->pattern, &request.settings, err);
  if (status != STATUS_OK) return status;
  if (o->budget) status = numbers_time(o->budget, "budget", &request.budget_seconds, err);
  /* a dry run only says what a card would need */
  const struct backend *backend = NULL;
  if (status == STATUS_OK && !o->dry_run) status = backend_open(&backend, o->device, err);
  request.settings.backend = backend;
  if (status == STATUS_OK) status = learn_run(&request, &report, err);
  backend_close(backend);
  if (status != STATUS_OK) return status;
  if (o->dry_run) {
    print_settings(&report.settings);
  } else if (report.finished_before) {
    printf("%s is finished already: %s/mask.safetensors\n", o->out, o->out);
  } else {
    print_outcome(&report, o->out);
  }
  return common_write_json(&o->common, report_json(&report), err);
}

const struct command command_learn = {
    .name = "learn",
    .positionals = "MODEL",
    .least_positionals = 1,
    .most_positionals = 1,
    .summary = "learn which tiles stay dense and which weights the others keep",
    .description =
        "Defaults scale with --tokens between settings for short runs and those of the paper; "
        "what\n"
        "they became stands in RUN/config.json. RUN holds mask.safetensors, record.jsonl,\n"
        "config.json, the prior and the checkpoints.",
    .example =
        "tessera learn MODEL --mode tile --sparsity 45% --data text.txt --tokens 20000 --out run",
    .options = options,
    .settings_bytes = sizeof(struct learn_options),
    .run = run,
};
