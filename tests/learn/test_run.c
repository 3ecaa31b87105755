/* Whole runs of the program on a tiny model: resuming after kills and interrupts gives the same
 * mask, damaged checkpoints, locks, refusals, what the run's directory holds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "io/file.h"
#include "io/record.h"
#include "io/safetensors.h"
#include "kernel/precision.h"
#include "learn/run.h"
#include "support/support.h"

static struct error err;
static const char *model, *text;

/* The golden llama with a tokenizer of single characters, and a text. */
static int make_inputs(void **state) {
  model = scratch_path("model");
  text = scratch_path("text.txt");
  if (run_command(NULL, 0, "mkdir -p %s && cp %s %s %s/", model, golden("models/llama/config.json"),
                  golden("models/llama/model.safetensors"), model))
    return -1;
  FILE *f = fopen(scratch_path("model/tokenizer.json"), "w");
  fprintf(f,
          "{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": "
          "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
          "\"use_regex\": true}, \"post_processor\": null, \"decoder\": {\"type\": "
          "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": "
          "null, \"fuse_unk\": false, \"byte_fallback\": false, \"merges\": [], \"vocab\": {"
          "\"\\u0120\": 0, \"\\u010a\": 1");
  for (int c = 'a'; c <= 'z'; c++) fprintf(f, ", \"%c\": %d", c, c - 'a' + 2);
  fprintf(f, "}}}\n");
  fclose(f);
  f = fopen(text, "w");
  for (int i = 0; i < 4000; i++) fputc(i % 7 == 6 ? ' ' : 'a' + (i * i / 5 + i / 11) % 26, f);
  fclose(f);
  return 0;
}

/* "tessera learn" on the tiny model; the outcome's text in `output`. */
enum { OUTPUT_BYTES = 1 << 16 };
static char output[OUTPUT_BYTES];
static int learn(const char *prefix, const char *mode, const char *run, const char *more) {
  return run_command(
      output, sizeof output,
      "%s %s learn %s --mode %s %s --data %s --tokens 1536 --window 16 --batch 4 "
      "--micro 2 --tile 8 --seed 5 --out %s %s %s",
      prefix, program(), model, mode, strcmp(mode, "maskllm") ? "--sparsity 35%" : "", text, run,
      strcmp(mode, "joint") ? ""
                            : "--distill 0.4 --distill-kind reverse --match 0.3 --precision bf16",
      more);
}

static void same_files(const char *a, const char *b) {
  if (run_command(output, sizeof output, "cmp %s %s", a, b)) fail_msg("%s", output);
}

static const char *in(const char *run, const char *name) {
  char both[256];
  snprintf(both, sizeof both, "%s/%s", run, name);
  return scratch_path(both);
}

/* Seconds that the last whole joint run took: signals are sent at fractions of it, so that they
 * find a run at work on slow and on fast machines. */
static double whole_seconds;

static void kills_do_not_show(void **state) {
  static const char *const modes[] = {"tile", "maskllm", "joint", "joint", "tile", "joint"};
  static const char *const precision[] = {"--precision bf16", "--precision fp32", "",
                                          "--pattern 4:8",    "--pattern 1:4",    "--compact"};
  static const char *const names[] = {"tile",      "maskllm",  "joint",
                                      "joint-4-8", "tile-1-4", "joint-compact"};
  for (int m = 0; m < 6; m++) {
    char whole[32], killed[32], prefix[64], options[96];
    snprintf(whole, sizeof whole, "whole-%s", names[m]);
    snprintf(killed, sizeof killed, "killed-%s", names[m]);
    double start = clock_seconds();
    snprintf(options, sizeof options, "--threads 1 %s", precision[m]);
    if (learn("", modes[m], scratch_path(whole), options)) fail_msg("%s", output);
    whole_seconds = clock_seconds() - start;
    int kills = 0, status = -1;
    for (int i = 0; i < 60 && status != 0; i++) {
      snprintf(prefix, sizeof prefix, "timeout -s KILL %.3f", whole_seconds * (0.3 + 0.15 * i));
      snprintf(options, sizeof options, "--resume %s --checkpoint-every %s", precision[m],
               i % 2 ? "0 --threads 2" : "0.05 --threads 1");
      status = learn(prefix, modes[m], scratch_path(killed), options);
      if (status == 128 + 9 || status == 137)
        kills++;
      else if (status)
        fail_msg("%s", output);
    }
    assert_int_equal(status, 0);
    printf("%s %s: %d kills\n", modes[m], precision[m], kills);
    assert_true(kills > 0);
    same_files(in(whole, "mask.safetensors"), in(killed, "mask.safetensors"));
    /* the record has each step once, and the end */
    size_t damaged;
    json_t *lines = record_read(in(killed, "record.jsonl"), &damaged, &err);
    int64_t next = 1, finals = 0;
    for (size_t i = 0; i < json_array_size(lines); i++) {
      const json_t *line = json_array_get(lines, i);
      const char *type = json_get_string(line, "type");
      if (!strcmp(type, "step")) {
        assert_int_equal(json_integer_value(json_object_get(line, "step")), next);
        next++;
      }
      finals += !strcmp(type, "final");
    }
    assert_int_equal(damaged, 0);
    assert_int_equal(next, 25);
    assert_int_equal(finals, 1);
    json_decref(lines);
  }
}

/* The costs that a run measured are its own for good: begun anew from its config.json alone it
 * makes the same mask, though the machine would measure something else now. */
static void speedup_runs_keep_their_costs(void **state) {
  static const char *const files[] = {"checkpoint.safetensors", "checkpoint.previous.safetensors",
                                      "record.jsonl", "mask.safetensors"};
  char command[512];
  snprintf(command, sizeof command,
           "%s learn %s --mode tile --speedup 1 --data %s --tokens 512 --window 16 --batch 4 "
           "--tile 8 --seed 5 --out %s",
           program(), model, text, scratch_path("fast"));
  if (run_command(output, sizeof output, "%s", command)) fail_msg("%s", output);
  assert_non_null(strstr(output, "measuring what matrices cost"));
  rename(in("fast", "mask.safetensors"), scratch_path("fast.mask"));
  for (int i = 0; i < 4; i++) unlink(in("fast", files[i]));
  if (run_command(output, sizeof output, "%s --resume", command)) fail_msg("%s", output);
  assert_null(strstr(output, "measuring what matrices cost"));
  same_files(in("fast", "mask.safetensors"), scratch_path("fast.mask"));
  assert_int_equal(run_command(output, sizeof output, "%s --resume --speedup 1.1", command),
                   STATUS_REFUSED);
  assert_int_equal(run_command(output, sizeof output, "%s --resume --sparsity 0.1", command),
                   STATUS_USAGE);
}

static void finished_and_existing_runs(void **state) {
  const char *run = scratch_path("finished");
  assert_int_equal(learn("", "tile", run, ""), 0);
  assert_int_equal(learn("", "tile", run, ""), STATUS_REFUSED);
  assert_non_null(strstr(output, "--resume"));
  assert_int_equal(learn("", "tile", run, "--resume"), 0);
  assert_non_null(strstr(output, "finished already"));
  assert_int_equal(learn("", "tile", run, "--resume --lr 0.5"), STATUS_REFUSED);
  assert_non_null(strstr(output, "lr_tile"));
  const char *other = precision_fastest() == PRECISION_BF16 ? "--resume --precision fp32"
                                                            : "--resume --precision bf16";
  assert_int_equal(learn("", "tile", run, other), STATUS_REFUSED);
  assert_non_null(strstr(output, "precision"));
  assert_int_equal(run_command(NULL, 0, "cp %s %s", in("finished", "mask.safetensors"),
                               scratch_path("first.safetensors")),
                   0);
  assert_int_equal(learn("", "tile", run, "--force"), 0);
  same_files(in("finished", "mask.safetensors"), scratch_path("first.safetensors"));
}

static void interrupts_save(void **state) {
  const char *run = scratch_path("interrupted");
  int said = 0;
  /* a signal that came too early or too late found nothing to save: from the start again */
  for (int attempt = 0; attempt < 10 && !said; attempt++) {
    int status = -1;
    run_command(NULL, 0, "rm -rf %s", run);
    for (int i = 0; i < 40 && status != 0; i++) {
      char prefix[64];
      snprintf(prefix, sizeof prefix, "timeout -s INT %.3f",
               whole_seconds * (0.4 + 0.05 * attempt + 0.2 * i));
      status = learn(prefix, "joint", run, "--resume");
      if (status && status != 124) fail_msg("status %d: %s", status, output);
      said += strstr(output, "which is saved: --resume goes on") != NULL;
    }
    assert_int_equal(status, 0);
  }
  assert_true(said > 0);
  same_files(in("interrupted", "mask.safetensors"), in("whole-joint", "mask.safetensors"));
}

static void flip_bit(const char *path, long offset) {
  FILE *f = fopen(path, "r+");
  assert_non_null(f);
  fseek(f, offset, SEEK_SET);
  int byte = fgetc(f);
  assert_true(byte != EOF);
  fseek(f, offset, SEEK_SET);
  fputc(byte ^ 64, f);
  fclose(f);
}

static void damaged_checkpoints(void **state) {
  const char *run = scratch_path("damaged");
  /* killed late enough to leave two checkpoints, and not finished */
  for (int i = 0; i < 40 && !file_exists(in("damaged", "checkpoint.previous.safetensors")); i++) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, "timeout -s KILL %.3f", whole_seconds * (0.3 + 0.05 * i));
    learn(prefix, "joint", run, "--resume --checkpoint-every 0");
    remove(in("damaged", "mask.safetensors"));
  }
  const char *current = in("damaged", "checkpoint.safetensors");
  const char *previous = in("damaged", "checkpoint.previous.safetensors");
  assert_true(file_exists(previous));
  /* a kill between the two steps of keeping a checkpoint leaves one file under both names */
  assert_int_equal(
      run_command(NULL, 0, "cp %s %s.own && mv %s.own %s", previous, previous, previous, previous),
      0);
  flip_bit(current, 40000); /* in a tensor's data: only a checksum sees it */
  if (learn("", "joint", run, "--resume")) fail_msg("%s", output);
  if (!strstr(output, "is damaged")) fail_msg("%s", output);
  same_files(in("damaged", "mask.safetensors"), in("whole-joint", "mask.safetensors"));
  remove(in("damaged", "mask.safetensors"));
  for (int cut = 0; cut < 5; cut++) {
    const int sizes[] = {0, 7, 100, 5000, 60000};
    run_command(NULL, 0, "truncate -s %d %s %s", sizes[cut], current, previous);
    assert_int_equal(learn("", "joint", run, "--resume"), STATUS_REFUSED);
    assert_non_null(strstr(output, "checkpoint"));
    assert_false(file_exists(in("damaged", "mask.safetensors")));
  }
}

static void a_lock_keeps_two_writers_apart(void **state) {
  struct file_lock lock;
  assert_int_equal(run_command(NULL, 0, "mkdir -p %s", scratch_path("locked")), 0);
  must(file_lock_take(&lock, in("locked", "lock"), &err), err);
  assert_int_equal(learn("", "tile", scratch_path("locked"), "--resume"), STATUS_REFUSED);
  file_lock_release(&lock);
  assert_int_equal(learn("", "tile", scratch_path("locked"), "--resume"), 0);
}

static void event_files_are_written_when_asked_for(void **state) {
  assert_int_equal(learn("", "tile", scratch_path("events"), "--tfevents"), 0);
  assert_int_equal(run_command(NULL, 0, "ls %s/*tfevents*", scratch_path("events")), 0);
  assert_int_equal(run_command(NULL, 0, "ls %s/*tfevents*", scratch_path("finished")), 2);
}

static void wrong_usage(void **state) {
  const char *run = scratch_path("wrong");
  static const struct {
    const char *more;
    int status;
  } cases[] = {
      {"--sparsity 0.6", STATUS_USAGE},     {"--tokens 10", STATUS_USAGE},
      {"--window 4096", STATUS_USAGE},      {"--micro 3", STATUS_USAGE},
      {"--tile 6", STATUS_USAGE},           {"--data /nowhere", STATUS_REFUSED},
      {"--prior /nowhere", STATUS_REFUSED}, {"--skip '*'", STATUS_USAGE},
      {"--skip '*mlp*'", STATUS_REFUSED},   {"--compact", STATUS_USAGE},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int status = learn("", "tile", run, cases[i].more);
    if (status != cases[i].status &&
        !(cases[i].status == STATUS_REFUSED && status == STATUS_FAILED))
      fail_msg("%s: %d, %s", cases[i].more, status, output);
    assert_false(file_exists(in("wrong", "mask.safetensors")));
  }
  FILE *f = fopen(scratch_path("short.txt"), "w");
  fputs("abc", f);
  fclose(f);
  char more[256];
  snprintf(more, sizeof more, "--data %s", scratch_path("short.txt"));
  assert_int_equal(learn("", "tile", run, more), STATUS_REFUSED);
}

static void nothing_is_written_by_a_dry_run(void **state) {
  assert_int_equal(learn("", "joint", scratch_path("dry"), "--dry-run"), 0);
  assert_non_null(strstr(output, "memory"));
  assert_false(file_exists(scratch_path("dry")));
}

static int learn_budget(const char *spend, const char *run, const char *more) {
  return run_command(output, sizeof output,
                     "%s learn %s --mode joint --sparsity 35%% --data %s %s --window 16 --batch 4 "
                     "--micro 2 --tile 8 --calib-tokens 64 --heldout-windows 2 --evaluations 1 "
                     "--out %s %s",
                     program(), model, text, spend, run, more);
}

/* A budget of time is a number of tokens from the start on, for a run that goes on, too. */
static void time_becomes_tokens(void **state) {
  char spend[64];
  if (learn_budget("--budget 2s", scratch_path("timed"), "")) fail_msg("%s", output);
  assert_non_null(strstr(output, "tokens/s"));
  json_t *config = json_read_file(in("timed", "config.json"), 1 << 20, &err);
  const json_t *settings = json_object_get(json_object_get(config, "identity"), "settings");
  long long tokens = json_integer_value(json_object_get(settings, "tokens"));
  assert_true(tokens >= 64 && tokens % 64 == 0);
  json_decref(config);
  snprintf(spend, sizeof spend, "--tokens %lld", tokens);
  if (learn_budget(spend, scratch_path("counted"), "")) fail_msg("%s", output);
  same_files(in("timed", "mask.safetensors"), in("counted", "mask.safetensors"));
  /* a run that was killed before its first checkpoint has its settings and nothing else */
  run_command(NULL, 0, "mkdir %s && cp %s/config.json %s", scratch_path("early"),
              scratch_path("timed"), scratch_path("early"));
  if (learn_budget("--budget 2h", scratch_path("early"), "--resume")) fail_msg("%s", output);
  assert_non_null(strstr(output, "does not change them"));
  same_files(in("timed", "mask.safetensors"), in("early", "mask.safetensors"));
  assert_int_equal(learn_budget("--budget 5m --tokens 64", scratch_path("both"), ""), STATUS_USAGE);
  assert_int_equal(learn_budget("--budget 5x", scratch_path("both"), ""), STATUS_USAGE);
  assert_int_equal(learn_budget("--budget -5", scratch_path("both"), ""), STATUS_USAGE);
  assert_int_equal(learn_budget("--budget 0.000001s", scratch_path("both"), ""), STATUS_USAGE);
  assert_non_null(strstr(output, "too short"));
  assert_int_equal(learn_budget("", scratch_path("both"), ""), STATUS_USAGE);
}

static void weights_that_are_no_numbers(void **state) {
  struct safetensors *file;
  const char *kept = scratch_path("kept.safetensors"), *weights = in("model", "model.safetensors");
  assert_int_equal(run_command(NULL, 0, "cp %s %s", weights, kept), 0);
  must(safetensors_open(&file, weights, &err), err);
  const struct stored_tensor *first = safetensors_at(file, 0);
  const struct stored_tensor *q = safetensors_find(file, "model.layers.0.self_attn.q_proj.weight");
  assert_non_null(q);
  long header = 0; /* where the first tensor's data begin: the file's size less all data */
  for (size_t i = 0; i < safetensors_size(file); i++)
    header += (long)safetensors_at(file, i)->size_bytes;
  FILE *f = fopen(weights, "r+");
  fseek(f, 0, SEEK_END);
  header = ftell(f) - header;
  fseek(f, header + (q->data - first->data), SEEK_SET);
  fwrite("\377\377\377\377", 1, 4, f);
  fclose(f);
  safetensors_close(file);
  assert_int_equal(learn("", "tile", scratch_path("nan"), ""), STATUS_REFUSED);
  if (!strstr(output, "q_proj.weight")) fail_msg("%s", output);
  assert_int_equal(run_command(NULL, 0, "cp %s %s", kept, weights), 0);
}

static void priors_from_files(void **state) {
  const char *run = scratch_path("given");
  char more[512];
  snprintf(more, sizeof more, "--prior %s", in("whole-joint", "prior.safetensors"));
  assert_int_equal(learn("", "joint", run, more), 0);
  same_files(in("given", "mask.safetensors"), in("whole-joint", "mask.safetensors"));
  /* a 2:4-only prior: tile scores come from Wanda */
  snprintf(more, sizeof more, "--prior %s", in("whole-maskllm", "mask.safetensors"));
  assert_int_equal(learn("", "tile", scratch_path("wanda"), more), 0);
  assert_non_null(strstr(output, "Wanda"));
}

/* What other patterns give: verify and export take them, pack says why it does not, a prior of
 * another pattern is refused, and --dry-run counts their logits. */
static void other_patterns_are_masks_too(void **state) {
  const char *mask = in("whole-joint-4-8", "mask.safetensors");
  char more[512];
  const char *program_ = program();
  if (run_command(output, sizeof output, "%s verify %s --against %s", program_, mask, model))
    fail_msg("%s", output);
  assert_int_equal(run_command(output, sizeof output, "%s export %s --mask %s --to hf --out %s",
                               program_, model, mask, scratch_path("dense")),
                   0);
  assert_int_equal(run_command(output, sizeof output, "%s pack %s --mask %s --out %s", program_,
                               model, mask, scratch_path("packed")),
                   STATUS_REFUSED);
  assert_non_null(strstr(output, "only 2:4 and hybrid masks can be packed"));
  if (learn("", "maskllm", scratch_path("alone"), "--pattern 3:4")) fail_msg("%s", output);
  assert_non_null(strstr(output, "density 0.75"));
  snprintf(more, sizeof more, "--pattern 1:4 --prior %s", mask);
  assert_int_equal(learn("", "joint", scratch_path("other"), more), STATUS_REFUSED);
  assert_non_null(strstr(output, "holds no 1:4 mask"));
  snprintf(more, sizeof more, "--pattern 4:8 --prior %s", mask);
  if (learn("", "joint", scratch_path("same"), more)) fail_msg("%s", output);
  assert_int_equal(learn("", "joint", scratch_path("no"), "--pattern 5:10"), STATUS_USAGE);
  assert_non_null(strstr(output, "at most 70 ways"));
  assert_int_equal(learn("", "joint", scratch_path("no"), "--pattern 3:16"), STATUS_USAGE);
  assert_int_equal(learn("", "joint", scratch_path("no"), "--pattern 1:3"), STATUS_USAGE);
  assert_non_null(strstr(output, "no multiple of the 3"));
  assert_int_equal(learn("", "joint", scratch_path("no"), "--pattern hybrid"), STATUS_USAGE);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(kills_do_not_show),
      cmocka_unit_test(speedup_runs_keep_their_costs),
      cmocka_unit_test(finished_and_existing_runs),
      cmocka_unit_test(interrupts_save),
      cmocka_unit_test(damaged_checkpoints),
      cmocka_unit_test(a_lock_keeps_two_writers_apart),
      cmocka_unit_test(event_files_are_written_when_asked_for),
      cmocka_unit_test(wrong_usage),
      cmocka_unit_test(nothing_is_written_by_a_dry_run),
      cmocka_unit_test(time_becomes_tokens),
      cmocka_unit_test(weights_that_are_no_numbers),
      cmocka_unit_test(priors_from_files),
      cmocka_unit_test(other_patterns_are_masks_too),
  };
  return cmocka_run_group_tests(tests, make_inputs, NULL);
}
