/* What the files of this room share: the opened model, and one run of a block. */
#ifndef TSR_MODEL_INTERNAL_H
#define TSR_MODEL_INTERNAL_H

#include "kernel/backend.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/store.h"

/* Norm weights of one block, fp32; NULL where the family has none. */
struct block_norms {
  const float *before_attention; /* (hidden_size) */
  const float *after_attention;  /* (hidden_size), sandwich_norms */
  const float *before_mlp;       /* (hidden_size) */
  const float *after_mlp;        /* (hidden_size), sandwich_norms */
  const float *q, *k;            /* (head_dim), qk_norm */
};

/* Where a tensor's bytes are in the file, for those who pass over them row by row. */
struct tensor_origin {
  const struct stored_tensor *stored; /* NULL for a packed matrix */
  const struct quant_matrix *quant;   /* one that is quantized, or NULL */
  int64_t interleaved;                /* head_dim when rows of heads are in GGUF's order, else 0 */
  float shift;                        /* what is added to make it Hugging Face's form */
};

struct model {
  const struct backend *backend; /* in whose memory the weights below lie */
  struct tensor_store store;
  struct model_config config;
  bool headers_only;
  bool keep_blocks;              /* block types stay as they are stored */
  struct linear_weight embed;    /* (vocab_size, hidden_size) */
  struct linear_weight lm_head;  /* (vocab_size, hidden_size); the same when tied */
  const float *final_norm;       /* (hidden_size) */
  struct block_norms *blocks;    /* (layers) */
  struct linear_site *sites;     /* (layers * SITE_ROLES) */
  struct hybrid_matrix *hybrids; /* (sites), rows 0 for one that is not packed */
  struct quant_matrix *quants; /* (sites + 2), then the embeddings' and the head's; rows 0: none */
  struct strip_matrix *strips; /* (sites + 1), the last the head's, or NULL; rows 0: not made */
  struct quant_strips *quant_strips; /* likewise, of integers */
  void **site_memory;                /* (sites), what a site's dense weight owns, or NULL */
  int64_t *kept;                     /* (sites) positions that masks or the packed form keep */
  struct model_tensor *tensors;      /* every tensor, in Hugging Face's order */
  struct tensor_origin *origins;     /* (tensors) */
  size_t tensor_count, tensor_capacity, origin_capacity;
  void **owned; /* memory of all else */
  size_t owned_count, owned_capacity;
  struct card *card;        /* of a model placed to run: its weights, packed (card.h) */
  const struct model *host; /* of a placed model (place.c): what it shares all else with */
};

/* place.c: model_close of a placed model. */
void model_give_back(struct model *placed);

/* load.c */
enum status model_load(struct model *model, struct error *err);
/* The per-layer and per-site tables of a model whose configuration is known, zeroed. */
enum status model_make_tables(struct model *model, struct error *err);
/* Rows and columns of a site's weight, and "model.layers.0.mlp.up_proj." with `what` behind it. */
enum { SITE_NAME_BYTES = 256 };
void site_shape(const struct model_config *c, enum site_role role, int64_t *rows, int64_t *cols);
void site_tensor_name(char out[SITE_NAME_BYTES], int layer, enum site_role role, const char *what);
/* Positions that a packed matrix keeps. */
int64_t hybrid_kept(const struct hybrid_matrix *h);
/* A site's weight of integers or of a block type becomes dense fp32 in memory of its own. */
enum status site_expand(struct model *model, int site, struct error *err);
/* Row `row` in Hugging Face's order as it is stored; and rows [first, first + rows) as fp32: out
 * (rows, cols). */
const void *origin_stored_row(const struct tensor_origin *origin, int64_t cols, int64_t row);
void origin_rows(const struct tensor_origin *origin, int64_t cols, int64_t first, int64_t rows,
                 float *out);

/* What the backward pass of one block needs, and where the forward pass puts it. T = tokens. */
struct block_memory {
  float *input;       /* (T, hidden_size): the residual stream before the block */
  float *inverse_1;   /* (T): of the norm before attention */
  float *q_raw;       /* (T, heads * head_dim): as projected, before norm and rotation */
  float *k_raw, *v;   /* (T, kv_heads * head_dim) */
  float *q_inverse;   /* (T, heads), qk_norm */
  float *k_inverse;   /* (T, kv_heads), qk_norm */
  float *attended;    /* (T, heads * head_dim): what attention gave */
  float *lse;         /* (sequences, heads, length) */
  float *projected;   /* (T, hidden_size), sandwich_norms: the output of o */
  float *inverse_o;   /* (T), sandwich_norms */
  float *middle;      /* (T, hidden_size): the residual stream between the halves */
  float *inverse_2;   /* (T): of the norm before the MLP */
  float *gate, *up;   /* (T, intermediate_size) */
  float *mlp;         /* (T, hidden_size), sandwich_norms: the output of down */
  float *inverse_mlp; /* (T), sandwich_norms */
};

/* One arena in the memory of the model's backend, cut once: see workspace.c. T = tokens of the
 * largest shape. */
struct model_workspace {
  const struct model *model;
  const struct backend *ops; /* the model's */
  struct model_shape most;
  int64_t positions; /* rows of the rotary tables */
  bool train, checkpoint;
  enum precision precision; /* of the products */
  float *arena;
  struct block_memory *blocks; /* (layers) when training without checkpoints, else (1) */
  int block_count;
  float **inputs; /* (layers) pointers to (T, hidden_size): what each block was given; training */
  float *hidden;  /* (T, hidden_size): the residual stream */
  float *normed;  /* (T, hidden_size) */
  float *q, *k;   /* (T, heads * head_dim), (T, kv_heads * head_dim): normed and rotated */
  float *act;     /* (T, intermediate_size) */
  /* the head */
  int64_t chunk_rows;
  float *logits;    /* (chunk_rows, vocab_size) */
  float *nll;       /* (T) */
  int32_t *targets; /* (T), the host's */
  float *losses;    /* (T), the host's: nll or kl, brought there */
  /* of the backward pass */
  float *capped;         /* (chunk_rows, vocab_size), final_softcap: the logits' gradient */
  float *inverse_final;  /* (T) */
  float *dhidden;        /* (T, hidden_size): gradient of the residual stream */
  float *dbranch;        /* (T, hidden_size): of a half's output before its norm */
  float *dnormed;        /* (T, hidden_size) */
  float *dact;           /* (T, intermediate_size) */
  float *dq, *dattended; /* (T, heads * head_dim) */
  float *dk, *dv;        /* (T, kv_heads * head_dim) */
  /* of distillation, an allocation of its own; NULL without */
  const struct model *taught_by; /* the model itself, or another (not owned) */
  float *teacher;        /* (T, hidden_size): the dense model's normed final hidden states */
  float *teacher_logits; /* (chunk_rows, vocab_size) */
  float *kl;             /* (T) */
  float *distance;       /* (T), of matched states; NULL without */
  /* (layers, T, hidden_size), of matched states: the teacher's behind each block, and when this
   * model has passed it, the gradient there */
  float *states;
  struct rope_table rope, rope_sliding;
};
/* `positions` >= most.length: how far a session may go. */
enum status workspace_make(struct model_workspace **out, const struct model *model,
                           struct model_shape most, int64_t positions, bool train, bool checkpoint,
                           struct error *err);

/* The branches of a pass over several texts, and memory for joining a stem's keys to a branch's. */
struct branch_run {
  const struct model_branch *items;
  int64_t count;
  float *joined; /* (threads, 2, longest, kv_heads * head_dim) */
  int64_t longest;
};

/* One run of a block: which rows it sees, and where keys and values are. */
struct block_run {
  const struct model *model;
  int layer;
  struct model_shape shape;
  const struct tap *tap; /* or NULL */
  bool repeated;         /* the second forward of a checkpointed block: inputs are not shown */
  struct model_workspace *ws;
  struct block_memory *memory;
  /* Of a session, or NULL: the cache of each sequence at this layer, which the rows of this run
   * join, the position of each sequence's first row, and attention's scratch. */
  const struct kv_cache *kv; /* (sequences) */
  const int64_t *starts;     /* (sequences) */
  float *partials;
  /* Rows belong to several texts: sequences of one row, `starts` their positions; or NULL. */
  const struct branch_run *branches;
};

/* forward.c, backward.c.
 * hidden (T, hidden_size) in place; leaves in run->memory what the backward pass needs. */
void block_forward(const struct block_run *run, float *hidden);
/* q and k as attention wants them: dest (T, heads, head_dim) from what was projected. */
void block_rotate(const struct block_run *run, bool is_k, const float *raw, float *inverse,
                  float *dest);
struct attention_shape block_attention_shape(const struct block_run *run);
/* What to multiply with: the tap's weight or the site's own. */
const struct linear_weight *block_weight(const struct block_run *run,
                                         const struct linear_site *site, enum tap_pass pass);
const struct rope_table *block_rope(const struct block_run *run);
/* dhidden: from the gradient of the block's output to that of its input, in place. */
void block_backward(const struct block_run *run, float *dhidden);

/* branches.c: attention where rows belong to several texts. q, out (T, heads * head_dim), rotated;
 * k, v (T, kv_heads * head_dim). */
void branches_attend(const struct block_run *run, const float *q, const float *k, const float *v,
                     float *out);

/* model.c: STATUS_REFUSED with the reason unless all of values (n) are finite. */
enum status model_check_finite(const struct model *model, const float *values, int64_t n,
                               const char *what, struct error *err);

static inline int64_t shape_tokens(struct model_shape shape) {
  return shape.sequences * shape.length;
}
static inline int64_t config_q_width(const struct model_config *c) {
  return c->heads * c->head_dim;
}
static inline int64_t config_kv_width(const struct model_config *c) {
  return c->kv_heads * c->head_dim;
}

#endif
