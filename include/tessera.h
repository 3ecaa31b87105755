/* libtessera: hybrid dense / 2:4 sparse language models.
 *
 * From simple to advanced: open a model, ask it things, measure it, prune it, learn a mask for it,
 * write the result, and finally drive a decoding session token by token.
 *
 * Every function that can fail returns a tsr_status and, on anything but TSR_OK, fills the caller's
 * tsr_error with one sentence: what was wrong, where, and what to do. Outputs are untouched then,
 * and no file is left half written. `err` may be NULL. Paths and texts are UTF-8. A tsr_model may
 * be used by one thread at a time; the work inside runs on tsr_set_threads() threads, and its
 * results do not depend on their number. */
#ifndef TESSERA_H
#define TESSERA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TSR_API __attribute__((visibility("default")))

typedef enum tsr_status {
  TSR_OK = 0,
  TSR_FAILED = 1,       /* the work could not be done: I/O, memory, diverged learning */
  TSR_USAGE = 2,        /* arguments that make no sense */
  TSR_REFUSED = 3,      /* an input that is damaged, unsupported or does not fit */
  TSR_INTERRUPTED = 130 /* tsr_interrupt() was called; state is saved */
} tsr_status;

typedef struct tsr_error {
  tsr_status status;
  char text[1024];
} tsr_error;

/* "0.1.0" */
TSR_API const char *tsr_version(void);
/* Threads to use from now on; 0 means one per core. */
TSR_API void tsr_set_threads(int threads);
/* Asks running work to save its state and stop; safe in a signal handler. */
TSR_API void tsr_interrupt(void);

/* ---- models ---- */

typedef struct tsr_model tsr_model;

/* Opens a Hugging Face directory, a GGUF file, or a directory that tsr_pack wrote, with its
 * tokenizer where it has one. Weights stay mapped; close frees everything. */
TSR_API tsr_status tsr_model_open(tsr_model **out, const char *path, tsr_error *err);
TSR_API void tsr_model_close(tsr_model *model);

typedef struct tsr_model_info {
  const char *family; /* "llama", "qwen2", ...; lives as long as the model */
  int64_t parameters;
  int64_t linear_parameters; /* of the prunable linears */
  int64_t layers, hidden_size, vocab_size, context_length;
  double density; /* kept positions over the prunable weights */
} tsr_model_info;
TSR_API void tsr_model_describe(const tsr_model *model, tsr_model_info *out);

/* Zeroes what a mask file drops; TSR_REFUSED when it was made for another model. */
TSR_API tsr_status tsr_model_apply_mask(tsr_model *model, const char *mask_path, tsr_error *err);

/* ---- text ---- */

/* Token ids of `text` as the model's own tokenizer gives them, BOS included where its settings say
 * so. *ids is malloc'ed; the caller frees it. */
TSR_API tsr_status tsr_tokenize(const tsr_model *model, const char *text, size_t text_bytes,
                                int32_t **ids, size_t *count, tsr_error *err);
/* The text of ids, malloc'ed and NUL-terminated; special tokens are left out. */
TSR_API tsr_status tsr_detokenize(const tsr_model *model, const int32_t *ids, size_t count,
                                  char **text, size_t *text_bytes, tsr_error *err);

typedef struct tsr_generate_options {
  int64_t tokens;     /* at most so many; 0 = 128 */
  double temperature; /* 0 = greedy */
  int64_t top_k;      /* 0 = all */
  double top_p;       /* 0 = off */
  double min_p;       /* 0 = off */
  uint64_t seed;
  int chat; /* nonzero: `prompt` is a user's message, put into the model's chat template */
  /* Called with whole UTF-8 characters as they are known; may be NULL. */
  void (*put)(void *context, const char *text, size_t text_bytes);
  void *context;
} tsr_generate_options;
/* Continues `prompt`. *text, malloc'ed, gets the whole answer; may be NULL. */
TSR_API tsr_status tsr_generate(const tsr_model *model, const char *prompt,
                                const tsr_generate_options *options, char **text, tsr_error *err);

/* ---- measuring ---- */

typedef struct tsr_perplexity {
  double perplexity;
  double nll, nll_standard_error; /* nats per predicted token */
  double kl, kl_standard_error;   /* KL(reference || model); NAN without a reference */
  int64_t predictions, windows, window;
} tsr_perplexity;
/* Perplexity on a text file over non-overlapping windows of `window` tokens (0 = min(4096,
 * context)), as the pruning literature measures it. `reference` may be NULL. */
TSR_API tsr_status tsr_measure(const tsr_model *model, const tsr_model *reference,
                               const char *text_path, int64_t window, tsr_perplexity *out,
                               tsr_error *err);

/* ---- pruning, packing ---- */

typedef enum tsr_method { TSR_MAGNITUDE, TSR_WANDA, TSR_SPARSEGPT } tsr_method;

typedef struct tsr_prune_options {
  tsr_method method;
  const char *pattern;        /* "2:4", "n:m" such as "4:8", "unstructured", "hybrid" */
  double sparsity;            /* for unstructured and hybrid */
  int64_t tile;               /* 0 = 128 */
  const char *calibration;    /* a text or .jsonl file; NULL for magnitude */
  int64_t calibration_tokens; /* 0 = what the corpus and 128 windows allow */
  uint64_t seed;              /* of the choice of calibration windows */
} tsr_prune_options;
/* One-shot pruning; writes a mask file. The model is left as it was. */
TSR_API tsr_status tsr_prune(tsr_model *model, const tsr_prune_options *options,
                             const char *mask_path, tsr_error *err);

/* Writes the model with its mask applied as a packed directory: an ordinary Hugging Face directory
 * whose pruned linears are stored as docs/FORMAT.md says, in bf16. */
TSR_API tsr_status tsr_pack(const char *model_path, const char *mask_path, const char *directory,
                            tsr_error *err);

/* ---- learning ---- */

typedef enum tsr_learn_mode { TSR_JOINT, TSR_TILE, TSR_MASKLLM } tsr_learn_mode;

typedef struct tsr_learn_options {
  tsr_learn_mode mode;
  double sparsity;  /* 0 to 0.5 */
  const char *data; /* a text or .jsonl file */
  int64_t tokens;   /* the budget; everything else follows from it */
  int64_t window;   /* tokens of a sequence; 0 = by the budget */
  int64_t tile;     /* 0 = 128 */
  uint64_t seed;
  const char *prior; /* a mask file, or NULL: SparseGPT's is made first */
  int resume;        /* nonzero: go on with what is in run_path */
} tsr_learn_options;
/* Learns a mask into run_path/mask.safetensors, with checkpoints and a record beside it. */
TSR_API tsr_status tsr_learn(const char *model_path, const tsr_learn_options *options,
                             const char *run_path, tsr_error *err);

/* ---- decoding, token by token ---- */

typedef struct tsr_session tsr_session;

/* A KV cache for `capacity` tokens. The model must outlive it. */
TSR_API tsr_status tsr_session_open(tsr_session **out, const tsr_model *model, int64_t capacity,
                                    tsr_error *err);
TSR_API void tsr_session_close(tsr_session *session);
/* Appends tokens; logits (vocab_size) are those after the last. */
TSR_API tsr_status tsr_session_append(tsr_session *session, const int32_t *ids, int64_t count,
                                      float *logits, tsr_error *err);
/* Forgets everything from position `length` on. */
TSR_API void tsr_session_truncate(tsr_session *session, int64_t length);

#ifdef __cplusplus
}
#endif
#endif
