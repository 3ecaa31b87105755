/* The kernels of decoding against formulas in double, each alone; and they must not pass when they
 * are wrong: they are compiled once, in a vocabulary in which one word at a time can be made wrong,
 * and every such mistake must be reported or show in the result. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/simt.h"

enum mutation {
  RIGHT,
  NO_BARRIER,     /* block_barrier does nothing */
  LATE_BARRIER,   /* one warp leaves a barrier out */
  WRONG_LANE,     /* a butterfly's steps are half as wide */
  WRONG_SOURCE,   /* a shuffle takes the value of the next lane but one: pairs have the same */
  LANE_ALONE,     /* a lane does not come to a shuffle */
  LAST_TOO_EARLY, /* the last block but one joins the pieces */
  PAST_THE_END,   /* stores one element further */
  MISALIGNED,     /* 16 bytes from an address 4 bytes on */
  WRONG_PART,     /* takes the next word of what a warp left */
  CUT_OFF,        /* bf16 without rounding */
  WRONG_HALF,     /* f16 taken for bf16 */
  MUTATIONS
};
static const char *const mutation_name[MUTATIONS] = {
    "right",          "no barrier",   "late barrier", "wrong lane", "wrong source", "lane alone",
    "last too early", "past the end", "misaligned",   "wrong part", "cut off",      "wrong half"};
static enum mutation mutation;

static inline uint32_t add_mutated(uint32_t *counter, uint32_t value) {
  return global_add(counter, value) + (mutation == LAST_TOO_EARLY);
}
static inline uint16_t round_mutated(float x) {
  return mutation == CUT_OFF ? (uint16_t)(bits_of_float(x) >> 16) : bf16_round(x);
}
static inline float widen_mutated(uint16_t x) {
  return mutation == WRONG_HALF ? bf16_widen(x) : f16_widen(x);
}
#undef block_barrier
#define block_barrier()                                                             \
  (mutation == NO_BARRIER || (mutation == LATE_BARRIER && thread_index() / 32 == 1) \
       ? (void)0                                                                    \
       : simt_barrier(0, 0, __LINE__))
#undef shuffle_xor
#define shuffle_xor(value, mask)                                                                   \
  (mutation == LANE_ALONE && thread_index() % 32 == 7                                              \
       ? (value)                                                                                   \
       : simt_shuffle(value, thread_index() % 32 ^ (mutation == WRONG_LANE ? (mask) / 2 : (mask)), \
                      __LINE__))
#undef shuffle_from
#define shuffle_from(value, lane) \
  simt_shuffle(value, mutation == WRONG_SOURCE ? ((lane) + 2) % 32 : (lane), __LINE__)
#undef shared_load4
#define shared_load4(address) \
  simt_shared_load4((address) + (mutation == WRONG_PART ? 4u : 0u), __LINE__)
#undef global_load16
#define global_load16(pointer) \
  simt_global_load16((const uint8_t *)(pointer) + (mutation == MISALIGNED ? 4 : 0))
#undef global_store
#define global_store(pointer, value)                                                   \
  (simt_check_global((pointer) + (mutation == PAST_THE_END), sizeof *(pointer), true), \
   (pointer)[mutation == PAST_THE_END] = (value))
#define global_add add_mutated
#define bf16_round round_mutated
#define f16_widen widen_mutated
#include "kernel/cuda/serve_kernels.h"
#undef bf16_round
#undef f16_widen
#include "support/support.h"

/* --- what all jobs share --- */

static uint32_t seed;
static float draw(void) {
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) / (float)(1 << 23) - 1;
}
static void fill(float *x, size_t count) {
  for (size_t i = 0; i < count; i++) x[i] = draw();
}
static void fill_bf16(uint16_t *x, size_t count) {
  for (size_t i = 0; i < count; i++) x[i] = bf16_from_f32(draw());
}
static uint16_t half_of(float x) {
  uint16_t out;
  dtype_from_f32(DTYPE_F16, &x, 1, &out);
  return out;
}
static float widened(uint16_t half) {
  float out;
  dtype_to_f32(DTYPE_F16, &half, 1, &out);
  return out;
}

/* Whether x is y but for `relative` of it: half a place of bf16 or f16, and what fp32 loses. */
static bool is_close(float x, double y, double relative) {
  return fabs((double)x - y) <= relative * fabs(y) + 2e-6;
}
static bool is_bf16(uint16_t x, double y) { return is_close(bf16_to_f32(x), y, 0.00394); }

static struct simt_launch launch;
/* Returns whether the emulator had nothing to say. */
static bool runs(void (*kernel)(const void *), const void *args, uint32_t blocks, uint32_t threads,
                 uint32_t shared) {
  struct simt_report report;
  launch.blocks = blocks;
  launch.threads = threads;
  launch.shared_bytes = shared;
  simt_run(&launch, kernel, args, &report);
  launch.buffer_count = 0;
  if (mutation == RIGHT && report.failed) fail_msg("%s", report.text);
  return !report.failed;
}
#define READS(array) simt_buffer(&launch, array, sizeof(array), false)
#define WRITES(array) simt_buffer(&launch, array, sizeof(array), true)

/* --- jobs: whether the kernel, as it is, does what its formula says --- */

enum { ROWS = 3, N = 70, STRIDE = 80 };

static bool norms(void) {
  static float hidden[ROWS * N], before[ROWS * N], weight[N], branch_weight[N];
  static uint16_t branch[ROWS * STRIDE], out[ROWS * STRIDE];
  fill(before, ROWS * N);
  fill(weight, N);
  fill(branch_weight, N);
  fill_bf16(branch, ROWS * STRIDE);
  memcpy(hidden, before, sizeof hidden);
  memset(out, 0, sizeof out);
  const struct serve_norm_args args = {.hidden = hidden,
                                       .branch = branch,
                                       .branch_weight = branch_weight,
                                       .weight = weight,
                                       .out = out,
                                       .n = N,
                                       .branch_stride = STRIDE,
                                       .out_stride = STRIDE,
                                       .step = 1,
                                       .plus_one = true,
                                       .eps = 1e-5f};
  WRITES(hidden), WRITES(out), READS(branch), READS(weight), READS(branch_weight);
  if (!runs(serve_norm, &args, ROWS, SERVE_THREADS, 8 * LEARN_WARPS)) return false;
  for (int r = 0; r < ROWS; r++) {
    double x[N], squares = 0, sum = 0;
    for (int i = 0; i < N; i++) squares += pow(bf16_to_f32(branch[r * STRIDE + i]), 2);
    const double scale = 1 / sqrt(squares / N + 1e-5);
    for (int i = 0; i < N; i++) {
      x[i] = before[r * N + i] +
             bf16_to_f32(branch[r * STRIDE + i]) * scale * (1.0 + branch_weight[i]);
      sum += x[i] * x[i];
    }
    for (int i = 0; i < N; i++) {
      if (!is_close(hidden[r * N + i], x[i], 1e-6)) return false;
      if (!is_bf16(out[r * STRIDE + i], x[i] / sqrt(sum / N + 1e-5) * (1.0 + weight[i])))
        return false;
    }
  }
  return true;
}

static bool gates(void) {
  static uint16_t in[ROWS * 2 * STRIDE], out[ROWS * STRIDE];
  fill_bf16(in, ROWS * 2 * STRIDE);
  memset(out, 0, sizeof out);
  const struct serve_glu_args args = {.gate = in,
                                      .up = in + STRIDE,
                                      .out = out,
                                      .count = ROWS * N,
                                      .n = N,
                                      .in_stride = 2 * STRIDE,
                                      .out_stride = STRIDE,
                                      .blocks = 1};
  READS(in), WRITES(out);
  if (!runs(serve_glu, &args, 1, SERVE_THREADS, 0)) return false;
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < N; i++) {
      const double g = bf16_to_f32(in[r * 2 * STRIDE + i]);
      const double u = bf16_to_f32(in[r * 2 * STRIDE + STRIDE + i]);
      if (!is_bf16(out[r * STRIDE + i], g / (1 + exp(-g)) * u)) return false;
    }
  return true;
}

/* Two slots, two key heads, one layer. */
enum { KV = 2, HEADS = 4, HEAD = 32, HALF = HEAD / 2, SLOTS = 2, PAGE_MOST = 38, PAGES = 80 };
enum { PAGE_ELEMENTS = 2 * KV * SERVE_PAGE * HEAD, TEXT = PAGE_MOST * SERVE_PAGE };
static _Alignas(16) uint16_t cache[PAGES * PAGE_ELEMENTS];
static uint32_t pages[SLOTS * PAGE_MOST];

/* Pages in no order; keys and values random, no numbers in pages that nobody has. */
static struct serve_cache make_cache(void) {
  for (size_t i = 0; i < PAGES * PAGE_ELEMENTS; i++) cache[i] = half_of(NAN);
  for (uint32_t i = 0; i < SLOTS * PAGE_MOST; i++) {
    pages[i] = (i * 37 + 11) % PAGES;
    for (size_t j = 0; j < PAGE_ELEMENTS; j++)
      cache[(size_t)pages[i] * PAGE_ELEMENTS + j] = half_of(draw());
  }
  return (struct serve_cache){.memory = cache,
                              .pages = pages,
                              .page_most = PAGE_MOST,
                              .type = ELEMENT_F16,
                              .stride = HEAD,
                              .kv_heads = KV,
                              .page_elements = PAGE_ELEMENTS};
}
static uint16_t *cached_at(uint32_t slot, uint32_t position, int values, uint32_t head) {
  return cache + (size_t)pages[slot * PAGE_MOST + position / SERVE_PAGE] * PAGE_ELEMENTS +
         (((size_t)values * KV + head) * SERVE_PAGE + position % SERVE_PAGE) * HEAD;
}

/* The head as the formula has it: normed, and turned by its position's angles. */
static void turned(const uint16_t *x, const float *norm, const float *cosine, const float *sine,
                   double out[HEAD]) {
  double squares = 0, n[HEAD];
  for (int i = 0; i < HEAD; i++) squares += pow(bf16_to_f32(x[i]), 2);
  for (int i = 0; i < HEAD; i++)
    n[i] = bf16_to_f32(x[i]) / sqrt(squares / HEAD + 1e-5) * (double)norm[i];
  for (int i = 0; i < HALF; i++) {
    out[i] = n[i] * cosine[i] - n[HALF + i] * sine[i];
    out[HALF + i] = n[HALF + i] * cosine[i] + n[i] * sine[i];
  }
}

static bool rotations(void) {
  enum { WIDTH = (HEADS + 2 * KV) * HEAD, POSITIONS = 24 };
  static uint16_t qkv[ROWS * WIDTH];
  static float q[ROWS * HEADS * HEAD], q_norm[HEAD], k_norm[HEAD];
  static float cosine[POSITIONS * HALF], sine[POSITIONS * HALF];
  static const uint32_t positions[ROWS] = {15, 16, 3}, slots[ROWS] = {0, 1, 0};
  const struct serve_cache c = make_cache();
  fill_bf16(qkv, ROWS * WIDTH);
  fill(q_norm, HEAD);
  fill(k_norm, HEAD);
  for (int i = 0; i < POSITIONS * HALF; i++) cosine[i] = cosf((float)i), sine[i] = sinf((float)i);
  memset(q, 0, sizeof q);
  const struct serve_rotate_args args = {.qkv = qkv,
                                         .k_at = HEADS * HEAD,
                                         .v_at = (HEADS + KV) * HEAD,
                                         .qkv_stride = WIDTH,
                                         .q = q,
                                         .cache = c,
                                         .q_norm = q_norm,
                                         .k_norm = k_norm,
                                         .cos = cosine,
                                         .sin = sine,
                                         .positions = positions,
                                         .slots = slots,
                                         .rows = ROWS,
                                         .heads = HEADS,
                                         .head_dim = HEAD,
                                         .blocks = 2,
                                         .eps = 1e-5f};
  READS(qkv), WRITES(q), READS(q_norm), READS(k_norm), READS(cosine), READS(sine);
  READS(positions), READS(slots), READS(pages), WRITES(cache);
  if (!runs(serve_rotate, &args, 2, SERVE_THREADS, 0)) return false;
  for (uint32_t r = 0; r < ROWS; r++)
    for (uint32_t h = 0; h < HEADS + 2 * KV; h++) {
      const uint16_t *x = qkv + r * WIDTH + h * HEAD;
      const bool is_q = h < HEADS, is_v = h >= HEADS + KV;
      const uint32_t kv = is_v ? h - HEADS - KV : h - HEADS;
      double want[HEAD];
      turned(x, is_q ? q_norm : k_norm, cosine + positions[r] * HALF, sine + positions[r] * HALF,
             want);
      for (uint32_t i = 0; i < HEAD; i++) {
        if (is_q) {
          if (!is_close(q[(r * HEADS + h) * HEAD + i], want[i], 1e-5)) return false;
        } else if (!is_close(widened(cached_at(slots[r], positions[r], is_v, kv)[i]),
                             is_v ? bf16_to_f32(x[i]) : want[i], 0.0005)) {
          return false;
        }
      }
    }
  return true;
}

/* A text of three pieces beside one of a part of a piece; a window that ends within the first; soft
 * caps; two query heads for each key head. */
static bool attentions(void) {
  enum { TEXTS = 2, WINDOW = 590, PIECES = 3, ITEMS = TEXTS * KV };
  static float q[TEXTS * HEADS * HEAD], partials[ITEMS * PIECES * 8 * (8 * 4 + 2)];
  static uint16_t out[TEXTS * HEADS * HEAD];
  static uint32_t counters[ITEMS];
  static const uint32_t positions[TEXTS] = {599, 40}, slots[TEXTS] = {0, 1};
  const struct serve_cache c = make_cache();
  fill(q, TEXTS * HEADS * HEAD);
  for (int i = 0; i < TEXTS * HEADS * HEAD; i++) q[i] *= 3;
  memset(counters, 0, sizeof counters);
  memset(out, 0, sizeof out);
  memset(partials, 0, sizeof partials);
  const struct serve_attend_args args = {.q = q,
                                         .cache = c,
                                         .positions = positions,
                                         .slots = slots,
                                         .out = out,
                                         .partials = partials,
                                         .counters = counters,
                                         .rows = TEXTS,
                                         .heads = HEADS,
                                         .head_dim = HEAD,
                                         .out_stride = HEADS * HEAD,
                                         .item_tokens = 1,
                                         .item_heads = HEADS / KV,
                                         .head_items = 1,
                                         .piece = SERVE_PIECE,
                                         .pieces = PIECES,
                                         .window = WINDOW,
                                         .scale = 0.3f,
                                         .softcap = 4};
  READS(q), READS(cache), READS(pages), READS(positions), READS(slots);
  WRITES(out), WRITES(partials), WRITES(counters);
  if (!runs(attend_4x8, &args, ITEMS * PIECES, ATTEND_THREADS, attend_shared_bytes(4, 8)))
    return false;
  for (uint32_t i = 0; i < ITEMS; i++)
    if (counters[i]) return false;
  for (uint32_t t = 0; t < TEXTS; t++)
    for (uint32_t h = 0; h < HEADS; h++) {
      const float *row = q + (t * HEADS + h) * HEAD;
      double sum = 0, mix[HEAD] = {0};
      const uint32_t end = positions[t] + 1;
      for (uint32_t p = end > WINDOW ? end - WINDOW : 0; p < end; p++) {
        double score = 0;
        const uint16_t *key = cached_at(slots[t], p, 0, h / (HEADS / KV));
        const uint16_t *value = cached_at(slots[t], p, 1, h / (HEADS / KV));
        for (int i = 0; i < HEAD; i++) score += (double)row[i] * widened(key[i]);
        const double weight = exp(4 * tanh(0.3 * score / 4));
        sum += weight;
        for (int i = 0; i < HEAD; i++) mix[i] += weight * widened(value[i]);
      }
      for (uint32_t i = 0; i < HEAD; i++)
        if (!is_bf16(out[(t * HEADS + h) * HEAD + i], mix[i] / sum)) return false;
    }
  return true;
}

/* --- drawing --- */

enum { VOCAB = 300 };
static float candidate[VOCAB]; /* what order_by_logit compares */
static int order_by_logit(const void *a, const void *b) {
  const int i = *(const int *)a, j = *(const int *)b;
  if (candidate[i] != candidate[j]) return candidate[i] > candidate[j] ? -1 : 1;
  return i - j;
}

/* Top k, then top p of what is left, then min p, by sorting. */
static int drawn(const float *logits, const uint8_t *seen, const struct serve_draw *d) {
  int ids[VOCAB];
  double mass[VOCAB], all = 0, sum = 0;
  for (int i = 0; i < VOCAB; i++) {
    const float x = logits[i];
    candidate[i] = !seen[i] ? x : x > 0 ? x / d->penalty : x * d->penalty;
    ids[i] = i;
  }
  qsort(ids, VOCAB, sizeof *ids, order_by_logit);
  if (!(d->temperature > 0)) return ids[0];
  int kept = d->top_k ? (int)d->top_k : VOCAB, worthy = 0, at = 0;
  for (int i = 0; i < kept; i++) {
    mass[i] = exp(((double)candidate[ids[i]] - candidate[ids[0]]) / d->temperature);
    worthy += mass[i] >= d->min_p;
    all += mass[i];
  }
  for (kept = 0; sum < d->top_p * all; kept++) sum += mass[kept];
  if (worthy < kept) kept = worthy;
  all = sum = 0;
  for (int i = 0; i < kept; i++) all += mass[i];
  for (; (sum += mass[at]) <= d->uniform * all;) at++;
  return ids[at];
}

static bool draws(void) {
  static const struct serve_draw how[ROWS] = {{0.71, 0.9, 0.9, 0.02, 1.3f, 40, 1, 0},
                                              {0, 0, 1, 0, 1, 0, 0, 0},
                                              {0.4, 1.5, 0.8, 0, 1, 0, 2, 0}};
  static float logits[ROWS * VOCAB], before[ROWS * VOCAB];
  static uint8_t seen[ROWS * VOCAB], seen_before[ROWS * VOCAB];
  static unsigned long long mass[ROWS * VOCAB];
  static int32_t ids[ROWS];
  fill(before, ROWS * VOCAB);
  for (int i = 0; i < ROWS * VOCAB; i++) before[i] *= 4, seen_before[i] = i % 3 == 0;
  before[VOCAB + 20] = 9; /* of the upper half of a warp, which a sum may lose */
  memcpy(logits, before, sizeof logits);
  memcpy(seen, seen_before, sizeof seen);
  memset(ids, 0xff, sizeof ids);
  const struct serve_sample_args args = {logits, how, seen, mass, ids, VOCAB};
  WRITES(logits), READS(how), WRITES(seen), WRITES(mass), WRITES(ids);
  if (!runs(serve_sample, &args, ROWS, SERVE_THREADS, 8 * LEARN_WARPS)) return false;
  for (int r = 0; r < ROWS; r++) {
    const size_t slot = how[r].slot * (size_t)VOCAB;
    const int want = drawn(before + r * VOCAB, seen_before + slot, &how[r]);
    if (ids[r] != want || !seen[slot + (size_t)want]) return false;
  }
  return true;
}

/* --- all mistakes in all kernels that have the word --- */

#define BIT(m) (1u << (m))
static const struct job {
  const char *name;
  bool (*is_right)(void);
  uint32_t mutations;
} jobs[] = {
    {"norm", norms,
     BIT(NO_BARRIER) | BIT(LATE_BARRIER) | BIT(WRONG_LANE) | BIT(LANE_ALONE) | BIT(PAST_THE_END) |
         BIT(WRONG_PART) | BIT(CUT_OFF)},
    {"gates", gates, BIT(PAST_THE_END) | BIT(CUT_OFF)},
    {"rotation", rotations, BIT(WRONG_LANE) | BIT(LANE_ALONE) | BIT(PAST_THE_END)},
    {"attention", attentions,
     BIT(NO_BARRIER) | BIT(LATE_BARRIER) | BIT(WRONG_LANE) | BIT(WRONG_SOURCE) | BIT(LANE_ALONE) |
         BIT(LAST_TOO_EARLY) | BIT(PAST_THE_END) | BIT(MISALIGNED) | BIT(WRONG_PART) |
         BIT(CUT_OFF) | BIT(WRONG_HALF)},
    {"drawing", draws,
     BIT(NO_BARRIER) | BIT(LATE_BARRIER) | BIT(WRONG_LANE) | BIT(LANE_ALONE) | BIT(PAST_THE_END) |
         BIT(WRONG_PART)},
};

static void every_mutant_is_caught(void **state) {
  (void)state;
  simt_need_fibers();
  for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++)
    for (int m = RIGHT; m < MUTATIONS; m++) {
      if (m != RIGHT && !(jobs[j].mutations & BIT(m))) continue;
      mutation = (enum mutation)m;
      seed = 7;
      const bool right = jobs[j].is_right();
      mutation = RIGHT;
      if (right != (m == RIGHT))
        fail_msg("%s, %s: %s", jobs[j].name, mutation_name[m], right ? "passes" : "is refused");
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_mutant_is_caught)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
