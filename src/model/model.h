/* A decoder-only transformer: its configuration, weights, forward and backward passes.
 *
 * Shapes: activations are fp32, row-major, one row per token; `tokens` rows are `sequences` equal
 * windows of `length` tokens one after the other (struct model_shape). Weights are frozen: the
 * backward pass gives gradients of activations, and hands (x, dy) of every prunable linear to the
 * tap, which may form the weight's gradient from them.
 *
 * Names are Hugging Face's throughout ("model.layers.0.self_attn.q_proj.weight"), whatever the
 * model was read from; rows of q and k of a GGUF are brought into Hugging Face's order. */
#ifndef TSR_MODEL_MODEL_H
#define TSR_MODEL_MODEL_H

#include "kernel/backend.h"
#include "model/config.h"
#include "sparse/mask.h"

enum site_role { SITE_Q, SITE_K, SITE_V, SITE_O, SITE_GATE, SITE_UP, SITE_DOWN, SITE_ROLES };
extern const char *const site_role_name[SITE_ROLES]; /* "q_proj", ... */

/* One prunable linear. Sites are numbered in forward order: q k v o gate up down, block by block;
 * q, k, v see the same x, and so do gate and up. */
struct linear_site {
  int index, layer;
  enum site_role role;
  const char *name; /* of the weight */
  struct linear_weight weight;
  const float *bias; /* (rows) or NULL */
};

enum tap_pass { TAP_FORWARD, TAP_BACKWARD };

/* What an observer of the linears may do; any member may be NULL. Called on the main thread, in
 * forward (or backward) order of the sites. */
struct tap {
  void *ctx;
  /* The weight to multiply with instead of site->weight; NULL means site->weight. Asked for right
   * before the product, in both passes (a checkpointed block asks again for its second forward);
   * what it returns stays valid until the next call. */
  const struct linear_weight *(*weight)(void *ctx, const struct linear_site *site,
                                        enum tap_pass pass);
  /* Before the product: x (tokens, cols). Once a pass: the second forward of a checkpointed block
   * does not show its inputs again. */
  void (*input)(void *ctx, const struct linear_site *site, const float *x, int64_t tokens);
  /* In the backward pass, before the weight is asked for: x (tokens, cols), dy (tokens, rows). */
  void (*gradient)(void *ctx, const struct linear_site *site, const float *x, const float *dy,
                   int64_t tokens);
};

struct model;

/* Opens a Hugging Face directory, a GGUF file or a packed directory. Native types and packed
 * matrices stay mapped; block types are expanded to fp32. What is not supported is refused by name.
 */
enum status model_open(struct model **out, const char *path, struct error *err);
/* The same for models that are to run, not to be learned on: block types stay mapped, too. Products
 * expand them piece by piece, with the results of the expanded model but for rounding, until
 * model_prepare brings them into an order that is fast; masks expand what they are for. */
enum status model_open_to_run(struct model **out, const char *path, struct error *err);
/* The same, reading headers only: for looking at a model, and for passing over its weights once.
 * Sites describe what is stored; model_site_expand and
 * model_tensor_expand work; nothing may be multiplied, masked or replaced. */
enum status model_open_headers(struct model **out, const char *path, struct error *err);
void model_close(struct model *model);

/* A copy of the model in the memory of `backend`, which then runs there: passes over it, and the
 * workspaces made for it, are that backend's; activations, and what a tap is shown and answers, lie
 * in its memory. Packed linears are dense in it. `host` must outlive it; what is masked or
 * replaced there later does not follow. model_close gives the copy back. What reads weights on the
 * host (model_tensor_expand and its like) reads those of `host`. No sessions, no branches. */
enum status model_place(struct model **out, const struct model *host, const struct backend *backend,
                        struct error *err);
/* A copy that is to decode there, and nothing else: sessions alone may be opened on it. Its
 * matrices are packed for the card's products (sparse/fragments.h): hybrid ones stay hybrid,
 * integers stay integers, all else is rounded to bf16; of `host`, whose weights must not have been
 * prepared, only what describes them is read afterwards. `choose`: which kernel multiplies what is
 * read from the table of this card when a session is opened, and measured first where the table
 * does not say (model/choice.h); dense copies of weights are kept where the library's dense product
 * won. Else the usual kernels are taken. STATUS_REFUSED where the backend has no decoding. */
enum status model_place_to_run(struct model **out, const struct model *host,
                               const struct backend *backend, bool choose, struct error *err);
/* Bytes of such a model on the card: of all weights, dense copies that a choice of kernels asked
 * for included; of those that a step reads, linears and head. */
size_t model_placed_bytes(const struct model *placed);
size_t model_step_bytes(const struct model *placed);
const struct backend *model_backend(const struct model *model);

const struct model_config *model_config(const struct model *model);
const char *model_path(const struct model *model);
int model_site_count(const struct model *model);
const struct linear_site *model_site(const struct model *model, int index);
/* First site of block `layer`; a block has SITE_ROLES of them. */
static inline int model_block_site(int layer) { return layer * SITE_ROLES; }
/* What the logits are a product with: lm_head, or the embeddings where they are tied. */
const struct linear_weight *model_head(const struct model *model);
/* All weights, counted once (a tied lm_head is no weight of its own). */
int64_t model_parameters(const struct model *model);
/* Those of the prunable linears alone: what densities are shares of. */
int64_t model_prunable_weights(const struct model *model);
/* The GGUF file or the config.json that the model came from; the other is NULL. */
const struct gguf *model_gguf(const struct model *model);
const json_t *model_json(const struct model *model);

/* Every tensor under its Hugging Face name and in Hugging Face's form, for those who write models:
 * embeddings first, then block by block, then the final norm and a separate lm_head. */
struct model_tensor {
  const char *name;
  int rank; /* 1 or 2 */
  int64_t shape[2];
  enum dtype
      dtype; /* as stored; of a quantized matrix that of its integers, u8 for pairs of nibbles */
  const struct quant_matrix *quant; /* what the file holds when it is quantized, else NULL */
  int site;                         /* index of the prunable linear whose weight this is, or -1 */
};
int model_tensor_count(const struct model *model);
const struct model_tensor *model_tensor(const struct model *model, int index);
/* Rows [first, first + rows) (elements, for rank 1) as fp32, masks and replacements included:
 * out (rows, shape[1]). */
void model_tensor_expand(const struct model *model, int index, int64_t first, int64_t rows,
                         float *out);

/* Expands W of a site to fp32: out (rows, cols). */
void model_site_expand(const struct model *model, int site, float *out);
/* Name of the first tensor with a NaN or an infinity, or NULL. Reads all weights: for saying why a
 * result is not a number. */
const char *model_nonfinite_tensor(const struct model *model);
/* Replaces W of a site; the model takes ownership of `weight` (from mem_alloc; (rows, cols)). */
void model_site_replace(struct model *model, int site, float *weight);
/* Zeroes what the masks drop, in copies of the weights concerned. STATUS_REFUSED when a mask names
 * a tensor or a shape that the model does not have. */
enum status model_apply_masks(struct model *model, const struct mask_set *masks, struct error *err);
/* The stored row `row` of a tensor whose dtype is a block type, in Hugging Face's order: for taking
 * blocks over as they are. Masks and replacements do not show. */
const void *model_tensor_blocks(const struct model *model, int index, int64_t row);
/* Makes packed linears dense again, in their own element type, zeros and all. Integers with
 * minimums, which have no zero, take the one next to it: right for measuring speed alone. */
enum status model_unpack(struct model *model, struct error *err);
/* Brings all 16-bit weights and integers, the head's included, into the orders that decoding reads
 * fastest (sparse/strips.h, sparse/quant_strips.h), on all threads, and gives back what they were
 * before: for models that from now on only run. Blocks of a GGUF keep their integers where
 * quant_strips_takes them, and are rounded to bf16 where not; fp32 weights stay as they are, or
 * become bf16 when `round_fp32`. Products of few tokens round activations to int8 where weights are
 * integers (kernel/linear.h). Afterwards nothing may be masked, replaced or unpacked. After a
 * failure the model is still whole. */
enum status model_prepare(struct model *model, bool round_fp32, struct error *err);
/* Kept positions over all prunable weights: 1.0 for a dense model, from the masks applied or the
 * packed form. */
double model_density(const struct model *model);

struct model_shape {
  int64_t sequences, length;
};

/* Scratch memory for a shape, made once, used by every pass. `train` adds what the backward pass
 * needs; `checkpoint` keeps only each block's input and computes the rest again. */
struct model_workspace;
enum status model_workspace_new(struct model_workspace **out, const struct model *model,
                                struct model_shape most, bool train, bool checkpoint,
                                struct error *err);
void model_workspace_free(struct model_workspace *ws);
/* Adds to a workspace for training what model_distill needs beyond it; with `match`, what a share
 * of matched states needs: as much as the residual stream behind every block. The teacher is the
 * workspace's model without the tap, until model_workspace_teacher names another: one in the same
 * backend's memory that must outlive the workspace. STATUS_REFUSED unless its activations have the
 * shapes, and its tokens the positions, of the workspace's model. */
enum status model_workspace_distill(struct model_workspace *ws, bool match, struct error *err);
enum status model_workspace_teacher(struct model_workspace *ws, const struct model *teacher,
                                    struct error *err);
size_t model_workspace_distill_bytes(const struct model *model, struct model_shape most,
                                     bool match);
/* Products of passes that use this workspace, forward and backward; PRECISION_FP32 until set.
 * The products inside attention follow it, but for the few rows of a decoded token. */
void model_workspace_set_precision(struct model_workspace *ws, enum precision precision);
/* Bytes that model_workspace_new would take. */
size_t model_workspace_bytes(const struct model *model, struct model_shape most, bool train,
                             bool checkpoint);

/* --- forward, piece by piece --- */
/* hidden (tokens, hidden_size) from ids; STATUS_REFUSED when an id is outside the vocabulary. */
enum status model_embed(const struct model *model, const int32_t *ids, int64_t tokens,
                        float *hidden, struct error *err);
/* One block, in place. */
void model_block(const struct model *model, int layer, struct model_shape shape, float *hidden,
                 const struct tap *tap, struct model_workspace *ws);
/* Final norm: out may be hidden. */
void model_final_norm(const struct model *model, const float *hidden, int64_t tokens, float *out);
/* logits (tokens, vocab_size) from normed hidden states. */
void model_logits(const struct model *model, const float *normed, int64_t tokens,
                  enum precision precision, float *logits);
/* All of it up to the final norm: normed (tokens, hidden_size). */
enum status model_forward(const struct model *model, const int32_t *ids, struct model_shape shape,
                          const struct tap *tap, struct model_workspace *ws, float *normed,
                          struct error *err);

/* --- training --- */
/* Next-token cross-entropy, forward and backward. Predicts ids[i + 1] from ids[..i] within each
 * sequence (length - 1 predictions each). *nll_sum gets the sum over predictions, in nats; the
 * gradients handed to the tap are those of scale * that sum. Logits are made in chunks. */
enum status model_train(const struct model *model, const int32_t *ids, struct model_shape shape,
                        double scale, const struct tap *tap, struct model_workspace *ws,
                        double *nll_sum, struct error *err);
/* The same with a teacher: the gradients are those of
 *   scale * ((1 - match) * ((1 - weight) * nll + weight * kl) + match * distance)
 * summed over the predictions; weight and the kind of divergence kl are the rule's
 * (kernel/distill.h). distance is the mean over blocks of |h - d|^2 / |d|^2, with h and d the
 * residual stream behind the block in this model with the tap, and in the teacher. Its forward pass
 * is made first, for its final hidden states; its logits exist beside the others for one chunk at a
 * time. `ws` needs model_workspace_distill where one of the shares is above 0, with `match` where
 * that is. */
struct model_objective {
  struct distill_rule distill;
  double match; /* 0 to 1 */
};
static inline bool model_has_teacher(const struct model_objective *o) {
  return o->distill.weight > 0 || o->match > 0;
}
struct model_losses {
  double nll, kl,
      distance; /* sums over predictions, the first two in nats; 0 where not asked for */
};
enum status model_distill(const struct model *model, const int32_t *ids, struct model_shape shape,
                          double scale, const struct model_objective *objective,
                          const struct tap *tap, struct model_workspace *ws,
                          struct model_losses *sums, struct error *err);
/* Forward only: nll (sequences * (length - 1)) per prediction. STATUS_REFUSED when one of them is
 * not a number, with the tensor that is to blame (model_train leaves that to its caller). */
enum status model_nll(const struct model *model, const int32_t *ids, struct model_shape shape,
                      const struct tap *tap, struct model_workspace *ws, float *nll,
                      struct error *err);

/* --- several texts in one pass, common beginnings computed once --- */
/* Rows [first, first + count) hold tokens that follow, in their text, those of the rows [stem, stem
 * + stem_count); stem_count = 0: they begin a text. A stem begins a text itself. The branches of a
 * pass lie one after the other; a row's result does not depend on what else is in the pass but by
 * rounding. */
struct model_branch {
  int64_t stem, stem_count, first, count;
};
/* Scratch for passes of at most `rows` rows, whose texts have at most `longest` tokens;
 * `precision` is that of the products. */
struct model_branches;
enum status model_branches_new(struct model_branches **out, const struct model *model, int64_t rows,
                               int64_t longest, enum precision precision, struct error *err);
void model_branches_free(struct model_branches *pass);
/* ids (rows) -> normed (rows, hidden_size). STATUS_REFUSED when an id is outside the vocabulary. */
enum status model_branches_forward(struct model_branches *pass, const int32_t *ids,
                                   const struct model_branch *items, int64_t count, float *normed,
                                   struct error *err);

/* --- decoding with a KV cache --- */
struct model_session;
/* A session of one text of up to `capacity` tokens. */
enum status model_session_new(struct model_session **out, const struct model *model,
                              int64_t capacity, struct error *err);
/* Products of prompts; PRECISION_FP32 until set. */
void model_session_set_precision(struct model_session *session, enum precision precision);
void model_session_free(struct model_session *session);
int64_t model_session_length(const struct model_session *session);
/* Bytes of keys and values, kept as `kv`, that a session has and attention reads for each position
 * of a text. */
int64_t model_kv_bytes_per_position(const struct model *model, enum dtype kv);
/* Appends `count` tokens and gives the logits after the last: logits (vocab_size). STATUS_REFUSED
 * when they do not fit or the logits are not numbers. */
enum status model_session_append(struct model_session *session, const int32_t *ids, int64_t count,
                                 float *logits, struct error *err);
/* Forgets all tokens from position `length` on. */
void model_session_truncate(struct model_session *session, int64_t length);

/* --- decoding several texts at once ---
 * A session may have up to SESSION_SLOTS_MAX slots, each with a text of its own that comes, grows
 * and goes while the others stay: the functions above are those of slot 0. A step reads the weights
 * once for all the slots it is given. The logits of a text do not depend on what the other slots
 * hold, nor on which of them step along, but for rounding: the products of up to
 * SKINNY_TOKENS_MAX rows (kernel/select.h) and of more sum in different orders. Within either, and
 * at any thread count, the bits are the same. */
enum { SESSION_SLOTS_MAX = 256 };
enum status model_session_new_slots(struct model_session **out, const struct model *model,
                                    int64_t slots, int64_t capacity, struct error *err);
/* The same with keys and values kept as `kv`: f32 (what the two above keep), f16, bf16, or i8 with
 * a scale for each position and head. */
struct session_settings {
  int64_t slots, capacity;
  enum dtype kv; /* on a card f16 or bf16 */
  /* On a card keys and values take pages of 16 positions when texts grow: how many there are for
   * all slots; 0: as many as all can fill. */
  int64_t pages;
};
enum status model_session_new_with(struct model_session **out, const struct model *model,
                                   const struct session_settings *settings, struct error *err);
int64_t model_slot_length(const struct model_session *session, int64_t slot);
/* As model_session_append; logits may be NULL, for a prompt that is read in pieces. */
enum status model_slot_append(struct model_session *session, int64_t slot, const int32_t *ids,
                              int64_t count, float *logits, struct error *err);
/* As model_session_truncate; 0 makes the slot free for another text. */
void model_slot_truncate(struct model_session *session, int64_t slot, int64_t length);
/* Makes the first `length` tokens of slot `from` those of slot `to`, in place of what it held.
 * STATUS_REFUSED when there are no pages for them. */
enum status model_slot_copy(struct model_session *session, int64_t to, int64_t from, int64_t length,
                            struct error *err);
/* Appends ids[i] to slots[i] for each i < count and gives the logits after each: logits (count,
 * vocab_size). Slots are named at most once. STATUS_REFUSED, with no slot changed, when one is full
 * or an id is outside the vocabulary; when logits are not numbers, after the step. */
enum status model_session_step(struct model_session *session, const int64_t *slots,
                               const int32_t *ids, int64_t count, float *logits, struct error *err);

/* Reads a prompt of `length` tokens into each of `count` slots, in place of what they held: ids
 * (count, length); logits (count, vocab_size) or NULL. On a card in as few passes as memory allows.
 */
enum status model_session_prompts(struct model_session *session, const int64_t *slots,
                                  const int32_t *ids, int64_t count, int64_t length, float *logits,
                                  struct error *err);

/* --- drawing where the logits are ---
 * A session of a model that was placed to run (model_place_to_run) keeps the logits of its last
 * step or append, whose `logits` may then be NULL, and draws tokens from them. */
struct model_draw {
  int64_t slot; /* whose tokens were seen */
  double temperature;
  int64_t top_k;
  double top_p, min_p, repetition_penalty; /* as in generate/sampler.h */
  double uniform;                          /* in [0, 1), not used where temperature is 0 */
};
bool model_session_draws(const struct model_session *session);
/* Draws for row i of the last step (row 0 of an append) by draws[i]: ids (count). The tokens of
 * generate/sampler.c for the same uniform, but where the draw lies within 2^-26 of the border of
 * two candidates, or a filter's border does, and candidates of less than 2^-45 of the likeliest are
 * never drawn. */
enum status model_session_draw(struct model_session *session, const struct model_draw *draws,
                               int64_t count, int32_t *ids, struct error *err);
/* Makes `seen` (vocab_size, 1 = seen) the tokens that a slot's draws penalise; draws add to them.
 */
enum status model_slot_see(struct model_session *session, int64_t slot, const uint8_t *seen,
                           struct error *err);
/* Whether steps are recorded, each number of texts once, and then run as one piece (a CUDA graph):
 * the same results, fewer launches. Off until set; without effect on the CPU. */
void model_session_record(struct model_session *session, bool on);

#endif
