/* What runs beside the threads on sm_90a: mbarriers, bulk copies, wgmma.
 *
 * Warps have vector clocks. A warp that arrives at an mbarrier leaves its clocks there and moves
 * its own on; a warp that waits takes up what was left by the end of the phase. A bulk copy may
 * land where another warp has read only if the copying warp has taken up a clock that is later than
 * the read, and may be read only by warps that have waited for its phase. A bulk copy arrives at
 * once: that is allowed, and whoever does not wait is caught by the rule, not by old bytes.
 *
 * wgmma runs when it is waited for. Until then its accumulators hold a NaN that only it may
 * replace, its weights must stay as they were, and its activations are read from shared memory at
 * that late time, under the same rule as every other read. */
#include <string.h>

#include "kernel/cuda/product.h"
#include "support/simt_internal.h"

enum { MBARRIERS_MAX = 32, WGMMA_PENDING_MAX = 16, OCTETS_MAX = 32 };
static const uint32_t accumulator_in_flight = 0x7fedbeef; /* a NaN */

struct mbarrier {
  uint32_t address, arrivals, left; /* of the phase that is open */
  int64_t bytes;                    /* expected and not yet copied */
  uint32_t phase;                   /* phases that have ended */
  uint32_t born;                    /* cluster barriers passed when it was made */
  uint32_t clocks[SIMT_WARPS_MAX], ended_clocks[SIMT_WARPS_MAX];
};

struct wgmma {
  enum simt_wgmma kind;
  int line;
  bool committed;
  uint32_t octets;
  uint64_t panel;
  struct words4 a[SIMT_WARP];
  const struct words4 *a_at[SIMT_WARP];
  uint32_t meta[SIMT_WARP];
};

struct warp {
  uint32_t clock[SIMT_WARPS_MAX]; /* what it knows of every warp of the cluster; from 1 on */
  uint32_t seen[MBARRIERS_MAX];   /* phases of its block's mbarriers that it saw end */
  bool fenced;
  uint32_t pending;
  struct wgmma wgmma[WGMMA_PENDING_MAX];
  float (*d[SIMT_WARP])[4];
  float kept[SIMT_WARP][OCTETS_MAX][4]; /* the accumulators while products are in flight */
};

static struct {
  struct mbarrier mbarriers[SIMT_CLUSTER_MAX][MBARRIERS_MAX];
  uint32_t count[SIMT_CLUSTER_MAX];
  struct warp warps[SIMT_WARPS_MAX];
} async;

static uint32_t block_warps(void) { return simt.launch->threads / SIMT_WARP; }
static struct warp *warp_now(void) { return &async.warps[simt.current / SIMT_WARP]; }
static uint32_t block_now(void) { return simt_lane_block((uint32_t)simt.current); }

void async_reset(void) {
  memset(async.count, 0, sizeof async.count);
  for (uint32_t w = 0; w < simt.lane_count / SIMT_WARP; w++) {
    struct warp *warp = &async.warps[w];
    memset(warp->clock, 0, sizeof warp->clock);
    memset(warp->seen, 0, sizeof warp->seen);
    warp->clock[w] = 1;
    warp->fenced = false;
    warp->pending = 0;
  }
}

void async_check_end(uint32_t lane) {
  if (async.warps[lane / SIMT_WARP].pending) simt_fail(0, "ends with wgmma that nobody waited for");
}

bool async_has_seen(uint32_t barrier, uint32_t phase) { return warp_now()->seen[barrier] > phase; }
uint32_t async_warp_clock(void) { return warp_now()->clock[simt.current / SIMT_WARP]; }

/* --- mbarriers --- */

static uint32_t find_mbarrier(uint32_t block, uint32_t address, int line) {
  for (uint32_t i = 0; i < async.count[block]; i++) {
    struct mbarrier *b = &async.mbarriers[block][i];
    if (b->address != address) continue;
    if (b->born == simt.cluster_epoch)
      simt_fail(line, "an mbarrier is used before the cluster knows that it was made");
    return i;
  }
  simt_fail(line, "there is no mbarrier at %u of block %u", address, block);
}

void simt_mbarrier_init(uint32_t barrier, uint32_t arrivals, int line) {
  const uint32_t block = block_now();
  if (barrier % 8 || barrier + 8 > simt.launch->shared_bytes || !arrivals ||
      async.count[block] == MBARRIERS_MAX)
    simt_fail(line, "no mbarrier of %u arrivals can be at %u", arrivals, barrier);
  async.mbarriers[block][async.count[block]++] = (struct mbarrier){
      .address = barrier, .arrivals = arrivals, .left = arrivals, .born = simt.cluster_epoch};
}

static void end_phase(struct mbarrier *b) {
  if (b->left || b->bytes) return;
  b->phase++;
  b->left = b->arrivals;
  memcpy(b->ended_clocks, b->clocks, sizeof b->clocks);
}

static void take_later(uint32_t to[SIMT_WARPS_MAX], const uint32_t from[SIMT_WARPS_MAX]) {
  for (int w = 0; w < SIMT_WARPS_MAX; w++)
    if (from[w] > to[w]) to[w] = from[w];
}

static void check_alive(uint32_t block, const char *what, int line) {
  for (uint32_t t = 0; t < simt.launch->threads; t++)
    if (simt.lanes[block * simt.launch->threads + t].state != LANE_DONE) return;
  simt_fail(line, "%s a block of the cluster that has ended", what);
}

static void arrive(uint32_t block, uint32_t address, uint32_t bytes, int line) {
  check_alive(block, "arrives at", line);
  struct mbarrier *b = &async.mbarriers[block][find_mbarrier(block, address, line)];
  if (!b->left) simt_fail(line, "more arrivals at the mbarrier at %u than it counts", address);
  take_later(b->clocks, warp_now()->clock);
  b->bytes += bytes;
  b->left--;
  end_phase(b);
}

static void move_own_clock(void) { warp_now()->clock[simt.current / SIMT_WARP]++; }

static bool has_passed(uint32_t block, const struct call *call) {
  const uint32_t i = find_mbarrier(block, call->barrier, call->line);
  return (async.mbarriers[block][i].phase & 1) != call->value;
}

bool async_may_pass(const struct lane *lane) {
  return has_passed(simt_lane_block((uint32_t)(lane - simt.lanes)), &lane->call);
}

static void wait_for(const struct call *call) {
  const uint32_t i = find_mbarrier(block_now(), call->barrier, call->line);
  while (!has_passed(block_now(), call)) {
    simt.lanes[simt.current].state = LANE_AT_MBARRIER;
    simt_leave_fiber();
  }
  const struct mbarrier *b = &async.mbarriers[block_now()][i];
  warp_now()->seen[i] = b->phase;
  if (b->phase) take_later(warp_now()->clock, b->ended_clocks);
}

/* --- bulk copies --- */

static void land(uint32_t block, uint32_t to, const void *chunk, uint32_t barrier, int line) {
  const uint32_t i = find_mbarrier(block, barrier, line);
  shared_select(block);
  shared_bulk(to, chunk, i, async.mbarriers[block][i].phase,
              warp_now()->clock + block * block_warps(), line);
  shared_select(block_now());
}

static void complete(uint32_t block, uint32_t barrier, uint32_t bytes, int line) {
  struct mbarrier *b = &async.mbarriers[block][find_mbarrier(block, barrier, line)];
  b->bytes -= bytes;
  end_phase(b);
}

static void copy_bulk(const struct call *call) {
  const uint8_t *from = call->from;
  if (call->address % 16 || (uintptr_t)from % 16 || call->bytes % 16 || !call->bytes)
    simt_fail(call->line, "a bulk copy of %u bytes to %u is misaligned", call->bytes,
              call->address);
  simt_check_global(from, call->bytes, false);
  for (uint32_t at = 0; at < call->bytes; at += 16)
    land(block_now(), call->address + at, from + at, call->barrier, call->line);
  simt.report->copied_bytes += call->bytes;
  complete(block_now(), call->barrier, call->bytes, call->line);
}

/* The emulator's reading of a panel map. */
struct map {
  const uint16_t *x;
  uint64_t x_stride;
  uint32_t tokens, cols, box_tokens;
};
_Static_assert(sizeof(struct map) <= sizeof(struct panel_map), "fits where the driver's map does");

void simt_panel_map(struct panel_map *out, const uint16_t *x, uint64_t x_stride, uint32_t tokens,
                    uint32_t cols, uint32_t box_tokens) {
  const struct map map = {x, x_stride, tokens, cols, box_tokens};
  memcpy(out, &map, sizeof map);
}

/* Eight activations of a token: zeros past the last column and the last token. */
static void read_box(const struct map *map, uint32_t token, uint32_t col, uint16_t out[8]) {
  memset(out, 0, 16);
  if (token >= map->tokens || col >= map->cols) return;
  const uint32_t count = map->cols - col < 8 ? map->cols - col : 8;
  const uint16_t *from = map->x + token * map->x_stride + col;
  simt_check_global(from, 2 * count, false);
  memcpy(out, from, 2 * count);
  simt.report->copied_bytes += 2 * count;
}

/* Swizzled over 128 bytes, as the map on a card says: the 16-byte chunk c of a row goes to the
 * place c ^ (the row's number, which is the address's bits 7 to 9). */
static void copy_panel(const struct call *call) {
  struct map map;
  memcpy(&map, call->from, sizeof map);
  const uint32_t bytes = map.box_tokens * PRODUCT_PANEL_ROW_BYTES;
  if (call->address % 1024 || map.x_stride % 8 || (uintptr_t)map.x % 16)
    simt_fail(call->line, "a panel at %u is not aligned to what the swizzle repeats after",
              call->address);
  for (uint32_t block = 0; block < simt.blocks; block++)
    if (call->blocks > 1 ? block < call->blocks : block == block_now())
      check_alive(block, "copies into", call->line);
  for (uint32_t at = 0; at < bytes; at += 16) {
    uint16_t chunk[8];
    const uint32_t to = call->address + at;
    read_box(&map, call->token + at / PRODUCT_PANEL_ROW_BYTES,
             call->col + at % PRODUCT_PANEL_ROW_BYTES / 2, chunk);
    for (uint32_t block = 0; block < simt.blocks; block++)
      if (call->blocks > 1 ? block < call->blocks : block == block_now())
        land(block, to ^ (to >> 7 & 7) << 4, chunk, call->barrier, call->line);
  }
  for (uint32_t block = 0; block < simt.blocks; block++)
    if (call->blocks > 1 ? block < call->blocks : block == block_now())
      complete(block, call->barrier, bytes, call->line);
}

/* --- wgmma --- */

static void issue(struct call *const calls[SIMT_WARP]) {
  struct warp *warp = warp_now();
  const int line = calls[0]->line;
  if (!warp->fenced) simt_fail(line, "wgmma without a fence since its registers were touched");
  if (warp->pending == WGMMA_PENDING_MAX) simt_fail(line, "more wgmma than the emulator holds");
  struct wgmma *w = &warp->wgmma[warp->pending];
  w->kind = calls[0]->kind;
  w->line = line;
  w->committed = false;
  w->octets = calls[0]->octets;
  w->panel = calls[0]->panel;
  for (int l = 0; l < SIMT_WARP; l++) {
    if (calls[l]->panel != w->panel) simt_fail(line, "lane %d brings another panel", l);
    w->a[l] = *calls[l]->a;
    w->a_at[l] = calls[l]->a;
    w->meta[l] = calls[l]->value;
    if (warp->pending && warp->d[l] != calls[l]->d)
      simt_fail(line, "wgmma into other accumulators than those in flight");
    if (warp->pending) continue;
    warp->d[l] = calls[l]->d;
    memcpy(warp->kept[l], calls[l]->d, w->octets * sizeof *warp->kept[l]);
    for (uint32_t i = 0; i < 4 * w->octets; i++)
      memcpy(&calls[l]->d[i / 4][i % 4], &accumulator_in_flight, 4);
  }
  warp->pending++;
}

/* Operand B by its descriptor: rows of 128 bytes, swizzled. */
static void read_panel(const struct wgmma *w, uint32_t octet, float b[32][8]) {
  const uint32_t start = (uint32_t)(w->panel & 0x3fff) << 4;
  const uint32_t octet_bytes = (uint32_t)(w->panel >> 32 & 0x3fff) << 4;
  const uint32_t chunks = w->kind == SIMT_WGMMA_DENSE ? 2 : 4;
  if (w->panel >> 62 != 1 || w->panel >> 49 & 7)
    simt_fail(w->line, "the descriptor does not say 128-byte swizzle without an offset");
  for (uint32_t row = 0; row < 8; row++)
    for (uint32_t c = 0; c < chunks; c++) {
      uint16_t chunk[8];
      const uint32_t at = start + octet * octet_bytes + row * PRODUCT_PANEL_ROW_BYTES + 16 * c;
      shared_read(SHARED_WARP, at ^ (at >> 7 & 7) << 4, 16, chunk, w->line);
      for (uint32_t k = 0; k < 8; k++) b[8 * c + k][row] = bf16_to_f32(chunk[k]);
    }
}

static void execute(struct warp *warp, const struct wgmma *w) {
  const bool sparse = w->kind != SIMT_WGMMA_DENSE;
  struct operand_a a;
  warp_unpack_a(&a, w->a, w->meta, sparse, w->kind == SIMT_WGMMA_SPARSE_HIGH, w->line);
  for (uint32_t octet = 0; octet < w->octets; octet++) {
    float b[32][8], *d[SIMT_WARP];
    read_panel(w, octet, b);
    for (int l = 0; l < SIMT_WARP; l++) d[l] = warp->kept[l][octet];
    warp_multiply(&a, b, d);
  }
  simt.report->mma_sparse += sparse ? w->octets : 0;
  simt.report->mma_dense += sparse ? 0 : w->octets;
}

/* A kernel that waits too late may have left the scope of its weights: that they have changed since
 * is what is to be said, not that they are looked at. */
static bool __attribute__((no_sanitize("address")))
has_changed(const struct words4 *now, const struct words4 *then) {
  const volatile uint32_t *words = now->w;
  for (int i = 0; i < 4; i++)
    if (words[i] != then->w[i]) return true;
  return false;
}

static void finish(int line) {
  struct warp *warp = warp_now();
  uint32_t done = 0;
  for (; done < warp->pending && warp->wgmma[done].committed; done++) {
    const struct wgmma *w = &warp->wgmma[done];
    for (int l = 0; l < SIMT_WARP; l++)
      if (has_changed(w->a_at[l], &w->a[l]))
        simt_fail(line, "the weights of lane %d changed while wgmma was in flight", l);
    execute(warp, w);
  }
  if (done < warp->pending) {
    /* Products that nobody committed are not waited for. */
    memmove(warp->wgmma, warp->wgmma + done, (warp->pending - done) * sizeof *warp->wgmma);
    warp->pending -= done;
    return;
  }
  for (int l = 0; done && l < SIMT_WARP; l++) {
    for (uint32_t i = 0; i < 4 * warp->wgmma[0].octets; i++)
      if (memcmp(&warp->d[l][i / 4][i % 4], &accumulator_in_flight, 4))
        simt_fail(line, "an accumulator of lane %d changed while wgmma was in flight", l);
    memcpy(warp->d[l], warp->kept[l], warp->wgmma[0].octets * sizeof *warp->kept[l]);
  }
  warp->pending = 0;
  warp->fenced = false;
}

/* --- a warp has met --- */

void async_run(struct call *const calls[SIMT_WARP], uint32_t first_lane) {
  const struct call *first = calls[0];
  struct warp *warp = &async.warps[first_lane / SIMT_WARP];
  switch (first->op) {
    case OP_EXPECT:
      arrive(block_now(), first->barrier, first->bytes, first->line);
      move_own_clock();
      break;
    case OP_WAIT:
      wait_for(first);
      break;
    case OP_RELEASE:
      for (uint32_t block = 0; block < first->blocks; block++)
        arrive(first->blocks > 1 ? block : block_now(), first->barrier, 0, first->line);
      move_own_clock();
      break;
    case OP_BULK:
      copy_bulk(first);
      break;
    case OP_BULK_PANEL:
      copy_panel(first);
      break;
    case OP_WGMMA:
      issue(calls);
      break;
    case OP_WGMMA_FENCE:
      warp->fenced = true;
      break;
    case OP_WGMMA_COMMIT:
      for (uint32_t i = 0; i < warp->pending; i++) warp->wgmma[i].committed = true;
      break;
    case OP_WGMMA_WAIT:
      finish(first->line);
      break;
    default:
      simt_fail(first->line, "the emulator has no operation %d", (int)first->op);
  }
}

void simt_mbarrier_expect(uint32_t barrier, uint32_t bytes, int line) {
  simt_meet((struct call){.op = OP_EXPECT, .line = line, .barrier = barrier, .bytes = bytes});
}
void simt_mbarrier_wait(uint32_t barrier, uint32_t parity, int line) {
  simt_meet((struct call){.op = OP_WAIT, .line = line, .barrier = barrier, .value = parity});
}
void simt_mbarrier_release(uint32_t barrier, uint32_t count, int line) {
  simt_meet((struct call){.op = OP_RELEASE, .line = line, .barrier = barrier, .blocks = count});
}
void simt_bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier, int line) {
  simt_meet((struct call){.op = OP_BULK,
                          .line = line,
                          .address = to,
                          .from = from,
                          .bytes = bytes,
                          .barrier = barrier});
}
void simt_bulk_copy_panel(uint32_t to, const struct panel_map *map, uint32_t col, uint32_t token,
                          uint32_t barrier, uint32_t count, int line) {
  simt_meet((struct call){.op = OP_BULK_PANEL,
                          .line = line,
                          .address = to,
                          .from = map,
                          .col = col,
                          .token = token,
                          .barrier = barrier,
                          .blocks = count});
}
void simt_wgmma(enum simt_wgmma kind, float (*d)[4], uint32_t octets, const struct words4 *a,
                uint64_t panel, uint32_t meta, int line) {
  simt_meet((struct call){.op = OP_WGMMA,
                          .line = line,
                          .kind = kind,
                          .d = d,
                          .octets = octets,
                          .a = a,
                          .panel = panel,
                          .value = meta});
}
void simt_wgmma_fence(int line) { simt_meet((struct call){.op = OP_WGMMA_FENCE, .line = line}); }
void simt_wgmma_commit(int line) { simt_meet((struct call){.op = OP_WGMMA_COMMIT, .line = line}); }
void simt_wgmma_wait(int line) { simt_meet((struct call){.op = OP_WGMMA_WAIT, .line = line}); }
