/* The program: picks a subcommand, parses its options, runs it, and turns its status into the exit
 * status. Together with the other files of this room it is the only place that prints results. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/interrupt.h"
#include "base/log.h"
#include "cli/commands.h"

/* One a line, in the order of use. */
/* clang-format off */
static const struct command *const commands[] = {
    &command_inspect, &command_tokenize, &command_prune, &command_learn,
    &command_refit, &command_recover, &command_pack,     &command_export, &command_eval,
    &command_generate, &command_bench,   &command_verify, &command_report,
    NULL,
};
/* clang-format on */

static void print_usage(FILE *out) {
  fprintf(out,
          "tessera learns which tiles of a language model's weight matrices must stay dense and\n"
          "which can be 2:4 sparse, and runs the resulting hybrid model.\n\n"
          "usage: tessera COMMAND ... [options]\n\ncommands:\n");
  for (int i = 0; commands[i]; i++)
    fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
  fprintf(out,
          "\nMODEL is a Hugging Face directory, a GGUF file or a packed directory.\n"
          "tessera COMMAND --help says more; tessera --version prints version and commit.\n");
}

static int fail(const struct error *err) {
  log_error("%s", err->text);
  return (int)err->status;
}

static int run(const struct command *command, int argc, char **argv) {
  struct error err = {STATUS_FAILED, ""};
  struct text_list positionals = {0};
  bool help;
  void *settings = calloc(1, command->settings_bytes + 1);
  INVARIANT(settings != NULL);
  enum status status = options_parse(command, argc, argv, settings, &positionals, &help, &err);
  if (status == STATUS_OK && help)
    options_help(command);
  else if (status == STATUS_OK)
    status = command->run(command, settings, &positionals, &err);
  if (status == STATUS_OK && (fflush(stdout) || ferror(stdout)))
    status = error_set(&err, STATUS_FAILED, "standard output could not be written");
  free(settings);
  return status ? fail(&err) : 0;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    print_usage(stderr);
    return STATUS_USAGE;
  }
  if (!strcmp(argv[1], "--version")) {
    printf("tessera %s (%s)\n", TSR_VERSION, version_commit());
    return 0;
  }
  if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    print_usage(stdout);
    return 0;
  }
  for (int i = 0; commands[i]; i++)
    if (!strcmp(argv[1], commands[i]->name)) {
      interrupt_install();
      return run(commands[i], argc - 2, argv + 2);
    }
  fprintf(stderr, "tessera: error: \"%s\" is no command; tessera --help lists them\n", argv[1]);
  return STATUS_USAGE;
}
