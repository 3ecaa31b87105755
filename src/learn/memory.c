/* See memory.h. The sizes are those that learner_init, model_place and the CUDA column ask for. */
#include "learn/memory.h"

#include "kernel/cuda/column.h"

const char *const memory_place_name[MEMORY_PLACES] = {"cpu", "cuda", "pinned"};
const char *const memory_part_name[MEMORY_PARTS] = {
    "weights",       "logits",      "moments", "gradients", "masks",
    "masked linear", "activations", "head",    "operands",  "checkpoint"};

double learn_memory_total(const struct learn_memory *m, enum memory_place place) {
  double sum = 0;
  for (int i = 0; i < MEMORY_PARTS; i++) sum += m->bytes[place][i];
  return sum;
}

static double weight_bytes(const struct linear_weight *w) {
  return (double)linear_rows(w) * (double)linear_cols(w) * (linear_dtype(w) == DTYPE_F32 ? 4 : 2);
}

static double model_bytes(const struct model *model) {
  const struct model_config *c = model_config(model);
  const struct linear_weight *head = model_head(model);
  double sum = weight_bytes(head) * (c->tied_embeddings ? 1 : 2);
  for (int i = 0; i < model_site_count(model); i++)
    sum += weight_bytes(&model_site(model, i)->weight);
  return sum;
}

static double most(double a, double b) { return a > b ? a : b; }

/* What grows with the learned linears; returns the largest, in weights. */
static double add_sites(struct learn_memory *m, const struct model *model,
                        const struct learn_settings *s, const bool *skip) {
  double largest = 0;
  for (int i = 0; i < model_site_count(model); i++) {
    const struct linear_weight *w = &model_site(model, i)->weight;
    const int64_t rows = linear_rows(w), cols = linear_cols(w);
    const struct groups_bytes groups = groups_bytes(rows, cols, s->compact);
    const int64_t tiles_down = (rows + s->tile_rows - 1) / s->tile_rows;
    const int64_t tiles_across = (cols + s->tile_cols - 1) / s->tile_cols;
    const int64_t code_stride = (cols + 7) / 8;
    const double tiles = (double)tiles_down * (double)tiles_across;
    if (skip[i]) continue;
    /* as learn/checkpoint.c lists it: the best mask, tile logits; groups are added below */
    double *copy = &m->bytes[MEMORY_PINNED][MEMORY_CHECKPOINT];
    *copy += (double)rows * (double)code_stride + (learn_uses_tiles(s) ? 13 * tiles : 0);
    if (learn_uses_groups(s))
      *copy += learn_is_24(s) ? (double)groups.logits + (double)groups.moments
                              : 12 * (double)pattern_logits_count(s, rows, cols);
    if ((double)rows * (double)cols > largest) largest = (double)rows * (double)cols;
    for (int p = 0; p < MEMORY_PINNED; p++) {
      double *bytes = m->bytes[p];
      bytes[MEMORY_CODES] += (double)rows * (double)code_stride + tiles;
      if (learn_uses_tiles(s)) bytes[MEMORY_CODES] += tiles * (p == MEMORY_CPU ? 44 : 12);
      if (!learn_uses_groups(s)) continue;
      if (!learn_is_24(s)) {
        const double each = 4 * (double)pattern_logits_count(s, rows, cols);
        bytes[MEMORY_LOGITS] += each;
        bytes[MEMORY_GRADIENTS] += each;
        bytes[MEMORY_MOMENTS] += 2 * each;
        continue;
      }
      bytes[MEMORY_LOGITS] += (double)groups.logits;
      bytes[MEMORY_GRADIENTS] += (double)groups.gradients;
      if (s->offload && p == MEMORY_CUDA) {
        m->bytes[MEMORY_PINNED][MEMORY_MOMENTS] += (double)groups.moments;
        bytes[MEMORY_MOMENTS] =
            most(bytes[MEMORY_MOMENTS], BACKEND_BUFFERS * (double)groups.moments);
      } else {
        bytes[MEMORY_MOMENTS] += (double)groups.moments;
      }
    }
  }
  return largest;
}

static double least(double a, double b) { return a < b ? a : b; }

/* Logits of a chunk, once more where they are soft-capped, once more for a teacher. */
static double head_bytes(const struct model *model, const struct learn_settings *s,
                         int64_t logit_elements) {
  const struct model_config *c = model_config(model);
  const double tokens = (double)(s->micro * s->window), vocab = (double)c->vocab_size;
  int64_t rows = logit_elements / c->vocab_size;
  if (rows < 16) rows = 16;
  return 4 * least((double)rows, tokens) * vocab *
         (1 + (c->final_softcap > 0) + learn_has_teacher(s));
}

/* What the CUDA column keeps beside what it is given: both operands of a product in their element
 * type where they have another (attention's four in the room of the first), a sum for each row of
 * attention, cuBLASLt's workspace. */
static double operand_bytes(const struct model *model, const struct learn_settings *s,
                            double head) {
  const struct model_config *c = model_config(model);
  const bool bf16 = s->precision == PRECISION_BF16;
  const double tokens = (double)(s->micro * s->window),
               wide = tokens * (double)c->intermediate_size;
  const double logits = head / 4 / (1 + (c->final_softcap > 0) + learn_has_teacher(s));
  double first = 0, second = 0;
  if (bf16) {
    const double heads = tokens * 2 * (double)(c->heads + c->kv_heads);
    const double narrow = heads * attention_width((uint32_t)c->head_dim);
    first = 2 * most(most(wide, logits), narrow), second = 2 * wide;
  }
  if (linear_dtype(model_head(model)) != (bf16 ? DTYPE_BF16 : DTYPE_F32))
    second = most(second, (bf16 ? 2 : 4) * (double)c->vocab_size * (double)c->hidden_size);
  return first + second + 4 * tokens * (double)c->heads + CUDA_WORKSPACE_BYTES;
}

struct learn_memory learn_memory_plan(const struct model *model, const struct learn_settings *s,
                                      const bool *skip) {
  const struct model_shape shape = {s->micro, s->window};
  struct learn_memory m = {0};
  const double largest = add_sites(&m, model, s, skip);
  for (int p = 0; p < MEMORY_PINNED; p++) {
    m.bytes[p][MEMORY_WEIGHTS] = model_bytes(model);
    m.bytes[p][MEMORY_MASKED] = 8 * largest;
    m.bytes[p][MEMORY_HEAD] =
        head_bytes(model, s, p == MEMORY_CPU ? backend_cpu()->logit_elements : CUDA_LOGIT_ELEMENTS);
    m.bytes[p][MEMORY_ACTIVATIONS] =
        (double)model_workspace_bytes(model, shape, true, s->recompute) -
        head_bytes(model, s, backend_cpu()->logit_elements) +
        (learn_has_teacher(s) ? (double)model_workspace_distill_bytes(model, shape, s->match > 0)
                              : 0);
  }
  m.bytes[MEMORY_CUDA][MEMORY_OPERANDS] =
      operand_bytes(model, s, m.bytes[MEMORY_CUDA][MEMORY_HEAD]);
  return m;
}
