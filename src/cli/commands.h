/* The subcommands; each is defined in its own cmd_<name>.c. */
#ifndef TSR_CLI_COMMANDS_H
#define TSR_CLI_COMMANDS_H

#include "cli/options.h"

extern const struct command command_inspect;
extern const struct command command_tokenize;
extern const struct command command_prune;
extern const struct command command_learn;
extern const struct command command_refit;
extern const struct command command_recover;
extern const struct command command_pack;
extern const struct command command_export;
extern const struct command command_eval;
extern const struct command command_generate;
extern const struct command command_bench;
extern const struct command command_verify;
extern const struct command command_report;

/* The commit this program was built from, or "unknown". */
const char *version_commit(void);

#endif
