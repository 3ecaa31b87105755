/* Generation: see generate.h. The loop appends one token, draws the next, and hands its text on. */
#include "generate/generate.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/interrupt.h"
#include "base/mem.h"

const char *const generate_stop_name[] = {"end", "length", "context"};

enum status generator_init(struct generator *g, const struct model *model,
                           const struct tokenizer *tokenizer, int64_t capacity, enum dtype kv,
                           const struct sampler_settings *sampler, struct error *err) {
  int64_t vocab_size = model_config(model)->vocab_size;
  *g = (struct generator){.model = model, .tokenizer = tokenizer, .capacity = capacity};
  enum status status = sampler_init(&g->sampler, sampler, vocab_size, err);
  struct session_settings session = {.slots = 1, .capacity = capacity, .kv = kv};
  if (!status) status = model_session_new_with(&g->session, model, &session, err);
  if (!status) {
    g->logits = mem_alloc((size_t)vocab_size, sizeof(float), err);
    status = g->logits ? mem_grow((void **)&g->held.items, &g->held.capacity, (size_t)capacity,
                                  sizeof *g->held.items, err)
                       : STATUS_FAILED;
  }
  if (status) generator_release(g);
  return status;
}

void generator_release(struct generator *g) {
  sampler_release(&g->sampler);
  model_session_free(g->session);
  mem_free(g->logits);
  token_ids_free(&g->held);
  *g = (struct generator){0};
}

void generate_result_free(struct generate_result *result) {
  strbuf_free(&result->text);
  token_ids_free(&result->ids);
  *result = (struct generate_result){0};
}

/* Where logits go: nowhere when the session draws from them itself. */
static float *logits_of(const struct generator *g) {
  return model_session_draws(g->session) ? NULL : g->logits;
}

/* Makes the session hold exactly the prompt, with the logits after its last token. */
static enum status load_prompt(struct generator *g, const int32_t *prompt, size_t count,
                               struct generate_result *result, struct error *err) {
  if (count == 0)
    return error_set(err, STATUS_REFUSED,
                     "the prompt is empty and this model has no token to begin with; give it "
                     "some text");
  if ((int64_t)count >= g->capacity)
    return error_set(err, STATUS_REFUSED,
                     "the prompt has %zu tokens and the context holds %lld: shorten it or raise "
                     "--context",
                     count, (long long)g->capacity);
  size_t held = (size_t)model_session_length(g->session), common = 0;
  while (common < held && common < count && g->held.items[common] == prompt[common]) common++;
  if (common == count) common--; /* the last token is computed again for its logits */
  double start_s = clock_seconds();
  model_session_truncate(g->session, (int64_t)common);
  enum status status = model_session_append(g->session, prompt + common, (int64_t)(count - common),
                                            logits_of(g), err);
  if (status) return status;
  memcpy(g->held.items, prompt, count * sizeof *prompt);
  g->held.count = count;
  sampler_forget(&g->sampler);
  for (size_t i = 0; i < count; i++) sampler_see(&g->sampler, prompt[i]);
  if (model_session_draws(g->session)) status = model_slot_see(g->session, 0, g->sampler.seen, err);
  result->prompt_tokens = (int64_t)count;
  result->prompt_computed = (int64_t)(count - common);
  result->prompt_s = clock_seconds() - start_s;
  return status;
}

static void put_from(const struct generate_sink *sink, const struct strbuf *text, size_t from) {
  if (sink && text->length > from) sink->put(sink->ctx, text->data + from, text->length - from);
}

/* Where the logits are, with this sampler's settings and random stream. */
static enum status draw_there(struct generator *g, int32_t *id, struct error *err) {
  const struct sampler_settings *s = &g->sampler.settings;
  const struct model_draw draw = {.temperature = s->temperature,
                                  .top_k = s->top_k,
                                  .top_p = s->top_p,
                                  .min_p = s->min_p,
                                  .repetition_penalty = s->repetition_penalty,
                                  .uniform = sampler_uniform(&g->sampler)};
  enum status status = model_session_draw(g->session, &draw, 1, id, err);
  if (!status) sampler_see(&g->sampler, *id);
  return status;
}

static enum status draw(struct generator *g, int32_t *id, struct error *err) {
  if (model_session_draws(g->session)) return draw_there(g, id, err);
  *id = sampler_draw(&g->sampler, g->logits);
  if (*id >= 0) return STATUS_OK;
  return error_set(err, STATUS_FAILED,
                   "the logits of %s are not numbers: its weights are damaged or overflow in fp32",
                   model_path(g->model));
}

/* The decoding loop. `most` > 0; there is room for at least one token. */
static enum status decode(struct generator *g, struct token_stream *stream, int64_t most,
                          const struct generate_sink *sink, struct generate_result *result,
                          struct error *err) {
  const int64_t slot = 0;
  for (;;) {
    int32_t id;
    enum status status = interrupt_check(err);
    if (!status) status = draw(g, &id, err);
    if (status) return status;
    if (tokenizer_is_end(g->tokenizer, id)) {
      result->stop = GENERATE_STOP_END;
      return STATUS_OK;
    }
    result->ids.items[result->ids.count++] = id;
    size_t from = result->text.length;
    status = token_stream_put(stream, id, &result->text, err);
    if (status) return status;
    put_from(sink, &result->text, from);
    if ((int64_t)result->ids.count == most) {
      result->stop = GENERATE_STOP_LENGTH;
      return STATUS_OK;
    }
    if ((int64_t)g->held.count == g->capacity) {
      result->stop = GENERATE_STOP_CONTEXT;
      return STATUS_OK;
    }
    status = model_session_step(g->session, &slot, &id, 1, logits_of(g), err);
    if (status) return status;
    g->held.items[g->held.count++] = id;
  }
}

/* A stream that has seen the prompt: whether a leading space is shown depends on what was before.
 */
static enum status stream_after(struct token_stream *stream, const struct tokenizer *tokenizer,
                                const int32_t *prompt, size_t count, struct error *err) {
  struct strbuf unused = {0};
  enum status status = STATUS_OK;
  token_stream_init(stream, tokenizer);
  for (size_t i = 0; i < count && !status; i++) {
    status = token_stream_put(stream, prompt[i], &unused, err);
    strbuf_clear(&unused);
  }
  strbuf_free(&unused);
  return status;
}

enum status generate(struct generator *g, const int32_t *prompt, size_t prompt_count, int64_t most,
                     const struct generate_sink *sink, struct generate_result *result,
                     struct error *err) {
  *result = (struct generate_result){.stop = GENERATE_STOP_LENGTH};
  enum status status = load_prompt(g, prompt, prompt_count, result, err);
  if (status || most <= 0) return status;
  if (most > g->capacity) most = g->capacity;
  status = mem_grow((void **)&result->ids.items, &result->ids.capacity, (size_t)most,
                    sizeof *result->ids.items, err);
  if (status) return status;
  struct token_stream stream;
  status = stream_after(&stream, g->tokenizer, prompt, prompt_count, err);
  double start_s = clock_seconds();
  if (!status) status = decode(g, &stream, most, sink, result, err);
  result->decode_s = clock_seconds() - start_s;
  size_t from = result->text.length;
  token_stream_finish(&stream, &result->text);
  put_from(sink, &result->text, from);
  return status;
}
