/* Helper processes: see peer.h. Both directions go over one socket pair, whose writes fail instead
 * of raising SIGPIPE when the helper is gone. */
#include "eval/peer.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/interrupt.h"
#include "base/mem.h"
#include "base/strbuf.h"

extern char **environ;

enum { LINE_BYTES_MAX = 1 << 16, TEXT_BYTES = 64 };

struct peer {
  pid_t pid;
  int fd;                /* -1 when closed */
  struct strbuf input;   /* what was read behind the last line */
  char name[TEXT_BYTES]; /* as the caller calls it, then as it calls itself */
  char version[TEXT_BYTES], dtype[TEXT_BYTES];
};

const char *peer_name(const struct peer *p) { return p->name; }
const char *peer_version(const struct peer *p) { return p->version; }
const char *peer_dtype(const struct peer *p) { return p->dtype; }

/* --- lines --- */

/* Why nothing more comes: how the helper ended. */
static enum status lost(struct peer *p, struct error *err) {
  int how = 0;
  enum status status = interrupt_check(err); /* Ctrl-C reaches the helper too */
  close(p->fd);
  p->fd = -1;
  if (waitpid(p->pid, &how, 0) == p->pid) p->pid = 0;
  if (status) return status;
  if (WIFSIGNALED(how))
    return error_set(err, STATUS_FAILED, "%s: its process was ended by signal %d", peer_name(p),
                     WTERMSIG(how));
  return error_set(err, STATUS_FAILED, "%s: its process ended with status %d and without a reply",
                   peer_name(p), WEXITSTATUS(how));
}

static enum status write_line(struct peer *p, const json_t *request, struct error *err) {
  struct strbuf line = {0};
  json_format(&line, request, 0);
  strbuf_putc(&line, '\n');
  size_t done = 0;
  while (done < line.length) {
    ssize_t n = send(p->fd, line.data + done, line.length - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += (size_t)n;
  }
  bool sent = done == line.length;
  strbuf_free(&line);
  return sent ? STATUS_OK : lost(p, err);
}

/* The next line as JSON. */
static enum status read_line(struct peer *p, json_t **reply, struct error *err) {
  char piece[4096];
  const char *end;
  enum status status = STATUS_OK;
  while (!(end = p->input.length ? memchr(p->input.data, '\n', p->input.length) : NULL)) {
    if (p->input.length > LINE_BYTES_MAX)
      return error_set(err, STATUS_FAILED, "%s: its reply is longer than %d bytes", peer_name(p),
                       LINE_BYTES_MAX);
    ssize_t n = read(p->fd, piece, sizeof piece);
    if (n < 0 && errno == EINTR && !interrupt_requested()) continue;
    if (n <= 0) return lost(p, err);
    strbuf_append(&p->input, piece, (size_t)n);
  }
  size_t length = (size_t)(end - p->input.data);
  *reply = json_parse(p->input.data, length, peer_name(p), NULL);
  if (!*reply)
    status = error_set(err, STATUS_FAILED, "%s: its reply is not JSON: \"%.*s\"", peer_name(p),
                       (int)(length < 80 ? length : 80), p->input.data);
  memmove(p->input.data, p->input.data + length + 1, p->input.length - length - 1);
  p->input.length -= length + 1;
  return status;
}

/* The reply, or the error that it states. */
static enum status receive(struct peer *p, json_t **reply, struct error *err) {
  enum status status = read_line(p, reply, err);
  if (status) return status;
  const char *why = json_get_string(*reply, "error");
  if (!why) return STATUS_OK;
  error_set(err, STATUS_FAILED, "%s: %s", peer_name(p), why);
  json_decref(*reply);
  return STATUS_FAILED;
}

/* Steals the reference to `request`. */
static enum status ask(struct peer *p, json_t *request, json_t **reply, struct error *err) {
  enum status status = p->fd < 0 ? lost(p, err) : write_line(p, request, err);
  json_decref(request);
  return status ? status : receive(p, reply, err);
}

/* --- starting and ending --- */

static enum status spawn(struct peer *p, const char *const argv[], int theirs, struct error *err) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, theirs, STDOUT_FILENO);
  int failure = posix_spawnp(&p->pid, argv[0], &actions, NULL, (char *const *)argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (!failure) return STATUS_OK;
  p->pid = 0;
  return error_set(err, STATUS_FAILED, "%s: %s cannot be started: %s", p->name, argv[0],
                   strerror(failure));
}

/* Keeps a text of a reply, cut to fit. */
static void keep_text(char out[TEXT_BYTES], const json_t *reply, const char *key) {
  const char *text = json_get_string(reply, key);
  size_t length = text ? strlen(text) : 0;
  if (length > TEXT_BYTES - 1) length = TEXT_BYTES - 1;
  if (length) memcpy(out, text, length);
  out[length] = 0;
}

static enum status meet(struct peer *p, struct error *err) {
  json_t *hello = NULL;
  enum status status = receive(p, &hello, err);
  if (status) return status;
  bool named = json_get_string(hello, "peer") != NULL;
  if (named) keep_text(p->name, hello, "peer");
  keep_text(p->version, hello, "version");
  json_decref(hello);
  if (named) return STATUS_OK;
  return error_set(err, STATUS_FAILED, "%s: it does not say which program it stands for", p->name);
}

enum status peer_start(struct peer **out, const char *name, const char *const argv[],
                       struct error *err) {
  int ends[2];
  struct peer *p = mem_alloc(1, sizeof *p, err);
  if (!p) return STATUS_FAILED;
  p->fd = -1;
  snprintf(p->name, sizeof p->name, "%s", name);
  enum status status = STATUS_OK;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
    status = error_set(err, STATUS_FAILED, "%s: no socket for it: %s", name, strerror(errno));
  if (!status) {
    p->fd = ends[0];
    status = spawn(p, argv, ends[1], err);
    close(ends[1]);
  }
  if (!status) status = meet(p, err);
  if (status)
    peer_stop(p);
  else
    *out = p;
  return status;
}

void peer_stop(struct peer *p) {
  if (!p) return;
  if (p->fd >= 0) close(p->fd); /* the end of its input is its sign to go */
  while (p->pid > 0 && waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) continue;
  strbuf_free(&p->input);
  mem_free(p);
}

/* --- what is asked --- */

enum status peer_load(struct peer *p, const char *path, const char *dtype, int threads,
                      int64_t batch, int64_t length, struct error *err) {
  json_t *reply = NULL, *request = json_pack("{s:s, s:s, s:s, s:i, s:I, s:I}", "do", "load", "path",
                                             path, "dtype", dtype, "threads", threads, "batch",
                                             (json_int_t)batch, "length", (json_int_t)length);
  INVARIANT(request != NULL);
  enum status status = ask(p, request, &reply, err);
  if (status) return status;
  keep_text(p->dtype, reply, "dtype");
  json_decref(reply);
  return STATUS_OK;
}

static enum status run(struct peer *p, json_t *request, double *tokens_per_s, struct error *err) {
  json_t *reply = NULL;
  double tokens = 0, seconds = 0;
  INVARIANT(request != NULL);
  enum status status = ask(p, request, &reply, err);
  if (status) return status;
  bool whole = json_get_real(reply, "tokens", &tokens, NULL) &&
               json_get_real(reply, "seconds", &seconds, NULL) && tokens > 0 && seconds > 0;
  json_decref(reply);
  if (!whole)
    return error_set(err, STATUS_FAILED, "%s: its reply lacks \"tokens\" and \"seconds\"",
                     peer_name(p));
  *tokens_per_s = tokens / seconds;
  return STATUS_OK;
}

enum status peer_decode(struct peer *p, int64_t batch, int64_t context, int64_t most,
                        double seconds, double *tokens_per_s, struct error *err) {
  json_t *request =
      json_pack("{s:s, s:I, s:I, s:I, s:f}", "do", "decode", "batch", (json_int_t)batch, "context",
                (json_int_t)context, "most", (json_int_t)most, "seconds", seconds);
  return run(p, request, tokens_per_s, err);
}

enum status peer_prefill(struct peer *p, int64_t length, double seconds, double *tokens_per_s,
                         struct error *err) {
  json_t *request = json_pack("{s:s, s:I, s:f}", "do", "prefill", "length", (json_int_t)length,
                              "seconds", seconds);
  return run(p, request, tokens_per_s, err);
}
