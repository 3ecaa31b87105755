/* What `tessera bench` says: one table for people, and JSON whose fields docs/BENCH.md names. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/parallel.h"
#include "cli/bench.h"
#include "cli/inputs.h"
#include "cli/output.h"
#include "kernel/ops.h"

static const char *phase_name(const struct speed_case *c) {
  static const char *const names[] = {"decode", "prefill", "text"};
  return names[c->phase];
}

static double density_of(const struct bench_entry *e) {
  return e->made || e->peer ? 1.0 : model_density(e->model);
}

static const char *dtype_of(const struct bench_entry *e) {
  return e->peer ? peer_dtype(e->peer) : bench_dtype(e->model);
}

/* Over the dense form; NAN for the dense form itself. */
static double speedup_of(const struct bench_job *job, int entry, int which) {
  int dense = job->entries[entry].dense_entry;
  return dense < 0 ? NAN : speed_compare(&job->result, entry, dense, which).ratio;
}

static double roofline_of(const struct bench_job *job, int entry, int which) {
  const struct bench_entry *e = &job->entries[entry];
  return e->dense_entry < 0 || e->peer
             ? NAN
             : speed_figure_of(&job->result, e->dense_entry, which)->bytes_per_token /
                   speed_figure_of(&job->result, entry, which)->bytes_per_token;
}

/* --- JSON --- */

/* A row of this program, or the shorter one of a peer. */
static json_t *row_json(const struct bench_job *job, int entry, int which) {
  const struct bench_entry *e = &job->entries[entry];
  const struct speed_figure *f = speed_figure_of(&job->result, entry, which);
  json_t *row = json_object();
  if (e->peer) {
    json_object_set_new(row, "peer", json_string(peer_name(e->peer)));
    json_object_set_new(row, "version", json_string(peer_version(e->peer)));
  }
  json_object_set_new(row, "model", json_string(model_path(e->model)));
  if (!e->peer) json_object_set_new(row, "form", json_string(e->hybrid ? "hybrid" : "dense"));
  json_object_set_new(row, "dtype", json_string(dtype_of(e)));
  if (!e->peer) json_object_set_new(row, "density", output_real(density_of(e)));
  json_object_set_new(row, "phase", json_string(phase_name(&job->cases[which])));
  json_object_set_new(row, "batch", json_integer(job->cases[which].batch));
  if (job->cases[which].phase == SPEED_TEXT) {
    json_object_set_new(row, "prompt", json_integer(job->cases[which].prompt));
    json_object_set_new(row, "generated", json_integer(job->cases[which].tokens));
  }
  json_object_set_new(row, "tokens_per_s", output_real(f->tokens_per_s));
  if (!e->peer) {
    json_object_set_new(row, "bytes_per_token", output_real(f->bytes_per_token));
    json_object_set_new(row, "read_share", output_real(f->read_share));
  }
  json_object_set_new(row, "speedup", output_real(speedup_of(job, entry, which)));
  if (!e->peer) json_object_set_new(row, "roofline", output_real(roofline_of(job, entry, which)));
  return row;
}

/* What the rounds gave, from which noise can be judged. */
static json_t *sample_json(const struct bench_job *job, int entry, int which) {
  const double *rates = speed_rates_of(&job->result, entry, which);
  json_t *out = json_object(), *values = json_array();
  for (int i = 0; i < job->result.rounds; i++) json_array_append_new(values, output_real(rates[i]));
  json_object_set_new(out, "tokens_per_s", values);
  int dense = job->entries[entry].dense_entry;
  if (dense < 0) return out;
  struct speed_ratio ratio = speed_compare(&job->result, entry, dense, which);
  json_object_set_new(out, "speedup_low", output_real(ratio.low));
  json_object_set_new(out, "speedup_high", output_real(ratio.high));
  json_object_set_new(out, "within_noise", json_boolean(ratio.noise));
  return out;
}

static int64_t kv_bytes(const struct bench_job *job, const struct bench_entry *e) {
  return model_kv_bytes_per_position(e->model, inputs_kv_types[job->settings->kv]);
}

static json_t *model_json_of(const struct bench_job *job, int entry) {
  const struct bench_entry *e = &job->entries[entry];
  json_t *out = json_object();
  json_object_set_new(out, "model", json_string(model_path(e->model)));
  json_object_set_new(out, "form", json_string(e->hybrid ? "hybrid" : "dense"));
  json_object_set_new(out, "density", output_real(density_of(e)));
  json_object_set_new(out, "weight_bytes",
                      json_integer((json_int_t)speed_weight_bytes(bench_model(e))));
  if (e->placed)
    json_object_set_new(out, "device_bytes",
                        json_integer((json_int_t)model_placed_bytes(e->placed)));
  json_object_set_new(out, "kv_bytes_per_position", json_integer((json_int_t)kv_bytes(job, e)));
  json_object_set_new(out, "read_bytes_per_s", output_real(job->result.read_bytes_per_s[entry]));
  return out;
}

json_t *bench_json(const struct bench_job *job) {
  json_t *out = json_object(), *rows = json_array(), *samples = json_array();
  json_t *peers = json_array(), *peer_samples = json_array(), *models = json_array();
  for (int i = 0; i < job->entry_count; i++) {
    bool peer = job->entries[i].peer != NULL;
    if (!peer) json_array_append_new(models, model_json_of(job, i));
    for (int which = 0; which < job->case_count; which++) {
      json_array_append_new(peer ? peers : rows, row_json(job, i, which));
      json_array_append_new(peer ? peer_samples : samples, sample_json(job, i, which));
    }
  }
  json_object_set_new(out, "rows", rows);
  json_object_set_new(out, "samples", samples);
  json_object_set_new(out, "models", models);
  json_object_set_new(out, "peers", peers);
  json_object_set_new(out, "peer_samples", peer_samples);
  json_object_set_new(out, "precision",
                      json_string(precision_name[bench_precision(job->settings)]));
  json_object_set_new(out, "kv",
                      json_string(dtype_traits(inputs_kv_types[job->settings->kv])->name));
  json_object_set_new(out, "device", json_string(job->settings->device));
  json_object_set_new(out, "graph", json_boolean(job->settings->graph));
  json_object_set_new(out, "isa", json_string(kernel_isa()));
  json_object_set_new(out, "threads", json_integer(parallel_threads()));
  json_object_set_new(out, "rounds", json_integer(job->settings->rounds));
  json_object_set_new(out, "seconds", json_real(job->settings->seconds));
  json_object_set_new(out, "decode_from_position", json_integer(SPEED_CONTEXT));
  json_object_set_new(out, "decode_to_position", json_integer(SPEED_CONTEXT_MOST));
  return out;
}

/* --- the table --- */

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

/* All rows are of one model (and what was made of it): then its name stands above, once. */
static const char *common_name(const struct bench_job *job) {
  const char *name = model_path(job->entries[0].model);
  for (int i = 1; i < job->entry_count; i++)
    if (job->entries[i].peer || strcmp(model_path(job->entries[i].model), name) != 0) return NULL;
  return name;
}

static void put_who(struct table *table, const struct bench_entry *e, bool name) {
  if (name && e->peer)
    table_cell(table, "%s %s", peer_name(e->peer), peer_version(e->peer));
  else if (name)
    table_cell(table, "%s", last_part(model_path(e->model)));
  if (e->hybrid)
    table_cell(table, "%s %.3g", dtype_of(e), density_of(e));
  else
    table_cell(table, "%s dense", dtype_of(e));
}

static void put_row(struct table *table, const struct bench_job *job, int entry, int which,
                    bool *noise) {
  const struct bench_entry *e = &job->entries[entry];
  const struct speed_figure *f = speed_figure_of(&job->result, entry, which);
  char bytes[32];
  table_cell(table, "%.*f", f->tokens_per_s < 1000 ? 1 : 0, f->tokens_per_s);
  format_bytes(bytes, f->bytes_per_token);
  table_cell(table, "%s", e->peer ? "" : bytes);
  table_cell(table, e->peer ? "" : "%.0f %%", 100 * f->read_share);
  if (e->dense_entry < 0) {
    table_cell(table, "%s", "");
    table_cell(table, "%s", "");
    return;
  }
  struct speed_ratio ratio = speed_compare(&job->result, entry, e->dense_entry, which);
  *noise |= ratio.noise;
  table_cell(table, "%s%.2fx", ratio.noise ? "~ " : "", ratio.ratio);
  table_cell(table, e->peer ? "" : "%.2fx", roofline_of(job, entry, which));
}

static void print_notes(const struct bench_job *job, bool noise) {
  const struct bench_settings *s = job->settings;
  char compute[96], kv[32];
  if (bench_on_host(s))
    inputs_describe_compute(bench_precision(s), compute);
  else
    snprintf(compute, sizeof compute, "bf16 on %s%s", s->device, s->graph ? ", in graphs" : "");
  log_info("%s; medians of %lld interleaved rounds; a plain read of the weights: %.1f GB/s",
           compute, (long long)s->rounds, job->result.read_bytes_per_s[0] / 1e9);
  format_bytes(kv, (double)kv_bytes(job, &job->entries[0]));
  log_info("decoding reads keys and values on top, not counted: %s for each of %d to %d positions",
           kv, SPEED_CONTEXT, SPEED_CONTEXT_MOST);
  if (noise) log_info("~ within noise: in the middle half of the rounds it is faster and slower");
}

void bench_print(const struct bench_job *job) {
  static const char *const titles[] = {"tokens/s", "bytes/token", "of read", "speed-up",
                                       "roofline"};
  struct table table = {0};
  const char *name = common_name(job);
  bool noise = false;
  if (name) printf("%s\n", name);
  table_column(&table, "phase", TABLE_LEFT);
  if (!name) table_column(&table, "model", TABLE_LEFT);
  table_column(&table, "weights", TABLE_LEFT);
  for (int c = 0; c < 5; c++) table_column(&table, titles[c], TABLE_RIGHT);
  for (int which = 0; which < job->case_count; which++)
    for (int i = 0; i < job->entry_count; i++) {
      const struct speed_case *c = &job->cases[which];
      char text[64] = "";
      if (c->phase == SPEED_TEXT)
        snprintf(text, sizeof text, "%lld+%lld x ", (long long)c->prompt, (long long)c->tokens);
      table_cell(&table, i ? "" : "%s %s%lld", phase_name(c), text, (long long)c->batch);
      put_who(&table, &job->entries[i], !name);
      put_row(&table, job, i, which, &noise);
    }
  output_table(&table);
  table_free(&table);
  print_notes(job, noise);
}
