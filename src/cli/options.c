/* The option table at work: see options.h. Strings from --config live as long as the process. */
#include "cli/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "io/file.h"

enum { CONFIG_LIMIT_BYTES = 1 << 20 };

static void *member(const struct option *o, void *settings) { return (char *)settings + o->offset; }

/* --- one value from text --- */

static enum status parse_int(const struct option *o, const char *text, int64_t *out,
                             struct error *err) {
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  bool ranged = o->least != 0 || o->most != 0;
  if (end == text || *end || errno)
    return error_set(err, STATUS_USAGE, "--%s needs a whole number, not \"%s\"", o->name, text);
  if (ranged && ((double)value < o->least || (double)value > o->most))
    return error_set(err, STATUS_USAGE, "--%s must be between %.0f and %.0f, not %s", o->name,
                     o->least, o->most, text);
  *out = value;
  return STATUS_OK;
}

static enum status parse_real(const struct option *o, const char *text, double *out,
                              struct error *err) {
  char *end;
  double value = strtod(text, &end);
  if (o->kind == OPTION_FRACTION && end != text && *end == '%') {
    value /= 100.0;
    end++;
  }
  if (end == text || *end || !isfinite(value))
    return error_set(err, STATUS_USAGE, "--%s needs a number%s, not \"%s\"", o->name,
                     o->kind == OPTION_FRACTION ? " such as 0.45 or 45%" : "", text);
  bool ranged = o->least != 0 || o->most != 0;
  if (ranged && (value < o->least || value > o->most))
    return error_set(err, STATUS_USAGE, "--%s must be between %g and %g, not %s", o->name, o->least,
                     o->most, text);
  *out = value;
  return STATUS_OK;
}

/* Index of `text` among "a|b|c", or -1. */
static int find_choice(const char *choices, const char *text) {
  size_t length = strlen(text);
  int index = 0;
  for (const char *at = choices;; index++) {
    size_t span = strcspn(at, "|");
    if (span == length && !strncmp(at, text, length)) return index;
    if (!at[span]) return -1;
    at += span + 1;
  }
}

static void choice_name(const char *choices, int index, char *out, size_t out_bytes) {
  while (index-- > 0) choices += strcspn(choices, "|") + 1;
  snprintf(out, out_bytes, "%.*s", (int)strcspn(choices, "|"), choices);
}

static enum status assign(const struct option *o, const char *text, void *settings,
                          struct error *err) {
  void *target = member(o, settings);
  switch (o->kind) {
    case OPTION_FLAG:
      *(bool *)target = true;
      return STATUS_OK;
    case OPTION_INT:
      return parse_int(o, text, target, err);
    case OPTION_REAL:
    case OPTION_FRACTION:
      return parse_real(o, text, target, err);
    case OPTION_TEXT:
      *(const char **)target = text;
      return STATUS_OK;
    case OPTION_CHOICE: {
      int choice = find_choice(o->choices, text);
      if (choice < 0)
        return error_set(err, STATUS_USAGE, "--%s must be one of %s, not \"%s\"", o->name,
                         o->choices, text);
      *(int *)target = choice;
      return STATUS_OK;
    }
    case OPTION_LIST: {
      struct text_list *list = target;
      if (list->count == TEXT_LIST_MAX)
        return error_set(err, STATUS_USAGE, "--%s may be given at most %d times", o->name,
                         TEXT_LIST_MAX);
      list->items[list->count++] = text;
      return STATUS_OK;
    }
  }
  return STATUS_OK;
}

void options_defaults(const struct command *command, void *settings) {
  memset(settings, 0, command->settings_bytes);
  for (const struct option *o = command->options; o->name; o++) {
    if (o->initial) {
      INVARIANT(assign(o, o->initial, settings, NULL) == STATUS_OK);
      continue;
    }
    void *target = member(o, settings);
    if (o->kind == OPTION_INT) *(int64_t *)target = INT64_MIN;
    if (o->kind == OPTION_REAL || o->kind == OPTION_FRACTION) *(double *)target = NAN;
    if (o->kind == OPTION_CHOICE) *(int *)target = -1;
  }
}

static const struct option *find_option(const struct command *command, const char *name,
                                        size_t length) {
  for (const struct option *o = command->options; o->name; o++)
    if (strlen(o->name) == length && !strncmp(o->name, name, length)) return o;
  return NULL;
}

/* --- --config FILE --- */

/* Settings point at their texts. Those of the command line outlive them in argv; those of a
 * configuration file do so here, until the process ends. */
static const char *keep_text(const char *text) {
  static struct kept {
    struct kept *next;
    char text[];
  } * all;
  const size_t bytes = strlen(text) + 1;
  struct kept *kept = malloc(sizeof *kept + bytes);
  INVARIANT(kept != NULL);
  memcpy(kept->text, text, bytes);
  kept->next = all;
  all = kept;
  return kept->text;
}

static enum status assign_json(const struct option *o, const json_t *value, void *settings,
                               struct error *err) {
  char number[64];
  if (json_is_null(value)) return STATUS_OK;
  if (o->kind == OPTION_FLAG) {
    if (!json_is_boolean(value))
      return error_set(err, STATUS_USAGE, "\"%s\" must be true or false", o->name);
    *(bool *)member(o, settings) = json_is_true(value);
    return STATUS_OK;
  }
  if (o->kind == OPTION_LIST && json_is_array(value)) {
    for (size_t i = 0; i < json_array_size(value); i++) {
      enum status status = assign_json(o, json_array_get(value, i), settings, err);
      if (status) return status;
    }
    return STATUS_OK;
  }
  if (json_is_integer(value))
    snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
  else if (json_is_real(value))
    snprintf(number, sizeof number, "%.17g", json_real_value(value));
  else if (!json_is_string(value))
    return error_set(err, STATUS_USAGE, "\"%s\" must be a number or a string", o->name);
  const char *text = json_is_string(value) ? json_string_value(value) : number;
  const bool kept = o->kind == OPTION_TEXT || o->kind == OPTION_LIST;
  return assign(o, kept ? keep_text(text) : text, settings, err);
}

static enum status apply_config(const struct command *command, const char *path, void *settings,
                                struct error *err) {
  json_t *config = json_read_file(path, CONFIG_LIMIT_BYTES, err);
  if (!config) return err ? err->status : STATUS_REFUSED;
  enum status status = STATUS_OK;
  const char *key;
  json_t *value;
  if (!json_is_object(config))
    status = error_set(err, STATUS_USAGE, "the file must hold one JSON object of options");
  json_object_foreach(config, key, value) {
    if (status) break;
    const struct option *o = find_option(command, key, strlen(key));
    status =
        o ? assign_json(o, value, settings, err)
          : error_set(err, STATUS_USAGE, "\"%s\" is no option of tessera %s", key, command->name);
  }
  json_decref(config);
  return status ? error_prefix(err, "%s", path) : STATUS_OK;
}

/* --- the command line --- */

/* Options given on the command line replace lists that --config gave. */
struct parse {
  const struct command *command;
  void *settings;
  struct text_list *positionals;
  bool *help;
  int argc;
  char **argv;
};

static const char *short_name(const char *arg) {
  if (!strcmp(arg, "-q")) return "--quiet";
  if (!strcmp(arg, "-v")) return "--verbose";
  if (!strcmp(arg, "-h")) return "--help";
  return arg;
}

static enum status parse_long(struct parse *p, int *index, const char *arg, bool config_only,
                              struct error *err) {
  const char *name = arg + 2;
  size_t length = strcspn(name, "=");
  const char *value = name[length] ? name + length + 1 : NULL;
  bool config = length == 6 && !strncmp(name, "config", 6);
  const struct option *o = config ? NULL : find_option(p->command, name, length);
  if (!config && !o)
    return error_set(err, STATUS_USAGE, "tessera %s has no option --%.*s; see tessera %s --help",
                     p->command->name, (int)length, name, p->command->name);
  bool flag = o && o->kind == OPTION_FLAG;
  if (flag && value) return error_set(err, STATUS_USAGE, "--%s takes no value", o->name);
  if (!flag && !value) {
    if (*index + 1 >= p->argc)
      return error_set(err, STATUS_USAGE, "--%.*s needs a value", (int)length, name);
    value = p->argv[++*index];
  }
  if (config) return config_only ? apply_config(p->command, value, p->settings, err) : STATUS_OK;
  return config_only ? STATUS_OK : assign(o, value, p->settings, err);
}

static enum status parse_pass(struct parse *p, bool config_only, struct error *err) {
  bool options_end = false;
  for (int i = 0; i < p->argc; i++) {
    const char *arg = options_end ? p->argv[i] : short_name(p->argv[i]);
    if (!options_end && !strcmp(arg, "--")) {
      options_end = true;
    } else if (!options_end && !strcmp(arg, "--help")) {
      *p->help = true;
    } else if (!options_end && arg[0] == '-' && arg[1] == '-') {
      enum status status = parse_long(p, &i, arg, config_only, err);
      if (status) return status;
    } else if (!options_end && arg[0] == '-' && arg[1]) {
      return error_set(err, STATUS_USAGE, "tessera %s has no option %s; see tessera %s --help",
                       p->command->name, arg, p->command->name);
    } else if (!config_only) {
      if (p->positionals->count == TEXT_LIST_MAX)
        return error_set(err, STATUS_USAGE, "more than %d arguments", TEXT_LIST_MAX);
      p->positionals->items[p->positionals->count++] = arg;
    }
  }
  return STATUS_OK;
}

/* A list that the command line names starts anew: it does not add to what --config gave. */
static void clear_named_lists(struct parse *p) {
  for (const struct option *o = p->command->options; o->name; o++) {
    if (o->kind != OPTION_LIST) continue;
    size_t length = strlen(o->name);
    for (int i = 0; i < p->argc; i++) {
      const char *arg = p->argv[i];
      if (!strncmp(arg, "--", 2) && !strncmp(arg + 2, o->name, length) &&
          (!arg[2 + length] || arg[2 + length] == '='))
        ((struct text_list *)member(o, p->settings))->count = 0;
    }
  }
}

enum status options_parse(const struct command *command, int argc, char **argv, void *settings,
                          struct text_list *positionals, bool *help, struct error *err) {
  struct parse p = {command, settings, positionals, help, argc, argv};
  *help = false;
  positionals->count = 0;
  options_defaults(command, settings);
  enum status status = parse_pass(&p, true, err);
  if (status) return status;
  clear_named_lists(&p);
  status = parse_pass(&p, false, err);
  if (status || *help) return status;
  if (positionals->count < command->least_positionals ||
      positionals->count > command->most_positionals)
    return error_set(err, STATUS_USAGE, "usage: tessera %s %s [options]; see tessera %s --help",
                     command->name, command->positionals, command->name);
  return STATUS_OK;
}

/* --- help and records --- */

enum { HELP_COLUMN = 30, HELP_WIDTH = 92 };

/* Prints `text` from HELP_COLUMN on, wrapped at HELP_WIDTH. */
static void print_wrapped(const char *text, int column) {
  for (bool first = true; *text; first = false) {
    int word = (int)strcspn(text, " ");
    if (!first && column + 1 + word > HELP_WIDTH)
      column = (printf("\n%*s", HELP_COLUMN, ""), HELP_COLUMN);
    else if (!first)
      column += printf(" ");
    column += printf("%.*s", word, text);
    text += word + (text[word] == ' ');
  }
  putchar('\n');
}

static void describe(const struct option *o, char *out, size_t out_bytes) {
  int used = snprintf(out, out_bytes, "%s", o->help);
  if (o->choices && used > 0)
    used += snprintf(out + used, out_bytes - (size_t)used, " (%s)", o->choices);
  if (o->initial && used > 0 && (size_t)used < out_bytes && o->kind != OPTION_FLAG)
    snprintf(out + used, out_bytes - (size_t)used, " [default: %s]", o->initial);
}

void options_help(const struct command *command) {
  printf("%s\n\nusage: tessera %s %s [options]\n", command->summary, command->name,
         command->positionals);
  if (command->description) printf("\n%s\n", command->description);
  if (command->example) printf("\nexample:\n  %s\n", command->example);
  printf("\noptions:\n");
  for (const struct option *o = command->options; o->name; o++) {
    char text[1024];
    if (!o->help) continue;
    const char *argument = o->argument ? o->argument : o->kind == OPTION_CHOICE ? "NAME" : "";
    int column = printf("  --%s%s%s", o->name, *argument ? " " : "", argument);
    if (column >= HELP_COLUMN) column = (putchar('\n'), 0);
    printf("%*s", HELP_COLUMN - column, "");
    describe(o, text, sizeof text);
    print_wrapped(text, HELP_COLUMN);
  }
  printf("  --config FILE%*s", HELP_COLUMN - 15, "");
  print_wrapped("read options from a JSON object; the command line wins over it", HELP_COLUMN);
  printf("  --help%*sprint this\n", HELP_COLUMN - 8, "");
}

static json_t *option_json(const struct option *o, const void *target) {
  switch (o->kind) {
    case OPTION_FLAG:
      return json_boolean(*(const bool *)target);
    case OPTION_INT:
      return *(const int64_t *)target == INT64_MIN ? json_null()
                                                   : json_integer(*(const int64_t *)target);
    case OPTION_REAL:
    case OPTION_FRACTION: {
      double value = *(const double *)target;
      return isnan(value) ? json_null() : json_real(value);
    }
    case OPTION_TEXT: {
      const char *text = *(const char *const *)target;
      return text ? json_string(text) : json_null();
    }
    case OPTION_CHOICE: {
      char name[64];
      if (*(const int *)target < 0) return json_null();
      choice_name(o->choices, *(const int *)target, name, sizeof name);
      return json_string(name);
    }
    case OPTION_LIST: {
      const struct text_list *list = target;
      json_t *array = json_array();
      for (int i = 0; i < list->count; i++)
        json_array_append_new(array, json_string(list->items[i]));
      return array;
    }
  }
  return json_null();
}

json_t *options_record(const struct command *command, const void *settings) {
  json_t *record = json_object();
  for (const struct option *o = command->options; o->name; o++)
    if (o->help)
      json_object_set_new(record, o->name, option_json(o, (const char *)settings + o->offset));
  return record;
}

/* --- the common options --- */

void common_apply(const struct common_options *common) {
  parallel_set_threads((int)common->threads);
  log_set_level(common->quiet ? LOG_ERROR : common->verbose ? LOG_DEBUG : LOG_INFO);
}

enum status common_write_json(const struct common_options *common, json_t *result,
                              struct error *err) {
  enum status status = STATUS_OK;
  if (common->json && !strcmp(common->json, "-")) {
    if (json_dumpf(result, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER) || putchar('\n') == EOF ||
        fflush(stdout))
      status = error_set(err, STATUS_FAILED, "standard output: %s", strerror(errno));
  } else if (common->json) {
    status = json_write_file(common->json, result, err);
  }
  json_decref(result);
  return status;
}

enum status common_check_output(const struct common_options *common, const char *path,
                                struct error *err) {
  if (common->force || !file_exists(path)) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "%s exists; choose another name, or replace it with --force", path);
}
