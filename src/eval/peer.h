/* Another inference program on the same weights, for comparison: a helper process that speaks one
 * line of JSON at a time over its standard input and output (docs/BENCH.md has the protocol). It
 * times its own runs; this side says when. Its standard error is ours. */
#ifndef TSR_EVAL_PEER_H
#define TSR_EVAL_PEER_H

#include "io/json.h"

struct peer;

/* Starts argv[0] (looked up in PATH) and waits for it to say who it is; `name` stands for it in
 * errors until then. STATUS_FAILED with the helper's own sentence when it cannot work here, a
 * package is missing, say. */
enum status peer_start(struct peer **out, const char *name, const char *const argv[],
                       struct error *err);
/* Ends the helper and waits for it; NULL is fine. */
void peer_stop(struct peer *peer);

const char *peer_name(const struct peer *peer);    /* "llama.cpp" */
const char *peer_version(const struct peer *peer); /* "0.3.36" */
const char *peer_dtype(const struct peer *peer);   /* of its weights, once loaded */

/* Has it load the model at `path`, with room for `batch` sequences and prompts of `length` tokens.
 * `dtype` is what weights are to be computed from, where the file leaves that open. */
enum status peer_load(struct peer *peer, const char *path, const char *dtype, int threads,
                      int64_t batch, int64_t length, struct error *err);
/* As speed.c does it: `batch` sequences, each between positions `context` and `most`, for about
 * `seconds`; or prompts of `length` tokens. */
enum status peer_decode(struct peer *peer, int64_t batch, int64_t context, int64_t most,
                        double seconds, double *tokens_per_s, struct error *err);
enum status peer_prefill(struct peer *peer, int64_t length, double seconds, double *tokens_per_s,
                         struct error *err);

#endif
