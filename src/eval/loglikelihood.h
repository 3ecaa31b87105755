/* Log-likelihoods of given continuations, as lm-evaluation-harness asks for them.
 *
 * A text is a context and a continuation as token ids; its score is the sum of the continuation's
 * token log-probabilities. Texts come in groups that begin alike, such as the choices of one
 * question: what they have in common is computed once. Groups are packed, longest first, into
 * passes without padding. A model in a card's memory (model_place) runs there: each text is a
 * sequence of its own, padded to the longest of its pass, so common beginnings are computed as
 * often as there are texts. Logits exist for a few rows at a time, and only for rows that predict a
 * token of a continuation. */
#ifndef TSR_EVAL_LOGLIKELIHOOD_H
#define TSR_EVAL_LOGLIKELIHOOD_H

#include "model/model.h"
#include "text/tokenizer.h"

struct scored_text {
  int32_t *ids;           /* (count): context, then continuation; realloc'd */
  int64_t count;          /* at least scored + 1 */
  int64_t scored;         /* tokens of the continuation, at least 1 */
  int64_t dropped;        /* tokens cut off at the beginning because the text was too long */
  double log_probability; /* result: the sum, in nats */
  bool greedy;            /* result: each scored token is the likeliest at its place */
};
void scored_text_free(struct scored_text *text);

/* Context and continuation as the harness cuts them: white space at the context's end moves to the
 * continuation; both together are tokenized, and the context takes as many tokens as it has alone.
 * BOS as the tokenizer's settings have it, not doubled where the context begins with it; an empty
 * context is the BOS token, or EOS where there is none. Of a text longer than context_length + 1
 * the last tokens are kept. STATUS_REFUSED when the continuation has no token of its own, or is
 * longer than the model's context. */
enum status scored_text_encode(struct scored_text *text, const struct tokenizer *tokenizer,
                               const char *context, const char *continuation,
                               int64_t context_length, struct error *err);

struct text_group {
  struct scored_text *texts; /* (count) */
  int count;
};
/* Fills in the results. `pass_tokens` rows in one pass, more only where one group needs them; 0 =
 * LOGLIKELIHOOD_PASS_TOKENS. STATUS_REFUSED for ids outside the vocabulary, STATUS_FAILED when a
 * result is no number, STATUS_INTERRUPTED on a signal. Shows progress. */
enum { LOGLIKELIHOOD_PASS_TOKENS = 2048 };
enum status loglikelihood_run(const struct model *model, enum precision precision,
                              struct text_group *groups, int64_t count, int64_t pass_tokens,
                              struct error *err);

#endif
