/* tessera bench: decode and prefill speed of models, each hybrid one against its dense form. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/output.h"
#include "eval/speed.h"
#include "kernel/ops.h"

struct settings {
  int64_t rounds;
  double seconds;
  struct text_list prefill;
  struct common_options common;
};

static const struct option options[] = {
    {"rounds", OPTION_INT, offsetof(struct settings, rounds), "5", 1, 1000, NULL, "N",
     "times that each is measured, in turn with the others; the median counts"},
    {"seconds", OPTION_REAL, offsetof(struct settings, seconds), "0.5", 0.01, 60, NULL, "S",
     "how long one decode run takes, about"},
    {"prefill", OPTION_LIST, offsetof(struct settings, prefill), NULL, 0, 0, NULL, "N",
     "length of a prompt to read; may be given several times [default: 128 and 512]"},
    COMMON_OPTIONS(struct settings, common)};

enum { CASES_MAX = TEXT_LIST_MAX + 1, ENTRIES_MAX = 2 * TEXT_LIST_MAX, PREFILL_MOST = 1 << 17 };

/* One model that is measured. */
struct entry {
  struct model *model;
  bool hybrid;
  bool made;       /* the dense form of a hybrid model, made for the comparison */
  int dense_entry; /* what a hybrid model is compared with */
};

struct job {
  const struct settings *settings;
  struct speed_case cases[CASES_MAX];
  int case_count;
  struct entry entries[ENTRIES_MAX];
  int entry_count;
  struct speed_figure *figures; /* (entries, cases) */
  double *reads;                /* (entries) bytes a second */
};

static enum status choose_cases(struct job *job, struct error *err) {
  static const struct text_list usual = {.items = {"128", "512"}, .count = 2};
  const struct text_list *given = &job->settings->prefill;
  const struct text_list *lengths = given->count ? given : &usual;
  job->cases[job->case_count++] = (struct speed_case){SPEED_DECODE, 1};
  for (int i = 0; i < lengths->count; i++) {
    char *end;
    long long length = strtoll(lengths->items[i], &end, 10);
    if (end == lengths->items[i] || *end || length < 1 || length > PREFILL_MOST)
      return error_set(err, STATUS_USAGE, "--prefill needs a length from 1 to %d, not \"%s\"",
                       PREFILL_MOST, lengths->items[i]);
    job->cases[job->case_count++] = (struct speed_case){SPEED_PREFILL, length};
  }
  return STATUS_OK;
}

static bool is_hybrid(const struct model *model) {
  for (int i = 0; i < model_site_count(model); i++)
    if (linear_is_hybrid(&model_site(model, i)->weight)) return true;
  return false;
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
        linear_dtype(x) != linear_dtype(y))
      return false;
  }
  return true;
}

static enum status open_models(struct job *job, const struct text_list *paths, struct error *err) {
  for (int i = 0; i < paths->count; i++) {
    struct entry *e = &job->entries[job->entry_count];
    enum status status = model_open(&e->model, paths->items[i], err);
    if (status) return status;
    e->hybrid = is_hybrid(e->model);
    e->dense_entry = -1;
    job->entry_count++;
  }
  return STATUS_OK;
}

/* Each hybrid model gets an opponent: a dense model of the list, or itself made dense. */
static enum status find_dense_forms(struct job *job, struct error *err) {
  int given = job->entry_count;
  for (int i = 0; i < given; i++) {
    struct entry *e = &job->entries[i];
    if (!e->hybrid) continue;
    for (int j = 0; j < job->entry_count && e->dense_entry < 0; j++)
      if (!job->entries[j].hybrid && same_form(e->model, job->entries[j].model)) e->dense_entry = j;
    if (e->dense_entry >= 0) continue;
    struct entry *dense = &job->entries[job->entry_count];
    enum status status = model_open(&dense->model, model_path(e->model), err);
    if (status) return status;
    e->dense_entry = job->entry_count++;
    dense->made = true;
    dense->dense_entry = -1;
    status = model_unpack(dense->model, err);
    if (status) return status;
  }
  return STATUS_OK;
}

/* As generate runs them. */
static enum status prepare_models(struct job *job, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < job->entry_count && !status; i++)
    status = model_prepare(job->entries[i].model, false, err);
  return status;
}

static enum status measure(struct job *job, struct error *err) {
  const struct model *models[ENTRIES_MAX];
  for (int i = 0; i < job->entry_count; i++) models[i] = job->entries[i].model;
  size_t entries = (size_t)job->entry_count;
  job->figures = mem_alloc(entries * (size_t)job->case_count, sizeof *job->figures, err);
  job->reads = mem_alloc(entries, sizeof *job->reads, err);
  if (!job->figures || !job->reads) return STATUS_FAILED;
  struct speed_settings speed = {.cases = job->cases,
                                 .case_count = job->case_count,
                                 .rounds = (int)job->settings->rounds,
                                 .decode_s = job->settings->seconds};
  return speed_measure(models, job->entry_count, &speed, job->figures, job->reads, err);
}

/* --- results --- */

static const struct speed_figure *figure_of(const struct job *job, int entry, int which) {
  return &job->figures[entry * job->case_count + which];
}

static const char *dtype_name(const struct model *model) {
  enum dtype first = linear_dtype(&model_site(model, 0)->weight);
  for (int i = 1; i < model_site_count(model); i++)
    if (linear_dtype(&model_site(model, i)->weight) != first) return "mixed";
  return dtype_traits(first)->name;
}

/* Of a hybrid row over its dense form; NAN for dense rows. */
static double speedup_of(const struct job *job, int entry, int which) {
  int dense = job->entries[entry].dense_entry;
  return dense < 0 ? NAN
                   : figure_of(job, entry, which)->tokens_per_s /
                         figure_of(job, dense, which)->tokens_per_s;
}

static double roofline_of(const struct job *job, int entry, int which) {
  int dense = job->entries[entry].dense_entry;
  return dense < 0 ? NAN
                   : figure_of(job, dense, which)->bytes_per_token /
                         figure_of(job, entry, which)->bytes_per_token;
}

static const char *phase_name(const struct speed_case *c) {
  return c->phase == SPEED_DECODE ? "decode" : "prefill";
}

static json_t *row_json(const struct job *job, int entry, int which) {
  const struct entry *e = &job->entries[entry];
  const struct speed_figure *f = figure_of(job, entry, which);
  json_t *row = json_object();
  json_object_set_new(row, "model", json_string(model_path(e->model)));
  json_object_set_new(row, "form", json_string(e->hybrid ? "hybrid" : "dense"));
  json_object_set_new(row, "dtype", json_string(dtype_name(e->model)));
  json_object_set_new(row, "density", output_real(e->made ? 1.0 : model_density(e->model)));
  json_object_set_new(row, "phase", json_string(phase_name(&job->cases[which])));
  json_object_set_new(row, "batch", json_integer(job->cases[which].batch));
  json_object_set_new(row, "tokens_per_s", output_real(f->tokens_per_s));
  json_object_set_new(row, "bytes_per_token", output_real(f->bytes_per_token));
  json_object_set_new(row, "read_share", output_real(f->read_share));
  json_object_set_new(row, "read_bytes_per_s", output_real(job->reads[entry]));
  json_object_set_new(row, "speedup", output_real(speedup_of(job, entry, which)));
  json_object_set_new(row, "roofline", output_real(roofline_of(job, entry, which)));
  return row;
}

static json_t *result_json(const struct job *job) {
  json_t *out = json_object(), *rows = json_array();
  for (int i = 0; i < job->entry_count; i++)
    for (int which = 0; which < job->case_count; which++)
      json_array_append_new(rows, row_json(job, i, which));
  json_object_set_new(out, "rows", rows);
  json_object_set_new(out, "precision", json_string("fp32"));
  json_object_set_new(out, "isa", json_string(kernel_isa()));
  json_object_set_new(out, "threads", json_integer(parallel_threads()));
  json_object_set_new(out, "rounds", json_integer(job->settings->rounds));
  return out;
}

static void ratio_cell(struct table *table, double value) {
  if (isnan(value))
    table_cell(table, "-");
  else
    table_cell(table, "%.2fx", value);
}

static void print_row(struct table *table, const struct job *job, int entry, int which) {
  const struct entry *e = &job->entries[entry];
  const struct speed_figure *f = figure_of(job, entry, which);
  char bytes[32];
  format_bytes(bytes, f->bytes_per_token);
  table_cell(table, "%s%s", model_path(e->model), e->made ? ", made dense" : "");
  table_cell(table, "%s %s", dtype_name(e->model), e->hybrid ? "hybrid" : "dense");
  table_cell(table, "%s %lld", phase_name(&job->cases[which]), (long long)job->cases[which].batch);
  table_cell(table, "%.1f", f->tokens_per_s);
  table_cell(table, "%s", bytes);
  table_cell(table, "%.0f %%", 100 * f->read_share);
  ratio_cell(table, speedup_of(job, entry, which));
  ratio_cell(table, roofline_of(job, entry, which));
}

static void print_result(const struct job *job) {
  static const char *const titles[] = {"model",         "weights", "phase",      "tokens/s",
                                       "a token reads", "of read", "over dense", "by bytes"};
  struct table table = {0};
  char compute[96];
  for (int c = 0; c < 8; c++) table_column(&table, titles[c], c < 3 ? TABLE_LEFT : TABLE_RIGHT);
  for (int which = 0; which < job->case_count; which++)
    for (int i = 0; i < job->entry_count; i++) print_row(&table, job, i, which);
  output_table(&table);
  table_free(&table);
  inputs_describe_compute(PRECISION_FP32, compute);
  log_info("%s; medians of %lld interleaved rounds; a plain read of the weights: %.1f GB/s",
           compute, (long long)job->settings->rounds, job->reads[0] / 1e9);
}

static void release(struct job *job) {
  for (int i = 0; i < ENTRIES_MAX; i++) model_close(job->entries[i].model);
  mem_free(job->figures);
  mem_free(job->reads);
}

static enum status run(const struct command *command, void *settings, struct text_list *positionals,
                       struct error *err) {
  const struct settings *s = settings;
  common_apply(&s->common);
  struct job *job = calloc(1, sizeof *job);
  INVARIANT(job != NULL);
  job->settings = s;
  enum status status = choose_cases(job, err);
  if (!status) status = open_models(job, positionals, err);
  if (!status) status = find_dense_forms(job, err);
  if (!status) status = prepare_models(job, err);
  if (!status) status = measure(job, err);
  if (!status && output_to_people(&s->common)) print_result(job);
  if (!status) status = common_write_json(&s->common, result_json(job), err);
  release(job);
  free(job);
  return status;
}

const struct command command_bench = {
    .name = "bench",
    .positionals = "MODEL [MODEL ...]",
    .least_positionals = 1,
    .most_positionals = TEXT_LIST_MAX,
    .summary = "measure decode and prefill speed, hybrid against dense",
    .description =
        "Decodes at batch 1 and reads prompts, every model in turn, round after round. A hybrid\n"
        "model is compared with the dense model of the same shapes among those given, or with\n"
        "itself made dense. Beside the speed stands what the weights' bytes allow: the share of a\n"
        "plain read's bandwidth that is reached, and the gain that fewer bytes would give.",
    .example = "tessera bench dense-bf16 hybrid-bf16 --json speed.json",
    .options = options,
    .settings_bytes = sizeof(struct settings),
    .run = run};
