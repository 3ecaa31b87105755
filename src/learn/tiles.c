/* Tile logits: see tiles.h.
 *
 * Sums over tiles are made in chunks of a fixed size and added in order, in fp64, so that neither
 * the number of threads nor the number of regions per chunk shows in the bits. */
#include "learn/tiles.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "sparse/project.h"

enum { TILE_STREAM = 0x54494c45 }; /* "TILE": keeps these noises apart from the groups' */
enum { CHUNK_TILES = 4096 };

static enum status allocate(struct tile_logits *t, int64_t count, int regions, struct error *err) {
  float **const arrays[] = {&t->logit, &t->moment1, &t->moment2, &t->gradient, &t->gain,
                            &t->noise, &t->soft,    &t->slope,   &t->weights};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
    if (!(*arrays[i] = mem_alloc((size_t)count, sizeof(float), err))) return err->status;
  t->soft_gradient = mem_alloc((size_t)count, sizeof *t->soft_gradient, err);
  if (!t->soft_gradient) return err->status;
  t->regions = mem_alloc((size_t)regions, sizeof *t->regions, err);
  if (!t->regions) return err->status;
  t->partial = mem_alloc((size_t)(count / CHUNK_TILES + 1), sizeof *t->partial, err);
  if (!t->partial) return err->status;
  t->count = count;
  t->region_count = regions;
  return STATUS_OK;
}

void tiles_free(struct tile_logits *t) {
  float *const arrays[] = {t->logit, t->moment1, t->moment2, t->gradient, t->gain,
                           t->noise, t->soft,    t->slope,   t->weights};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) mem_free(arrays[i]);
  mem_free(t->soft_gradient);
  mem_free(t->regions);
  mem_free(t->partial);
  *t = (struct tile_logits){0};
}

static enum status check_target(const struct tile_region *region, int index, double density,
                                struct error *err) {
  if (region->target >= (double)region->base - 0.5) return STATUS_OK;
  return error_set(
      err, STATUS_REFUSED,
      "a density of %.4f cannot be reached in region %d: %lld of its %lld weights are "
      "kept even when every tile is pruned; ask for less sparsity or skip fewer layers",
      density, index, (long long)region->base, (long long)region->total);
}

enum status tiles_init(struct tile_logits *t, const struct mask_matrix *matrices,
                       const int *region_of, int64_t matrix_count, const int64_t *region_total,
                       int region_count, double density, struct error *err) {
  *t = (struct tile_logits){0};
  int64_t count = 0;
  for (int64_t i = 0; i < matrix_count; i++) count += mask_tile_count(&matrices[i]);
  enum status status = allocate(t, count, region_count, err);
  if (status != STATUS_OK) goto out;
  for (int r = 0; r < region_count; r++)
    t->regions[r] = (struct tile_region){
        .total = region_total[r], .base = region_total[r], .target = density * region_total[r]};
  int64_t next = 0;
  for (int64_t i = 0; i < matrix_count; i++) {
    struct tile_region *region = &t->regions[region_of[i]];
    if (!region->count) region->first = next;
    int64_t tiles = mask_tile_count(&matrices[i]);
    for (int64_t k = 0; k < tiles; k++) {
      int64_t gain = mask_tile_area(&matrices[i], k) - mask_tile_kept_sparse(&matrices[i], k);
      t->weights[next] = t->gain[next] = (float)gain;
      next++;
      region->base -= gain;
    }
    region->count += tiles;
  }
  for (int r = 0; r < region_count; r++) {
    t->regions[r].total_weights = t->regions[r].total;
    t->regions[r].base_weights = t->regions[r].base;
  }
  for (int r = 0; r < region_count && status == STATUS_OK; r++)
    status = check_target(&t->regions[r], r, density, err);
out:
  if (status != STATUS_OK) tiles_free(t);
  return status;
}

enum status tiles_aim_at_time(struct tile_logits *t, const struct mask_matrix *matrices,
                              int64_t matrix_count, const double *price, int64_t total_ps,
                              double share, struct error *err) {
  struct tile_region *r = &t->regions[0];
  int64_t next = 0;
  INVARIANT(t->region_count == 1);
  t->timed = true;
  r->total = r->base = total_ps;
  r->target = share * (double)total_ps;
  for (int64_t i = 0; i < matrix_count; i++)
    for (int64_t k = mask_tile_count(&matrices[i]); k > 0; k--, next++) {
      t->gain[next] = (float)llround(t->weights[next] * price[i]);
      r->base -= (int64_t)t->gain[next];
    }
  if (r->target >= (double)r->base) return STATUS_OK;
  return error_set(err, STATUS_REFUSED,
                   "a speed-up of %.3f cannot be reached on this machine: with every tile 2:4 it "
                   "is %.3f",
                   1 / share, (double)total_ps / (double)r->base);
}

void tiles_draw_noise(struct tile_logits *t, uint64_t seed, uint64_t sample) {
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int64_t i = 0; i < t->count; i += 4) {
    const uint32_t counter[4] = {(uint32_t)(i / 4), (uint32_t)sample, (uint32_t)(sample >> 32),
                                 TILE_STREAM};
    uint32_t bits[4];
    philox4x32(key, counter, bits);
    for (int64_t k = i; k < i + 4 && k < t->count; k++) {
      double u = rng_uniform_open(bits[k - i]);
      t->noise[k] = (float)(log(u) - log1p(-u));
    }
  }
}

void tiles_clear_noise(struct tile_logits *t) {
  memset(t->noise, 0, (size_t)t->count * sizeof(float));
}

static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }

/* --- sums over the tiles of a region --- */

static int64_t chunk_count(const struct tile_region *r) {
  return (r->count + CHUNK_TILES - 1) / CHUNK_TILES;
}

struct region_sum {
  const struct tile_logits *tiles;
  const struct tile_region *region;
  double kappa, tau, shift;
};

/* The argument of T's sigmoid under a shift. */
static double exponent(const struct region_sum *sum, int64_t i) {
  const struct tile_logits *t = sum->tiles;
  return (sum->kappa * (t->logit[i] + sum->shift) + t->noise[i]) / sum->tau;
}

static void sum_chunk(void *ctx, int64_t chunk, int worker) {
  struct region_sum *sum = ctx;
  int64_t first = sum->region->first + chunk * CHUNK_TILES;
  int64_t last = sum->region->first + sum->region->count;
  if (last > first + CHUNK_TILES) last = first + CHUNK_TILES;
  struct tile_sum total = {0, 0};
  for (int64_t i = first; i < last; i++) {
    double soft = sigmoid(exponent(sum, i));
    total.value += sum->tiles->gain[i] * soft;
    total.slope += sum->tiles->gain[i] * soft * (1 - soft);
  }
  sum->tiles->partial[chunk] = total;
}

/* Sum of gain T and its derivative by the shift. */
static struct tile_sum region_gain(struct region_sum *sum, double shift) {
  sum->shift = shift;
  parallel_for(chunk_count(sum->region), sum_chunk, sum);
  struct tile_sum total = {0, 0};
  for (int64_t c = 0; c < chunk_count(sum->region); c++) {
    total.value += sum->tiles->partial[c].value;
    total.slope += sum->tiles->partial[c].slope;
  }
  total.slope *= sum->kappa / sum->tau;
  return total;
}

/* The shift at which region_gain is `wanted`: Newton's method inside a bracket that shrinks with
 * every evaluation, halving it where Newton leaves it or is slow. The function rises
 * monotonically, so that the bracket always holds the root. */
static double solve_shift(struct region_sum *sum, double wanted, double gain_total) {
  enum { ITERATIONS = 200 };
  const struct tile_logits *t = sum->tiles;
  int64_t first = sum->region->first, last = first + sum->region->count;
  double low = INFINITY, high = -INFINITY;
  for (int64_t i = first; i < last; i++) { /* where every T is below e^-40, above 1 - e^-40 */
    double zero = -(t->logit[i] + t->noise[i] / sum->kappa);
    low = fmin(low, zero - 40 * sum->tau / sum->kappa);
    high = fmax(high, zero + 40 * sum->tau / sum->kappa);
  }
  double shift = 0.5 * (low + high), before = high - low;
  for (int i = 0; i < ITERATIONS; i++) {
    struct tile_sum at = region_gain(sum, shift);
    if (fabs(at.value - wanted) <= 1e-10 * gain_total) break;
    *(at.value > wanted ? &high : &low) = shift;
    double newton = shift - (at.value - wanted) / at.slope;
    double middle = 0.5 * (low + high);
    bool useful = newton > low && newton < high && fabs(newton - shift) < 0.5 * before;
    double next = useful ? newton : middle;
    if (next == shift || next == low || next == high) break; /* no number lies between */
    before = fabs(next - shift);
    shift = next;
  }
  return shift;
}

static double region_gain_total(const struct tile_logits *t, const struct tile_region *r) {
  double total = 0;
  for (int64_t i = 0; i < r->count; i++) total += t->gain[r->first + i];
  return total;
}

static void relax_chunk(void *ctx, int64_t chunk, int worker) {
  struct region_sum *sum = ctx;
  const struct tile_logits *t = sum->tiles;
  int64_t first = sum->region->first + chunk * CHUNK_TILES;
  int64_t last = sum->region->first + sum->region->count;
  if (last > first + CHUNK_TILES) last = first + CHUNK_TILES;
  for (int64_t i = first; i < last; i++) {
    double soft = sigmoid(exponent(sum, i));
    t->soft[i] = (float)soft;
    t->slope[i] = (float)(soft * (1 - soft) * sum->kappa / sum->tau);
  }
}

/* Where the target is all 2:4 or all dense, no finite shift does it. */
static void relax_constant(struct tile_logits *t, struct tile_region *r, float value) {
  for (int64_t i = r->first; i < r->first + r->count; i++) {
    t->soft[i] = value;
    t->slope[i] = 0;
  }
  r->shift = value > 0 ? INFINITY : -INFINITY;
}

void tiles_relax(struct tile_logits *t, struct relaxation relax, enum learn_density rule) {
  memset(t->soft_gradient, 0, (size_t)t->count * sizeof *t->soft_gradient);
  for (int k = 0; k < t->region_count; k++) {
    struct tile_region *r = &t->regions[k];
    if (!r->count) continue;
    struct region_sum sum = {t, r, relax.kappa, relax.tau, 0};
    double gain_total = region_gain_total(t, r), wanted = r->target - (double)r->base;
    if (rule == DENSITY_HELD && wanted <= 0) {
      relax_constant(t, r, 0);
    } else if (rule == DENSITY_HELD && wanted >= gain_total) {
      relax_constant(t, r, 1);
    } else {
      r->shift = rule == DENSITY_HELD ? solve_shift(&sum, wanted, gain_total) : 0;
      sum.shift = r->shift;
      parallel_for(chunk_count(r), relax_chunk, &sum);
    }
  }
}

/* --- backward --- */

/* Sums of the gradient and of the gain, both through the slopes. */
static void slope_sums(const struct tile_logits *t, const struct tile_region *r, double *gradient,
                       double *gain) {
  *gradient = *gain = 0;
  for (int64_t i = r->first; i < r->first + r->count; i++) {
    *gradient += t->soft_gradient[i] * t->slope[i];
    *gain += (double)t->gain[i] * t->slope[i];
  }
}

/* How far the current sample is from the region's target, as a share of its total. */
static double region_error(const struct tile_logits *t, const struct tile_region *r) {
  double kept = (double)r->base;
  for (int64_t i = r->first; i < r->first + r->count; i++) kept += (double)t->gain[i] * t->soft[i];
  return (kept - r->target) / (double)r->total;
}

/* What a unit of gain costs: the shift's reaction, or the paper's term. */
static double gain_price(const struct tile_logits *t, const struct tile_region *r,
                         enum learn_density rule, double l1) {
  if (rule == DENSITY_HELD) {
    double gradient, gain;
    slope_sums(t, r, &gradient, &gain);
    return gain > 0 ? -gradient / gain : 0;
  }
  double error = region_error(t, r);
  double sign = error > 0 ? 1 : error < 0 ? -1 : 0;
  return l1 * sign / (double)r->total / t->region_count;
}

void tiles_backward(struct tile_logits *t, enum learn_density rule, double l1) {
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    double price = gain_price(t, r, rule, l1);
    for (int64_t i = r->first; i < r->first + r->count; i++)
      t->gradient[i] += (float)((t->soft_gradient[i] + price * t->gain[i]) * t->slope[i]);
  }
}

double tiles_density(const struct tile_logits *t) {
  double kept = 0, total = 0;
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    kept += (double)r->base_weights;
    total += (double)r->total_weights;
    for (int64_t i = r->first; i < r->first + r->count; i++)
      kept += (double)t->weights[i] * t->soft[i];
  }
  return kept / total;
}

double tiles_density_error(const struct tile_logits *t) {
  double sum = 0;
  for (int k = 0; k < t->region_count; k++) sum += fabs(region_error(t, &t->regions[k]));
  return sum / t->region_count;
}

/* --- hard tiles --- */

void tiles_harden(struct tile_logits *t, struct relaxation relax, enum learn_density rule,
                  bool *dense) {
  tiles_clear_noise(t);
  tiles_relax(t, relax, rule);
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    for (int64_t i = r->first; i < r->first + r->count; i++) dense[i] = t->logit[i] + r->shift > 0;
  }
}

enum status tiles_project(const struct tile_logits *t, const float *scores, bool *dense,
                          int64_t *moved, struct error *err) {
  enum status status = STATUS_FAILED;
  int64_t changed = 0;
  struct project_tile *rank = mem_alloc((size_t)t->count, sizeof *rank, err);
  size_t *order = mem_alloc((size_t)t->count, sizeof *order, err);
  bool *exact = mem_alloc((size_t)t->count, sizeof *exact, err);
  if (!rank || !order || !exact) goto out;
  for (int64_t i = 0; i < t->count; i++)
    rank[i] = (struct project_tile){scores[i], (int64_t)t->gain[i]};
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    project_tiles(rank + r->first, (size_t)r->count, r->base, llround(r->target), order,
                  exact + r->first);
  }
  for (int64_t i = 0; i < t->count; i++) {
    exact[i] |= t->timed && t->gain[i] == 0;
    changed += exact[i] != dense[i];
  }
  memcpy(dense, exact, (size_t)t->count * sizeof *exact);
  if (moved) *moved = changed;
  status = STATUS_OK;
out:
  mem_free(rank);
  mem_free(order);
  mem_free(exact);
  return status;
}

double tiles_hard_density(const struct tile_logits *t, const bool *dense) {
  double kept = 0, total = 0;
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    kept += (double)r->base_weights;
    total += (double)r->total_weights;
    for (int64_t i = r->first; i < r->first + r->count; i++)
      if (dense[i]) kept += t->weights[i];
  }
  return kept / total;
}

double tiles_hard_share(const struct tile_logits *t, const bool *dense) {
  double kept = 0, total = 0;
  for (int k = 0; k < t->region_count; k++) {
    const struct tile_region *r = &t->regions[k];
    kept += (double)r->base;
    total += (double)r->total;
    for (int64_t i = r->first; i < r->first + r->count; i++)
      if (dense[i]) kept += t->gain[i];
  }
  return kept / total;
}
