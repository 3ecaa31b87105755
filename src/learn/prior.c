/* Priors: see prior.h. No state. */
#include "learn/prior.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "sparse/project.h"

enum { K = SPARSE_CANDIDATES };
/* Streams of the run's seed, far from the numbers of the noise's draws. */
enum { STREAM_TILE_INIT = 0x494e4900, STREAM_GROUP_INIT = 0x494e4901 };

/* --- gathering --- */

static enum status load_files(struct mask_set sets[PRIOR_FILES_MAX], const char *const *files,
                              int count, const struct learner *l, struct error *err) {
  for (int f = 0; f < count; f++) {
    enum status status = mask_load(&sets[f], files[f], err);
    if (status != STATUS_OK) return status;
    for (int i = 0; i < l->site_count; i++) {
      const struct mask_matrix *want = &l->sites[i].mask;
      const struct mask_matrix *have = mask_set_find(&sets[f], want->name);
      if (!have)
        return error_set(err, STATUS_REFUSED,
                         "the prior %s has no mask for %s: it was made for another model, or with "
                         "other --skip patterns",
                         files[f], want->name);
      if (have->rows != want->rows || have->cols != want->cols)
        return error_set(err, STATUS_REFUSED,
                         "the prior %s has %lld x %lld for %s, which is %lld x %lld in this model",
                         files[f], (long long)have->rows, (long long)have->cols, want->name,
                         (long long)want->rows, (long long)want->cols);
    }
  }
  return STATUS_OK;
}

/* Whether a matrix of a prior says what every group of `want` keeps. */
static bool has_groups(const struct mask_matrix *have, const struct mask_matrix *want) {
  struct error ignored;
  if (have->kind == want->kind) return have->keep == want->keep && have->of == want->of;
  return want->kind == MASK_TILED && have->kind == MASK_BITS &&
         mask_check_groups(have, want->keep, want->of, &ignored) == STATUS_OK;
}

static bool set_has_groups(const struct mask_set *set, const struct learner *l) {
  for (int i = 0; i < l->site_count; i++) {
    const struct mask_matrix *want = &l->sites[i].mask;
    if (!has_groups(mask_set_find(set, want->name), want)) return false;
  }
  return true;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Share of the entries of each tile that an unstructured mask keeps. */
static void scores_from_bits(const struct mask_matrix *bits, struct mask_matrix *out) {
  for (int64_t tile = 0; tile < mask_tile_count(out); tile++) {
    int64_t row0 = tile / mask_tile_col_count(out) * out->tile_rows;
    int64_t col0 = tile % mask_tile_col_count(out) * out->tile_cols;
    int64_t kept = 0;
    for (int64_t r = row0; r < least(row0 + out->tile_rows, out->rows); r++)
      for (int64_t c = col0; c < least(col0 + out->tile_cols, out->cols); c++)
        kept += bits->bits[r * mask_bit_stride(bits) + c / 8] >> (c % 8) & 1;
    out->tile_scores[tile] = (float)kept / (float)mask_tile_area(out, tile);
  }
}

/* Tile scores of `from` for the matrix `out`; false when it has none of that tile size. */
static bool scores_from(const struct mask_matrix *from, struct mask_matrix *out) {
  if (from->kind == MASK_BITS) {
    scores_from_bits(from, out);
    return true;
  }
  if (from->tile_rows != out->tile_rows || from->tile_cols != out->tile_cols) return false;
  bool any = false;
  for (int64_t k = 0; k < mask_tile_count(out); k++) any |= from->tiles[k] != 0;
  if (!from->tile_scores && !any) return false;
  for (int64_t k = 0; k < mask_tile_count(out); k++)
    out->tile_scores[k] = from->tile_scores ? from->tile_scores[k] : (float)from->tiles[k];
  return true;
}

/* Whether `set` can score the tiles of every learned linear. `groups`: set_has_groups. */
static bool set_has_scores(const struct mask_set *set, const struct learner *l, bool groups) {
  bool any = false;
  for (int i = 0; i < l->site_count; i++) {
    const struct mask_matrix *from = mask_set_find(set, l->sites[i].mask.name);
    const struct mask_matrix *want = &l->sites[i].mask;
    /* bits that are a pattern's own keep the same share of every tile */
    if (groups && from->kind == MASK_BITS) return false;
    if (from->kind == MASK_BITS || from->tile_scores) {
      any = true;
      if (mask_has_tiles(from) &&
          (from->tile_rows != want->tile_rows || from->tile_cols != want->tile_cols))
        return false;
      continue;
    }
    if (from->tile_rows != want->tile_rows || from->tile_cols != want->tile_cols) return false;
    for (int64_t k = 0; k < mask_tile_count(from); k++) any |= from->tiles[k] != 0;
  }
  return any;
}

/* One canonical matrix: codes of `codes`, tile scores of `scores` (NULL: none needed). */
static enum status add_matrix(struct mask_set *prior, const struct learn_site *s,
                              const struct mask_set *codes, const struct mask_set *scores,
                              struct error *err) {
  const struct mask_matrix *from = mask_set_find(codes, s->mask.name);
  struct mask_matrix m;
  enum status status = mask_matrix_copy(&m, &s->mask, err);
  if (status != STATUS_OK) return status;
  memcpy(mask_groups(&m), mask_groups(from), mask_groups_bytes(&m));
  if (scores) {
    m.tile_scores = mem_alloc((size_t)mask_tile_count(&m), sizeof(float), err);
    if (!m.tile_scores) {
      mask_matrix_free(&m);
      return err->status;
    }
    if (!scores_from(mask_set_find(scores, m.name), &m))
      memset(m.tile_scores, 0, (size_t)mask_tile_count(&m) * sizeof(float));
  }
  status = mask_set_add(prior, &m, err);
  if (status != STATUS_OK) mask_matrix_free(&m);
  return status;
}

/* A hybrid by a one-shot pruner: its codes and tile scores are what a prior needs. */
static enum status one_shot(struct mask_set *out, const struct learner *l, struct model *model,
                            struct prune_settings prune, enum prune_method method,
                            const struct prior_calibration *calibration, struct error *err) {
  const struct calibration *tokens;
  struct prune_report report;
  enum status status = calibration->get(calibration->ctx, &tokens, err);
  if (status != STATUS_OK) return status;
  prune.method = method;
  prune.pattern = learn_is_24(&l->settings) ? PRUNE_2_4 : PRUNE_N_M; /* tile scores come with it */
  prune.keep = l->settings.keep;
  prune.of = l->settings.of;
  prune.tile_rows = l->settings.tile_rows;
  prune.tile_cols = l->settings.tile_cols;
  return prune_run(model, &prune, tokens, out, NULL, &report, err);
}

enum status prior_prepare(struct mask_set *prior, struct learner *l, struct model *model,
                          const struct prune_settings *prune, const char *const *files,
                          int file_count, const struct prior_calibration *calibration,
                          struct error *err) {
  struct mask_set sets[PRIOR_FILES_MAX] = {{0}}, made = {0};
  const struct mask_set *codes = NULL, *scores = NULL;
  enum status status = load_files(sets, files, file_count, l, err);
  if (status != STATUS_OK) goto out;
  for (int f = file_count - 1; f >= 0; f--) {
    const bool groups = set_has_groups(&sets[f], l);
    if (groups) codes = &sets[f];
    if (set_has_scores(&sets[f], l, groups)) scores = &sets[f];
  }
  if (file_count > 0 && !codes) {
    status =
        error_set(err, STATUS_REFUSED,
                  "the prior %s holds no %d:%d mask; give one too: tessera prune --pattern "
                  "%d:%d",
                  files[0], l->settings.keep, l->settings.of, l->settings.keep, l->settings.of);
    goto out;
  }
  if (!codes || (!scores && learn_uses_tiles(&l->settings))) {
    log_info("making the %s prior from --data", codes ? "tiles' (Wanda)" : "(SparseGPT)");
    status =
        one_shot(&made, l, model, *prune, codes ? PRUNE_WANDA : PRUNE_SPARSEGPT, calibration, err);
    if (status != STATUS_OK) goto out;
    if (!codes) codes = &made;
    scores = &made;
  }
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++)
    status =
        add_matrix(prior, &l->sites[i], codes, learn_uses_tiles(&l->settings) ? scores : NULL, err);
out:
  for (int f = 0; f < PRIOR_FILES_MAX; f++) mask_set_free(&sets[f]);
  mask_set_free(&made);
  if (status != STATUS_OK) mask_set_free(prior);
  return status;
}

/* --- tile logits --- */

/* Tiles [first, first + count) from the worst score to the best; equal ones by index. */
struct ranked {
  float score;
  int64_t tile;
};

static int compare_ranked(const void *a, const void *b) {
  const struct ranked *x = a, *y = b;
  if (x->score != y->score) return x->score < y->score ? -1 : 1;
  return x->tile < y->tile ? 1 : -1; /* project_tiles keeps the earlier of equals */
}

static void rank_tiles(struct ranked *ranked, const float *scores, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    ranked[i] =
        (struct ranked){isnan(scores[first + i]) ? -INFINITY : scores[first + i], first + i};
  qsort(ranked, (size_t)count, sizeof *ranked, compare_ranked);
}

/* The logistic distribution's quantile in units of its standard deviation. */
static double logistic_quantile(double q) { return log(q / (1 - q)) * sqrt(3) / M_PI; }

static int64_t dense_count(double share, int64_t count) {
  double wanted = share * (double)count;
  int64_t n = llround(wanted);
  return n < 0 ? 0 : n > count ? count : n;
}

/* +-1, or quantiles, to the tiles of one linear or region; `share` of them is dense. */
static void spread_scores(struct tile_logits *t, const struct ranked *ranked, int64_t count,
                          double share, bool by_rank, double size) {
  int64_t dense = dense_count(share, count);
  double edge = ((double)(count - dense)) / (double)count;
  edge = fmin(fmax(edge, 0.5 / (double)count), 1 - 0.5 / (double)count);
  for (int64_t i = 0; i < count; i++) {
    double q = ((double)i + 0.5) / (double)count;
    double s =
        by_rank ? logistic_quantile(q) - logistic_quantile(edge) : (i >= count - dense ? 1 : -1);
    t->logit[ranked[i].tile] += (float)(size * s);
  }
}

static enum status apply_tiles(const struct mask_set *prior, struct learner *l, struct error *err) {
  struct tile_logits *t = &l->tiles;
  const struct learn_settings *set = &l->settings;
  const double size = set->init_std * set->prior_strength_tile;
  struct rng rng = rng_make(set->seed, STREAM_TILE_INIT);
  for (int64_t i = 0; i < t->count; i++) t->logit[i] = (float)(set->init_std * rng_normal(&rng));
  float *scores = mem_alloc((size_t)t->count, sizeof *scores, err);
  struct ranked *ranked = mem_alloc((size_t)t->count, sizeof *ranked, err);
  enum status status = scores && ranked ? STATUS_OK : STATUS_FAILED;
  for (int i = 0; status == STATUS_OK && i < l->site_count; i++) {
    const struct learn_site *s = &l->sites[i];
    int64_t count = mask_tile_count(&s->mask);
    memcpy(scores + s->first_tile, mask_set_find(prior, s->mask.name)->tile_scores,
           (size_t)count * sizeof *scores);
    if (set->tile_prior != TILE_PRIOR_LINEAR) continue;
    rank_tiles(ranked, scores, s->first_tile, count);
    spread_scores(t, ranked, count,
                  (learn_most_sparsity(set) - set->sparsity) / learn_most_sparsity(set), false,
                  size);
  }
  for (int r = 0; status == STATUS_OK && r < t->region_count; r++) {
    const struct tile_region *region = &t->regions[r];
    if (set->tile_prior == TILE_PRIOR_LINEAR) break;
    double gain = 0;
    for (int64_t k = 0; k < region->count; k++) gain += t->gain[region->first + k];
    rank_tiles(ranked, scores, region->first, region->count);
    spread_scores(t, ranked, region->count, (region->target - (double)region->base) / gain,
                  set->tile_prior == TILE_PRIOR_RANK, size);
  }
  mem_free(scores);
  mem_free(ranked);
  return status;
}

/* --- 2:4 logits --- */

struct group_job {
  const struct learn_site *site;
  float *logit; /* (rows, blocks, 5, 16), the host's */
  const struct mask_matrix *prior;
  const struct learn_settings *settings;
};

/* Six normals of (seed, tensor, group), by Box and Muller's method. */
static void group_normals(const struct group_job *job, uint64_t element, float out[K]) {
  const uint64_t seed = job->settings->seed;
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  uint32_t bits[8];
  for (uint32_t half = 0; half < 2; half++) {
    const uint32_t counter[4] = {(uint32_t)element, (uint32_t)(element >> 32) << 1 | half,
                                 (uint32_t)job->site->site->index, STREAM_GROUP_INIT};
    philox4x32(key, counter, bits + 4 * half);
  }
  for (int k = 0; k < K; k += 2) {
    float radius = sqrtf(-2 * logf(rng_uniform_open(bits[k])));
    float angle = 6.2831853f * rng_uniform_open(bits[k + 1]);
    out[k] = radius * cosf(angle);
    out[k + 1] = radius * sinf(angle);
  }
}

/* Kept entries that candidate `k` and the code share. */
static int overlap(int k, uint8_t code) {
  int shared = 0;
  for (int j = 0; j < 4; j++)
    if (sparse_candidate_table[k][j] > 0 && ((code & 3) == j || code >> 2 == j)) shared++;
  return shared;
}

static void apply_group_row(void *ctx, int64_t row, int worker) {
  const struct group_job *job = ctx;
  const struct learn_settings *set = job->settings;
  const int64_t groups = mask_group_count(job->prior);
  const double size = set->init_std * set->prior_strength_24;
  const bool random = set->mode == LEARN_MASKLLM || set->prior_strength_24 == 0;
  for (int64_t i = 0; i < groups; i++) {
    uint8_t code = mask_code(job->prior, row, i);
    float logits[K], normals[K] = {0};
    if (random) group_normals(job, (uint64_t)(row * groups + i), normals);
    for (int k = 0; k < K; k++)
      logits[k] = (float)(set->init_std * normals[k] + size * (double)(overlap(k, code) - 1));
    groups_set(job->logit, job->prior->cols, row, i, logits);
  }
}

/* Logits are made on the host: in place, or in `room` on their way to where they lie. */
static enum status apply_site_groups(const struct mask_set *prior, struct learner *l,
                                     struct learn_site *s, float *room, struct error *err) {
  const struct group_logits *g = &s->groups;
  struct group_job job = {s, room ? room : g->logit, mask_set_find(prior, s->mask.name),
                          &l->settings};
  if (room) memset(room, 0, (size_t)mask_logit_count(g->rows, g->cols) * sizeof *room);
  parallel_for(s->mask.rows, apply_group_row, &job);
  return room ? groups_load(g, room, err) : STATUS_OK;
}

static enum status apply_groups(const struct mask_set *prior, struct learner *l,
                                struct error *err) {
  int64_t most = 0;
  float *room = NULL;
  enum status status = STATUS_OK;
  for (int i = 0; i < l->site_count && !learn_is_24(&l->settings); i++) {
    struct learn_site *s = &l->sites[i];
    pattern_logits_start(&s->pattern, mask_set_find(prior, s->mask.name), &l->settings,
                         s->site->index);
  }
  if (!learn_is_24(&l->settings)) return STATUS_OK;
  for (int i = 0; i < l->site_count; i++) {
    const int64_t count = mask_logit_count(l->sites[i].mask.rows, l->sites[i].mask.cols);
    if (count > most) most = count;
  }
  const bool elsewhere = !l->ops->is_host || l->settings.compact;
  if (elsewhere && !(room = mem_alloc((size_t)most, sizeof *room, err))) return STATUS_FAILED;
  for (int i = 0; i < l->site_count && status == STATUS_OK; i++)
    status = apply_site_groups(prior, l, &l->sites[i], room, err);
  mem_free(room);
  return status;
}

enum status prior_apply(const struct mask_set *prior, struct learner *l, struct error *err) {
  enum status status = STATUS_OK;
  for (int i = 0; i < l->site_count; i++) {
    struct mask_matrix *m = &l->sites[i].mask;
    mask_copy_groups(m, mask_set_find(prior, m->name));
  }
  if (learn_uses_tiles(&l->settings)) status = apply_tiles(prior, l, err);
  learner_masks_changed(l);
  if (status == STATUS_OK && learn_uses_groups(&l->settings)) status = apply_groups(prior, l, err);
  return status;
}

enum status prior_harden(const struct mask_set *prior, struct learner *l, struct error *err) {
  struct tile_logits *t = &l->tiles;
  for (int i = 0; i < l->site_count; i++) {
    struct mask_matrix *m = &l->sites[i].mask;
    const struct mask_matrix *from = mask_set_find(prior, m->name);
    mask_copy_groups(m, from);
    if (learn_uses_tiles(&l->settings))
      memcpy(t->soft + l->sites[i].first_tile, from->tile_scores,
             (size_t)mask_tile_count(m) * sizeof(float));
  }
  learner_masks_changed(l);
  if (!learn_uses_tiles(&l->settings)) return STATUS_OK;
  bool *dense = mem_alloc((size_t)t->count, sizeof *dense, err);
  if (!dense) return err->status;
  enum status status = tiles_project(t, t->soft, dense, NULL, err);
  learner_place_tiles(l, dense);
  mem_free(dense);
  return status;
}
