/* tessera bench: decode and prefill speed of models, each hybrid one against its dense form. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/numbers.h"
#include "cli/output.h"
#include "kernel/ops.h"
#include "kernel/select.h"
#include "model/synthetic.h"

#define AT(member) offsetof(struct bench_settings, member)

static const struct option options[] = {
    {"decode", OPTION_LIST, AT(decode), NULL, 0, 0, NULL, "N,..",
     "sequences that are decoded together, or none [default: 1,2,4,8,16,32,64]"},
    {"prefill", OPTION_LIST, AT(prefill), NULL, 0, 0, NULL, "N,..",
     "lengths of prompts to read, or none [default: 128,512,2048]"},
    {"text", OPTION_LIST, AT(text), NULL, 0, 0, NULL, "P+NxB,..",
     "B prompts of P tokens each, read and continued by N tokens: the rate counts the tokens that "
     "are generated over the time of all, as 128+1024x16"},
    {"rounds", OPTION_INT, AT(rounds), "5", 1, SPEED_ROUNDS_MAX, NULL, "N",
     "times that each is measured, in turn with the others; the median counts"},
    {"seconds", OPTION_REAL, AT(seconds), "0.5", 0.01, 60, NULL, "S",
     "how long one run takes, about; a prompt is read once at least"},
    {"synthetic", OPTION_LIST, AT(synthetic), NULL, 0, 0, NULL, "NAME",
     "measure random weights in the shapes of llama2-7b, llama3.1-8b, qwen2.5-0.5b ..., blocks "
     "only: dense, and hybrid at each --density"},
    {"layers", OPTION_INT, AT(layers), "0", 0, MODEL_LAYERS_MAX, NULL, "N",
     "blocks of a synthetic model; 0 means enough for half a gigabyte of dense weights"},
    {"vocabulary", OPTION_INT, AT(vocabulary), "0", 0, 1 << 20, NULL, "N",
     "tokens of a synthetic model's vocabulary, whose head is then read, too; 0 means blocks only"},
    {"density", OPTION_LIST, AT(density), NULL, 0, 0, NULL, "D,..",
     "share of a synthetic model's weights that is kept [default: 0.75,0.65,0.55,0.5]"},
    {"dtype", OPTION_CHOICE, AT(dtype), "bf16", 0, 0, "bf16|f16|f32|int8|int4", "TYPE",
     "type of synthetic weights; integers have a scale for 32"},
    {"seed", OPTION_INT, AT(seed), "1", 0, INT32_MAX, NULL, "N",
     "of synthetic weights and of the draw of their 2:4 tiles"},
    {"isa", OPTION_TEXT, AT(isa), NULL, 0, 0, NULL, "NAME",
     "instruction set to use, at most what the machine has; as TSR_ISA does"},
    {"precision", OPTION_CHOICE, AT(precision), NULL, 0, 0, "fp32|bf16", NULL,
     "what products round their operands to while a prompt is read (default: as generate does, "
     "bf16 "
     "where that is faster, else fp32)"},
    {"kv", OPTION_CHOICE, AT(kv), "f16", 0, 0, INPUTS_KV_CHOICES, NULL,
     "how keys and values of the context are kept, as in generate"},
    INPUTS_DEVICE_OPTION(struct bench_settings, device),
    {"graph", OPTION_FLAG, AT(graph), NULL, 0, 0, NULL, NULL,
     "on a GPU: record a step once and run it as one piece from then on (a CUDA graph)"},
    {"peers", OPTION_FLAG, AT(peers), NULL, 0, 0, NULL, NULL,
     "also measure llama.cpp and PyTorch on the dense weights; PYTHON names the interpreter that "
     "has llama-cpp-python, torch and transformers"},
    {"peer", OPTION_LIST, AT(peer), NULL, 0, 0, NULL, "NAME",
     "only this peer: llama.cpp or pytorch"},
    COMMON_OPTIONS(struct bench_settings, common)};

enum { DENSITIES_MAX = 32 };

enum status bench_add(struct bench_job *job, const struct bench_entry *entry, struct error *err) {
  if (job->entry_count == BENCH_ENTRIES_MAX)
    return error_set(err, STATUS_USAGE, "more than %d models cannot be measured in one run",
                     BENCH_ENTRIES_MAX);
  job->entries[job->entry_count++] = *entry;
  return STATUS_OK;
}

/* Adds a model in the form in which generate runs it; a model that cannot be added is closed. */
static enum status add_model(struct bench_job *job, const struct bench_entry *entry,
                             struct error *err) {
  struct bench_entry added = *entry;
  enum status status = job->backend->is_host ? model_prepare(entry->model, false, err)
                                             : model_place_to_run(&added.placed, entry->model,
                                                                  job->backend, true, err);
  if (!status) status = bench_add(job, &added, err);
  if (!status) return STATUS_OK;
  model_close(added.placed);
  model_close(entry->model);
  return status;
}

/* --- cases --- */

static bool take_mark(const char **at, char mark) {
  if (**at != mark) return false;
  ++*at;
  return true;
}

/* "128+1024x16" at *at, which is moved behind it: prompt, tokens, batch, none of them 0. */
static bool take_text(const char **at, struct speed_case *text) {
  int64_t prompt, tokens, batch;
  if (!number_take(at, BENCH_PREFILL_MOST, &prompt) || !take_mark(at, '+') ||
      !number_take(at, BENCH_PREFILL_MOST, &tokens) || !take_mark(at, 'x') ||
      !number_take(at, SESSION_SLOTS_MAX, &batch))
    return false;
  *text = (struct speed_case){SPEED_TEXT, batch, prompt, tokens};
  return prompt > 0 && tokens > 0 && batch > 0;
}

/* "128+1024x16,..." */
static enum status choose_texts(struct bench_job *job, struct error *err) {
  const struct text_list *list = &job->settings->text;
  for (int i = 0; i < list->count; i++) {
    const char *at = list->items[i];
    do {
      struct speed_case text;
      if (!take_text(&at, &text) || (*at && *at != ','))
        return error_set(err, STATUS_USAGE,
                         "--text takes texts such as 128+1024x16, up to %d tokens and %d at once, "
                         "not \"%s\"",
                         BENCH_PREFILL_MOST, SESSION_SLOTS_MAX, list->items[i]);
      if (job->case_count == BENCH_CASES_MAX)
        return error_set(err, STATUS_USAGE, "more than %d cases cannot be measured in one run",
                         BENCH_CASES_MAX);
      job->cases[job->case_count++] = text;
    } while (take_mark(&at, ','));
  }
  return STATUS_OK;
}

static enum status choose_phase(struct bench_job *job, enum speed_phase phase,
                                const struct text_list *list, const char *usual, const char *option,
                                int64_t most, struct error *err) {
  int64_t values[BENCH_CASES_MAX];
  int count = 0;
  if (job->settings->text.count && !list->count) return STATUS_OK; /* texts alone */
  enum status status =
      numbers_integers(list, usual, option, 1, most, values, BENCH_CASES_MAX / 2, &count, err);
  for (int i = 0; i < count && !status; i++)
    job->cases[job->case_count++] = (struct speed_case){.phase = phase, .batch = values[i]};
  return status;
}

static enum status choose_cases(struct bench_job *job, struct error *err) {
  const struct bench_settings *s = job->settings;
  enum status status = choose_phase(job, SPEED_DECODE, &s->decode, "1,2,4,8,16,32,64", "decode",
                                    SESSION_SLOTS_MAX, err);
  if (!status)
    status = choose_phase(job, SPEED_PREFILL, &s->prefill, "128,512,2048", "prefill",
                          BENCH_PREFILL_MOST, err);
  if (!status) status = choose_texts(job, err);
  if (status || job->case_count) return status;
  return error_set(err, STATUS_USAGE, "--decode none and --prefill none leave nothing to measure");
}

/* --- models --- */

static bool is_hybrid(const struct model *model) {
  for (int i = 0; i < model_site_count(model); i++)
    if (linear_is_hybrid(&model_site(model, i)->weight)) return true;
  return false;
}

const char *bench_dtype(const struct model *model) {
  const char *first = linear_type_name(&model_site(model, 0)->weight);
  for (int i = 1; i < model_site_count(model); i++)
    if (strcmp(linear_type_name(&model_site(model, i)->weight), first) != 0) return "mixed";
  return first;
}

/* Whether integers have scales of one kind, or neither has integers. */
static bool same_scales(const struct linear_weight *x, const struct linear_weight *y) {
  const struct quant_strips *a = x->quant, *b = y->quant;
  if (x->integers && y->integers) /* as stored, for a GPU */
    return !x->integers->mins == !y->integers->mins && x->integers->group == y->integers->group;
  if (!a || !b) return a == b;
  return a->mins == b->mins && !a->row_scales == !b->row_scales;
}

/* The same shapes and element types everywhere: what one reads more, the other leaves out. */
static bool same_form(const struct model *a, const struct model *b) {
  if (model_site_count(a) != model_site_count(b)) return false;
  const struct linear_weight *head_a = model_head(a), *head_b = model_head(b);
  if (linear_rows(head_a) != linear_rows(head_b) || linear_dtype(head_a) != linear_dtype(head_b))
    return false;
  for (int i = 0; i < model_site_count(a); i++) {
    const struct linear_weight *x = &model_site(a, i)->weight, *y = &model_site(b, i)->weight;
    if (linear_rows(x) != linear_rows(y) || linear_cols(x) != linear_cols(y) ||
        linear_dtype(x) != linear_dtype(y) || !same_scales(x, y))
      return false;
  }
  return true;
}

static enum status open_models(struct bench_job *job, const struct text_list *paths,
                               struct error *err) {
  for (int i = 0; i < paths->count; i++) {
    struct bench_entry entry = {.dense_entry = -1};
    enum status status = model_open_to_run(&entry.model, paths->items[i], err);
    if (status) return status;
    entry.hybrid = is_hybrid(entry.model);
    status = add_model(job, &entry, err);
    if (status) return status;
  }
  return STATUS_OK;
}

/* Each hybrid model gets an opponent: a dense model of the list, or itself made dense. */
static enum status find_dense_forms(struct bench_job *job, struct error *err) {
  int given = job->entry_count;
  for (int i = 0; i < given; i++) {
    struct bench_entry *e = &job->entries[i];
    if (!e->hybrid) continue;
    for (int j = 0; j < job->entry_count && e->dense_entry < 0; j++)
      if (!job->entries[j].hybrid && same_form(e->model, job->entries[j].model)) e->dense_entry = j;
    if (e->dense_entry >= 0) continue;
    struct bench_entry dense = {.made = true, .dense_entry = -1};
    enum status status = model_open_to_run(&dense.model, model_path(e->model), err);
    if (status) return status;
    status = model_unpack(dense.model, err);
    if (status)
      model_close(dense.model);
    else
      status = add_model(job, &dense, err);
    if (status) return status;
    e->dense_entry = job->entry_count - 1;
  }
  return STATUS_OK;
}

/* --- synthetic models --- */

/* The dense form and one model for each density, of every shape: settled, most bytes first. */
struct plan {
  struct synthetic_model models[BENCH_ENTRIES_MAX];
  int count;
};

static enum status plan_models(const struct bench_settings *s, struct plan *plan,
                               struct error *err) {
  static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_I8, DTYPE_U8};
  double densities[DENSITIES_MAX];
  int count;
  enum status status = numbers_reals(&s->density, "0.75,0.65,0.55,0.5", "density", 0.5, 1,
                                     densities, DENSITIES_MAX, &count, err);
  for (int i = 0; i < s->synthetic.count && !status; i++)
    for (int d = -1; d < count && !status; d++) {
      struct synthetic_model *m = &plan->models[plan->count];
      if (d >= 0 && densities[d] == 1) continue;
      if (plan->count == BENCH_ENTRIES_MAX)
        return error_set(err, STATUS_USAGE, "more than %d models cannot be measured in one run",
                         BENCH_ENTRIES_MAX);
      *m = (struct synthetic_model){.shape = s->synthetic.items[i],
                                    .layers = (int)s->layers,
                                    .dtype = dtypes[s->dtype],
                                    .density = d < 0 ? 1 : densities[d],
                                    .seed = (uint64_t)s->seed,
                                    .vocabulary = s->vocabulary};
      status = synthetic_settle(m, err);
      plan->count++;
    }
  return status;
}

/* All models are in memory at once, because rounds are interleaved: said, and held against what
 * there is, before any is made. */
static enum status check_memory(const struct plan *plan, struct error *err) {
  double bytes = 0, available = (double)mem_available_bytes();
  char need[32], have[32];
  for (int i = 0; i < plan->count; i++) bytes += (double)synthetic_bytes(&plan->models[i]);
  format_bytes(need, bytes);
  format_bytes(have, available);
  if (available > 0 && bytes > 0.9 * available)
    return error_set(err, STATUS_REFUSED,
                     "%d synthetic models take %s of weights and %s of memory are free; give fewer "
                     "--layers or fewer values of --density",
                     plan->count, need, have);
  log_info("making %d synthetic models: %s of weights, %s of memory are free", plan->count, need,
           available > 0 ? have : "an unknown amount");
  return STATUS_OK;
}

static enum status make_models(struct bench_job *job, struct error *err) {
  if (job->settings->synthetic.count == 0) return STATUS_OK;
  struct plan *plan = mem_alloc(1, sizeof *plan, err);
  if (!plan) return STATUS_FAILED;
  enum status status = plan_models(job->settings, plan, err);
  if (!status) status = check_memory(plan, err);
  for (int i = 0; i < plan->count && !status; i++) {
    struct bench_entry entry = {.hybrid = plan->models[i].density < 1, .dense_entry = -1};
    status = synthetic_open(&entry.model, &plan->models[i], err);
    if (!status) status = add_model(job, &entry, err);
  }
  mem_free(plan);
  return status;
}

/* --- the run --- */

bool bench_on_host(const struct bench_settings *s) { return !strcmp(s->device, "cpu"); }

enum precision bench_precision(const struct bench_settings *s) {
  if (!bench_on_host(s)) return PRECISION_BF16;
  return s->precision < 0 ? precision_fastest() : (enum precision)s->precision;
}

static enum status choose_isa(const char *isa, struct error *err) {
  if (!isa || kernel_table_use(isa)) return STATUS_OK;
  return error_set(err, STATUS_USAGE,
                   "--isa %s: there is no such instruction set, or this machine lacks it; without "
                   "the option it uses %s",
                   isa, kernel_isa());
}

static enum status check_request(const struct bench_settings *s, const struct text_list *paths,
                                 struct error *err) {
  if (paths->count == 0 && s->synthetic.count == 0)
    return error_set(err, STATUS_USAGE, "give models to measure, or --synthetic NAME");
  if (s->synthetic.count == 0 && (s->layers || s->density.count || s->vocabulary))
    return error_set(err, STATUS_USAGE,
                     "--layers, --density and --vocabulary are for --synthetic models");
  if (paths->count == 0 && (s->peers || s->peer.count))
    return error_set(err, STATUS_USAGE,
                     "peers read models from files, which synthetic ones do not have");
  if ((s->peers || s->peer.count) && (s->text.count || !bench_on_host(s)))
    return error_set(err, STATUS_USAGE, "peers run on the CPU and know no --text: leave --%s away",
                     s->text.count ? "text" : "device");
  if (s->graph && bench_on_host(s))
    return error_set(err, STATUS_USAGE, "--graph is for GPUs: give --device cuda, too");
  return STATUS_OK;
}

static enum status measure(struct bench_job *job, struct error *err) {
  const struct bench_settings *s = job->settings;
  struct speed_entry entries[BENCH_ENTRIES_MAX];
  for (int i = 0; i < job->entry_count; i++)
    entries[i] = (struct speed_entry){bench_model(&job->entries[i]), job->entries[i].peer};
  struct speed_settings speed = {.cases = job->cases,
                                 .case_count = job->case_count,
                                 .rounds = (int)s->rounds,
                                 .precision = bench_precision(s),
                                 .kv = inputs_kv_types[s->kv],
                                 .record = s->graph,
                                 .seconds = s->seconds};
  return speed_measure(&job->result, entries, job->entry_count, &speed, err);
}

static void release(struct bench_job *job) {
  for (int i = 0; i < job->entry_count; i++) {
    struct bench_entry *e = &job->entries[i];
    peer_stop(e->peer);
    if (e->peer) continue;
    model_close(e->placed);
    model_close(e->model);
  }
  backend_close(job->backend);
  speed_result_free(&job->result);
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct bench_settings *s = settings;
  common_apply(&s->common);
  struct bench_job *job = mem_alloc(1, sizeof *job, err);
  if (!job) return STATUS_FAILED;
  job->settings = s;
  enum status status = check_request(s, positionals, err);
  if (!status) status = choose_isa(s->isa, err);
  if (!status) status = choose_cases(job, err);
  if (!status) status = backend_open(&job->backend, s->device, err);
  if (!status) status = open_models(job, positionals, err);
  if (!status) status = make_models(job, err);
  if (!status) status = find_dense_forms(job, err);
  if (!status && (s->peers || s->peer.count)) status = bench_start_peers(job, err);
  if (!status) status = measure(job, err);
  if (!status && output_to_people(&s->common)) bench_print(job);
  if (!status) status = common_write_json(&s->common, bench_json(job), err);
  release(job);
  mem_free(job);
  return status;
}

const struct command command_bench = {
    .name = "bench",
    .positionals = "[MODEL ...]",
    .least_positionals = 0,
    .most_positionals = TEXT_LIST_MAX,
    .summary = "measure decode and prefill speed, hybrid against dense",
    .description =
        "Decodes batches and reads prompts, every model in turn, round after round. A hybrid "
        "model\n"
        "is compared with the dense model of the same shapes among those given, or with itself "
        "made\n"
        "dense. Beside the speed stands what the weights' bytes allow: the share of a plain "
        "read's\n"
        "bandwidth that is reached, and the roofline, the gain that fewer bytes would give.",
    .example =
        "tessera bench dense-bf16 hybrid-bf16 --decode 1,8 --json speed.json\n"
        "  tessera bench --synthetic llama2-7b --layers 4 --density 0.55",
    .options = options,
    .settings_bytes = sizeof(struct bench_settings),
    .run = run};
