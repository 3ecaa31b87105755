/* What the files of a session on a card share: card_session.c opens and closes it, card_pass.c
 * queues the launches of a pass, card_slots.c is what a caller asks of its texts, card_draw.c draws
 * their next tokens. */
#ifndef TSR_MODEL_CARD_SESSION_H
#define TSR_MODEL_CARD_SESSION_H

#include "model/card.h"
#include "model/card_pages.h"

enum {
  CARD_RECORDS_MAX = 16,
  CARD_ROW_ARRAYS = 3 /* ids, positions, slots */
};

struct step_record {
  int64_t rows, longest;
  uint64_t epoch;
  struct serve_record *record;
};

struct card_session {
  const struct model *model;
  const struct backend *ops;
  const struct serve_ops *serve;
  struct card_pages pages;
  int64_t slots, capacity, rows_most;
  int64_t *lengths; /* (slots) */
  bool *named;      /* (slots), of a step's arguments */
  int32_t *staged;  /* (CARD_ROW_ARRAYS, rows_most): what is uploaded before a pass */
  /* on the card */
  int32_t *rows;      /* (CARD_ROW_ARRAYS, rows_most) */
  float *hidden;      /* (rows_most, hidden_size) */
  uint16_t *normed;   /* (rows_most, normed_stride) */
  uint16_t *qkv;      /* (rows_most, qkv width) */
  float *q;           /* (rows_most, heads, head_dim) */
  uint16_t *attended; /* (rows_most, attended_stride) */
  uint16_t *branch;   /* (rows_most, normed_stride) */
  uint16_t *gates;    /* (rows_most, gate_up width) */
  uint16_t *act;      /* (rows_most, act_stride) */
  float *logits;      /* (slots, vocab_size): of the last pass */
  float *partials;
  uint32_t *counters;
  struct rope_table rope, rope_sliding; /* sliding: NULL where it is the same */
  int64_t normed_stride, attended_stride, act_stride, qkv_width, gates_width;
  int64_t logit_rows; /* that `logits` holds */
  /* sampling */
  struct serve_draw *draws; /* (slots) */
  uint8_t *seen;            /* (slots, vocab_size) */
  unsigned long long *mass; /* (slots, vocab_size), made when first needed */
  int32_t *drawn;           /* (slots) */
  bool recording;
  struct step_record records[CARD_RECORDS_MAX];
  int record_count;
};

struct pass {
  int64_t rows, longest;
  int64_t run;                              /* rows of a text that follow each other */
  int64_t head_first, head_step, head_rows; /* rows that get logits */
};

/* The arguments of a layer's attention for a pass of so many rows; of its first layer, what scratch
 * is measured by. */
struct serve_attend_args card_attend_args(const struct card_session *s, int layer, int64_t rows);
/* Queues the pass of the rows that were staged; a step from its record, where steps are recorded.
 */
enum status card_run_pass(struct card_session *s, const struct pass *p, struct error *err);
void card_forget_records(struct card_session *s);

static inline bool card_is_slot(const struct card_session *s, int64_t slot) {
  return slot >= 0 && slot < s->slots;
}

#endif
