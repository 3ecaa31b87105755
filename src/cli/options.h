/* One option table per command: it parses the command line and --config FILE, holds the defaults
 * and ranges, prints --help, and writes the run's record.
 *
 * A command's options live in one settings struct; each option names a member by its offset. The
 * member's type follows from the kind:
 *   FLAG bool; INT int64_t; REAL and FRACTION double (NAN = not given, when `initial` is NULL);
 *   TEXT const char * (NULL = not given); CHOICE int (index into `choices`, -1 = not given);
 *   LIST struct text_list. INT without `initial` starts as INT64_MIN. */
#ifndef TSR_CLI_OPTIONS_H
#define TSR_CLI_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "io/json.h"

enum option_kind {
  OPTION_FLAG,
  OPTION_INT,
  OPTION_REAL,
  OPTION_FRACTION, /* 0.45 or 45% */
  OPTION_TEXT,
  OPTION_CHOICE,
  OPTION_LIST /* may be given several times */
};

enum { TEXT_LIST_MAX = 64 };
struct text_list {
  const char *items[TEXT_LIST_MAX];
  int count;
};

struct option {
  const char *name; /* without the dashes */
  enum option_kind kind;
  size_t offset;
  const char *initial;  /* default, as it would be typed; NULL = not given */
  double least, most;   /* inclusive range for numbers; both 0 = any */
  const char *choices;  /* "2:4|n:m": alternatives of a CHOICE */
  const char *argument; /* shown in help: "FILE", "N" */
  const char *help;     /* NULL: an older name for the option after it, not shown */
};

struct command {
  const char *name;
  const char *positionals; /* "MODEL", "MODEL [FILE]", "RUN...", as help shows them */
  int least_positionals, most_positionals;
  const char *summary;     /* one line for the list of commands */
  const char *description; /* further lines for --help; may be NULL */
  const char *example;
  const struct option *options; /* ends with a NULL name */
  size_t settings_bytes;
  /* Returns the exit status, error filled. */
  enum status (*run)(const struct command *command, void *settings, struct text_list *positionals,
                     struct error *err);
};

/* Fills `settings` with the defaults. */
void options_defaults(const struct command *command, void *settings);
/* Parses argv after the command's name. Strings point into argv or into memory that lives as long
 * as the process. Sets *help when --help was asked for. */
enum status options_parse(const struct command *command, int argc, char **argv, void *settings,
                          struct text_list *positionals, bool *help, struct error *err);
void options_help(const struct command *command);
/* All options with their values as one JSON object, for records. New reference. */
json_t *options_record(const struct command *command, const void *settings);

/* Options that every command has, spliced into its table. */
struct common_options {
  int64_t threads;  /* 0 = one per core */
  const char *json; /* file, "-" or NULL */
  bool force, quiet, verbose;
};
#define COMMON_OPTIONS(type, member)                                                                \
  {"threads", OPTION_INT, offsetof(type, member.threads),        "0", 0, 256,                       \
   NULL,      "N",        "threads to use; 0 means one per core"},                                  \
      {"json", OPTION_TEXT, offsetof(type, member.json),                                            \
       NULL,   0,           0,                                                                      \
       NULL,   "FILE",      "also write the result as JSON to FILE, or to standard output with -"}, \
      {"force", OPTION_FLAG, offsetof(type, member.force), NULL, 0, 0,                              \
       NULL,    NULL,        "replace outputs that exist"},                                         \
      {"quiet", OPTION_FLAG, offsetof(type, member.quiet),        NULL, 0, 0,                       \
       NULL,    NULL,        "print results and errors only (-q)"},                                 \
      {"verbose", OPTION_FLAG, offsetof(type, member.verbose),      NULL, 0, 0,                     \
       NULL,      NULL,        "print more about what is done (-v)"},                               \
  {                                                                                                 \
    NULL, OPTION_FLAG, 0, NULL, 0, 0, NULL, NULL, NULL                                              \
  }

/* Applies threads and verbosity. */
void common_apply(const struct common_options *common);
/* Writes `result` where --json asks; steals the reference. Nothing when json is NULL. */
enum status common_write_json(const struct common_options *common, json_t *result,
                              struct error *err);
/* STATUS_REFUSED when `path` exists and --force was not given. */
enum status common_check_output(const struct common_options *common, const char *path,
                                struct error *err);

#endif
