/* Masks: which weights of each prunable matrix are kept.
 *
 * Hybrid masks cut a matrix into tiles (ragged at the edges), each dense or 2:4; a 2:4 mask is a
 * hybrid mask without dense tiles. Groups of four run along the columns (the input features). A
 * group's code is a nibble i0 | i1 << 2, i0 < i1: the two kept positions. Where the last group of
 * a row has fewer than four columns, positions past the edge do not exist; such a group keeps
 * min(2, width) of them, and its code points at them first.
 * Tiled masks are hybrids of another n:m: tiles are dense or keep n of every m columns, and bits
 * stand in place of codes; a last group of fewer than m columns keeps min(n, width) of them.
 * Unstructured masks are plain bit masks. */
#ifndef TSR_SPARSE_MASK_H
#define TSR_SPARSE_MASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum mask_kind { MASK_HYBRID, MASK_BITS, MASK_TILED };

/* The six 2:4 candidates in the method's order: 1100, 1010, 1001, 0110, 0101, 0011. */
enum { SPARSE_CANDIDATES = 6 };
extern const uint8_t sparse_candidate_code[SPARSE_CANDIDATES]; /* nibbles 4 8 C 9 D E */
extern const float sparse_candidate_table[SPARSE_CANDIDATES][4];
/* Candidate index of a nibble, or -1 for the ten nibbles that are no code. */
int sparse_code_candidate(uint8_t nibble);
/* True when `nibble` is a code that a group of `width` (1 to 4) existing columns may have: its kept
 * positions exist; a group of one column has code 1100. */
bool sparse_code_fits(uint8_t nibble, int64_t width);

/* What a matrix in a mask or a packed directory may be: files that say more are refused. */
enum {
  SPARSE_DIMENSION_MAX = 1 << 24,
  SPARSE_TILE_MAX = 1 << 20,
  SPARSE_GROUP_MAX = 64, /* the largest m of n:m */
  MASK_MATRICES_MAX = 1 << 16,
  MASK_META_MAX = 256,
  MASK_NAME_MAX = 512 /* bytes of a tensor's name */
};
/* STATUS_REFUSED, naming the matrix, when a shape or tile breaks these limits. */
enum status sparse_check_shape(const char *name, int64_t rows, int64_t cols, int64_t tile_rows,
                               int64_t tile_cols, struct error *err);
/* STATUS_REFUSED where keep:of is no pattern of a tiled mask with tiles of that width: 2:4 is not,
 * for its masks are hybrid. */
enum status sparse_check_pattern(const char *name, int64_t keep, int64_t of, int64_t tile_cols,
                                 struct error *err);

struct mask_matrix {
  char *name; /* Hugging Face tensor name, "model.layers.0.self_attn.q_proj.weight" */
  enum mask_kind kind;
  int64_t rows, cols;
  /* MASK_HYBRID and MASK_TILED */
  int64_t tile_rows, tile_cols; /* tile_cols a multiple of 4, and of `of` */
  int keep, of;                 /* the pattern of the tiles that are not dense: 2:4 in a hybrid */
  uint8_t *tiles;               /* (tile rows count, tile cols count), 1 = dense, 0 = n:m */
  /* MASK_HYBRID */
  uint8_t *codes; /* (rows, code_stride): two groups a byte, the even group in the low nibble.
                     Codes are kept for dense tiles too: they say what the tile would become. */
  /* MASK_BITS and MASK_TILED */
  uint8_t *bits; /* (rows, bit_stride): column c is bit c % 8 of byte c / 8, 1 = kept. In a tiled
                    mask the n:m mask, under dense tiles too */
  /* optional, NULL when unknown */
  float *tile_scores; /* like tiles: how much is lost per weight when the tile becomes 2:4; larger
                         means keep dense */
};

static inline bool mask_has_tiles(const struct mask_matrix *m) { return m->kind != MASK_BITS; }
static inline int64_t mask_tile_row_count(const struct mask_matrix *m) {
  return (m->rows + m->tile_rows - 1) / m->tile_rows;
}
static inline int64_t mask_tile_col_count(const struct mask_matrix *m) {
  return (m->cols + m->tile_cols - 1) / m->tile_cols;
}
static inline int64_t mask_tile_count(const struct mask_matrix *m) {
  return mask_tile_row_count(m) * mask_tile_col_count(m);
}
static inline int64_t mask_group_count(const struct mask_matrix *m) { return (m->cols + 3) / 4; }
static inline int64_t mask_code_stride(const struct mask_matrix *m) { return (m->cols + 7) / 8; }
static inline int64_t mask_bit_stride(const struct mask_matrix *m) { return (m->cols + 7) / 8; }
/* Columns that exist in group `group`: 4, or fewer in the last one. */
static inline int64_t mask_group_width(const struct mask_matrix *m, int64_t group) {
  const int64_t left = m->cols - 4 * group;
  return left < 4 ? left : 4;
}
static inline bool mask_tile_dense(const struct mask_matrix *m, int64_t row, int64_t col) {
  return m->tiles[row / m->tile_rows * mask_tile_col_count(m) + col / m->tile_cols];
}
static inline bool mask_bit(const struct mask_matrix *m, int64_t row, int64_t col) {
  return m->bits[row * mask_bit_stride(m) + col / 8] >> (col % 8) & 1;
}
static inline void mask_set_bit(struct mask_matrix *m, int64_t row, int64_t col, bool kept) {
  uint8_t *byte = &m->bits[row * mask_bit_stride(m) + col / 8];
  const uint8_t bit = (uint8_t)(1u << (col % 8));
  *byte = kept ? *byte | bit : *byte & (uint8_t)~bit;
}

static inline uint8_t mask_code(const struct mask_matrix *m, int64_t row, int64_t group) {
  uint8_t pair = m->codes[row * mask_code_stride(m) + group / 2];
  return group % 2 ? pair >> 4 : pair & 15;
}
static inline void mask_set_code(struct mask_matrix *m, int64_t row, int64_t group, uint8_t code) {
  uint8_t *pair = &m->codes[row * mask_code_stride(m) + group / 2];
  *pair = group % 2 ? (uint8_t)((*pair & 0x0f) | code << 4) : (uint8_t)((*pair & 0xf0) | code);
}

/* Allocates the arrays (hybrid: all tiles 2:4 and all codes 1100; tiled: all tiles keep:of, the
 * first of each group kept; bits: none kept). */
enum status mask_matrix_init_hybrid(struct mask_matrix *m, const char *name, int64_t rows,
                                    int64_t cols, int64_t tile_rows, int64_t tile_cols,
                                    struct error *err);
enum status mask_matrix_init_tiled(struct mask_matrix *m, const char *name, int64_t rows,
                                   int64_t cols, int64_t tile_rows, int64_t tile_cols, int keep,
                                   int of, struct error *err);
enum status mask_matrix_init_bits(struct mask_matrix *m, const char *name, int64_t rows,
                                  int64_t cols, struct error *err);
enum status mask_matrix_copy(struct mask_matrix *to, const struct mask_matrix *from,
                             struct error *err);
void mask_matrix_free(struct mask_matrix *m);
/* What the groups of a mask keep, apart from its tiles: codes, or bits. */
static inline uint8_t *mask_groups(const struct mask_matrix *m) {
  return m->kind == MASK_HYBRID ? m->codes : m->bits;
}
static inline size_t mask_groups_bytes(const struct mask_matrix *m) {
  return (size_t)m->rows * (size_t)((m->cols + 7) / 8);
}
/* The same between masks of one kind, shape and pattern. */
void mask_copy_groups(struct mask_matrix *to, const struct mask_matrix *from);

/* Row `row` as floats, 1 = kept: out (cols). */
void mask_row(const struct mask_matrix *m, int64_t row, float *out);
/* out[i] = kept ? w[i] : 0 over a (rows, cols) matrix (+0, also for -0 and NaN). May be in place.
 */
void mask_apply(const struct mask_matrix *m, const float *w, float *out);
/* STATUS_REFUSED, naming the first that does not, unless every group of `of` columns of a mask with
 * bits keeps `keep` of them, or all where it has fewer. */
enum status mask_check_groups(const struct mask_matrix *m, int keep, int of, struct error *err);
/* Adds room for tile scores (zero) to a mask with tiles. */
enum status mask_matrix_add_scores(struct mask_matrix *m, struct error *err);
/* Kept positions in the whole matrix, and in one tile if it were n:m / dense. */
int64_t mask_kept(const struct mask_matrix *m);
int64_t mask_tile_area(const struct mask_matrix *m, int64_t tile);
int64_t mask_tile_kept_sparse(const struct mask_matrix *m, int64_t tile);

/* A whole mask file: one entry per prunable linear that is not left dense. A linear of the model
 * that has no entry is dense. */
struct mask_set {
  struct mask_matrix *items;
  size_t count, capacity;
  struct mask_meta *meta; /* string pairs in order: how the mask was made */
  size_t meta_count, meta_capacity;
};
struct mask_meta {
  char *key, *value;
};

void mask_set_free(struct mask_set *set);
struct mask_matrix *mask_set_find(const struct mask_set *set, const char *name);
/* Takes ownership of *m's arrays. */
enum status mask_set_add(struct mask_set *set, struct mask_matrix *m, struct error *err);
enum status mask_set_meta(struct mask_set *set, const char *key, const char *value,
                          struct error *err);
/* True for the keys of the file format itself, which mask_set_meta refuses. */
bool mask_key_reserved(const char *key);
const char *mask_set_meta_get(const struct mask_set *set, const char *key); /* or NULL */

/* Kept positions over all positions of the matrices named in the set; 0 and 0 for an empty one. */
void mask_set_count(const struct mask_set *set, int64_t *kept, int64_t *total);
/* Share of `total` positions that are kept, those of matrices not named in the set among them. */
double mask_set_density(const struct mask_set *set, int64_t total);

/* Mask files are safetensors; docs/FORMAT.md says which tensors. mask_load also reads the
 * reference's mask.npz. Equal sets give equal bytes. */
enum status mask_load(struct mask_set *set, const char *path, struct error *err);
enum status mask_save(const struct mask_set *set, const char *path, struct error *err);

#endif
