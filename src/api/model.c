/* tessera.h: models, text, generation, measuring, sessions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/interrupt.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "data/windows.h"
#include "eval/eval.h"
#include "generate/generate.h"

enum { TOKENS_DEFAULT = 128 };

const char *tsr_version(void) { return TSR_VERSION; }
void tsr_set_threads(int threads) { parallel_set_threads(threads); }
void tsr_interrupt(void) { interrupt_set(true); }

enum status api_need_tokenizer(const tsr_model *model, struct error *err) {
  if (model->tokenizer) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "%s has no tokenizer that tessera can read; put its tokenizer.json there",
                   model_path(model->model));
}

tsr_status tsr_model_open(tsr_model **out, const char *path, tsr_error *err) {
  tsr_model *opened = calloc(1, sizeof *opened);
  if (!opened) return (tsr_status)error_set(api_error(err), STATUS_FAILED, "out of memory");
  enum status status = model_open(&opened->model, path, api_error(err));
  if (status) {
    free(opened);
    return (tsr_status)status;
  }
  /* a model without a tokenizer still decodes token by token */
  if (tokenizer_open(&opened->tokenizer, path, NULL)) opened->tokenizer = NULL;
  *out = opened;
  return TSR_OK;
}

void tsr_model_close(tsr_model *model) {
  if (!model) return;
  tokenizer_close(model->tokenizer);
  model_close(model->model);
  free(model);
}

void tsr_model_describe(const tsr_model *model, tsr_model_info *out) {
  const struct model_config *config = model_config(model->model);
  int64_t linear = 0;
  for (int i = 0; i < model_site_count(model->model); i++) {
    const struct linear_weight *w = &model_site(model->model, i)->weight;
    linear += linear_rows(w) * linear_cols(w);
  }
  *out = (tsr_model_info){.family = model_family_name(config),
                          .parameters = model_parameters(model->model),
                          .linear_parameters = linear,
                          .layers = config->layers,
                          .hidden_size = config->hidden_size,
                          .vocab_size = config->vocab_size,
                          .context_length = config->context_length,
                          .density = model_density(model->model)};
}

tsr_status tsr_model_apply_mask(tsr_model *model, const char *mask_path, tsr_error *err) {
  struct mask_set masks = {0};
  enum status status = mask_load(&masks, mask_path, api_error(err));
  if (!status) status = model_apply_masks(model->model, &masks, api_error(err));
  mask_set_free(&masks);
  return (tsr_status)status;
}

tsr_status tsr_tokenize(const tsr_model *model, const char *text, size_t text_bytes, int32_t **ids,
                        size_t *count, tsr_error *err) {
  struct token_ids found = {0};
  enum status status = api_need_tokenizer(model, api_error(err));
  if (!status)
    status = tokenizer_encode(model->tokenizer, text, text_bytes, 0, &found, api_error(err));
  if (status) {
    token_ids_free(&found);
    return (tsr_status)status;
  }
  *ids = found.items;
  *count = found.count;
  return TSR_OK;
}

/* Hands the buffer's memory to the caller; an empty one becomes "". */
static char *take_text(struct strbuf *buffer) {
  strbuf_append(buffer, "", 0);
  return buffer->data;
}

tsr_status tsr_detokenize(const tsr_model *model, const int32_t *ids, size_t count, char **text,
                          size_t *text_bytes, tsr_error *err) {
  struct strbuf out = {0};
  enum status status = api_need_tokenizer(model, api_error(err));
  if (!status) status = tokenizer_decode(model->tokenizer, ids, count, true, &out, api_error(err));
  if (status) {
    strbuf_free(&out);
    return (tsr_status)status;
  }
  *text_bytes = out.length;
  *text = take_text(&out);
  return TSR_OK;
}

static struct sampler_settings sampler_of(const tsr_generate_options *options) {
  struct sampler_settings s = sampler_settings_default();
  s.temperature = options->temperature;
  s.top_k = options->top_k;
  s.min_p = options->min_p;
  s.seed = options->seed;
  if (options->top_p > 0) s.top_p = options->top_p;
  return s;
}

/* Ids of the prompt, put into the chat template where that is asked for. */
static enum status encode_prompt(const tsr_model *model, const char *prompt, int chat,
                                 struct token_ids *ids, struct error *err) {
  if (!chat) return tokenizer_encode(model->tokenizer, prompt, strlen(prompt), 0, ids, err);
  struct chat_message message = {"user", prompt};
  struct strbuf text = {0};
  enum status status = tokenizer_chat(model->tokenizer, &message, 1, &text, err);
  if (!status)
    status = tokenizer_encode(model->tokenizer, strbuf_text(&text), text.length, TOKENIZE_NO_BOS,
                              ids, err);
  strbuf_free(&text);
  return status;
}

tsr_status tsr_generate(const tsr_model *model, const char *prompt,
                        const tsr_generate_options *options, char **text, tsr_error *err) {
  struct token_ids ids = {0};
  struct generator generator = {0};
  struct generate_result result = {0};
  struct sampler_settings sampler = sampler_of(options);
  struct generate_sink sink = {options->put, options->context};
  int64_t most = options->tokens > 0 ? options->tokens : TOKENS_DEFAULT;
  enum status status = api_need_tokenizer(model, api_error(err));
  if (!status) status = encode_prompt(model, prompt, options->chat, &ids, api_error(err));
  if (!status)
    status = generator_init(&generator, model->model, model->tokenizer, (int64_t)ids.count + most,
                            DTYPE_F16, &sampler, api_error(err));
  if (!status)
    status = generate(&generator, ids.items, ids.count, most, options->put ? &sink : NULL, &result,
                      api_error(err));
  if (!status && text) {
    *text = take_text(&result.text);
    result.text = (struct strbuf){0};
  }
  generate_result_free(&result);
  generator_release(&generator);
  token_ids_free(&ids);
  return (tsr_status)status;
}

enum { MEASURE_WINDOW_MAX = 4096 };

tsr_status tsr_measure(const tsr_model *model, const tsr_model *reference, const char *text_path,
                       int64_t window, tsr_perplexity *out, tsr_error *err) {
  struct corpus corpus = {0};
  struct windows windows = {0};
  struct eval_result result;
  int64_t context = model_config(model->model)->context_length;
  if (window <= 0) window = context < MEASURE_WINDOW_MAX ? context : MEASURE_WINDOW_MAX;
  enum status status = api_need_tokenizer(model, api_error(err));
  if (!status) status = corpus_load(&corpus, text_path, model->tokenizer, 0, api_error(err));
  if (!status) status = windows_cut(&windows, &corpus, window, false, api_error(err));
  if (!status) {
    struct eval_request request = {.model = model->model,
                                   .reference = reference ? reference->model : NULL,
                                   .windows = &windows};
    status = eval_run(&result, &request, api_error(err));
  }
  if (!status)
    *out = (tsr_perplexity){.perplexity = result.perplexity,
                            .nll = result.nll.mean,
                            .nll_standard_error = result.nll.standard_error,
                            .kl = reference ? result.kl.mean : NAN,
                            .kl_standard_error = reference ? result.kl.standard_error : NAN,
                            .predictions = result.predictions,
                            .windows = result.windows,
                            .window = window};
  windows_free(&windows);
  corpus_free(&corpus);
  return (tsr_status)status;
}

/* --- sessions --- */

static struct model_session *inner(tsr_session *session) { return (struct model_session *)session; }

tsr_status tsr_session_open(tsr_session **out, const tsr_model *model, int64_t capacity,
                            tsr_error *err) {
  struct model_session *session = NULL;
  enum status status = model_session_new(&session, model->model, capacity, api_error(err));
  if (!status) *out = (tsr_session *)session;
  return (tsr_status)status;
}

void tsr_session_close(tsr_session *session) { model_session_free(inner(session)); }

tsr_status tsr_session_append(tsr_session *session, const int32_t *ids, int64_t count,
                              float *logits, tsr_error *err) {
  return (tsr_status)model_session_append(inner(session), ids, count, logits, api_error(err));
}

void tsr_session_truncate(tsr_session *session, int64_t length) {
  model_session_truncate(inner(session), length);
}
