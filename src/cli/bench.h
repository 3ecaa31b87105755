/* What the files of `tessera bench` share: its settings, who is measured, and what came out. */
#ifndef TSR_CLI_BENCH_H
#define TSR_CLI_BENCH_H

#include "cli/options.h"
#include "eval/speed.h"

struct bench_settings {
  int64_t rounds, layers, seed, vocabulary;
  double seconds;
  struct text_list decode, prefill, text, synthetic, density, peer;
  int dtype, precision, kv;
  const char *isa, *device;
  bool peers, graph;
  struct common_options common;
};

enum { BENCH_CASES_MAX = 64, BENCH_ENTRIES_MAX = 256, BENCH_PREFILL_MOST = 1 << 17 };

/* One contestant in each case: a model of this program, or a peer on the weights of one. */
struct bench_entry {
  struct model *model;  /* of a peer: the dense entry's, which owns it */
  struct model *placed; /* the same on the backend, where that is not the host; else NULL */
  struct peer *peer;    /* or NULL */
  bool hybrid;
  bool made;       /* the dense form of a hybrid model, made for the comparison */
  int dense_entry; /* what a hybrid model or a peer is compared with, or -1 */
};

struct bench_job {
  const struct bench_settings *settings;
  const struct backend *backend;
  struct speed_case cases[BENCH_CASES_MAX];
  int case_count;
  struct bench_entry entries[BENCH_ENTRIES_MAX];
  int entry_count;
  struct speed_result result;
};

/* Room for one more; STATUS_USAGE when there is none. */
enum status bench_add(struct bench_job *job, const struct bench_entry *entry, struct error *err);
/* Where it runs. */
static inline const struct model *bench_model(const struct bench_entry *e) {
  return e->placed ? e->placed : e->model;
}
/* "bf16", or "mixed". */
const char *bench_dtype(const struct model *model);

bool bench_on_host(const struct bench_settings *settings);
enum precision bench_precision(const struct bench_settings *settings);

/* bench_peers.c: starts the peers that were asked for, on each dense model of the job. */
enum status bench_start_peers(struct bench_job *job, struct error *err);

/* bench_output.c */
void bench_print(const struct bench_job *job);
json_t *bench_json(const struct bench_job *job); /* new reference */

#endif
