/* See plan.h. */
#include "kernel/cuda/plan.h"

#include "base/mem.h"

enum { PLAN_BLOCKS_MAX = 65535, PLAN_OUTPUTS_MAX = 1 << 24 };

/* A piece of the outputs that are cut, and the block it is for. */
struct piece {
  uint32_t block;
  struct product_segment segment;
};

struct planner {
  struct product_plan *plan;
  const struct fragment_matrix *f;
  const uint32_t *order; /* of a plan for clusters */
  bool pair;             /* in clusters: strips of gate and up take turns */
  bool cuts_all;         /* of a pair: all outputs are cut, and those of gate and up meet */
  struct product_costs costs;
  uint32_t whole; /* outputs dealt whole, a multiple of the blocks; the others are cut */
  double *end; /* (blocks): the cost, counted over the cut outputs, where the block's share ends */
  struct piece *pieces; /* in the order of outputs and tiles, and so of blocks */
  uint32_t piece_count;
};

/* A cluster's strip `s`, among those of the matrix. */
static int64_t strip_of(const struct planner *p, int64_t s) {
  return p->pair ? product_pair_strip(s, p->f->strips / 2) : s;
}

/* What tile `i` of an output costs: the i-th of its strip, or, for a cluster, the dearest of its
 * strips in column i. */
static double tile_cost(const struct planner *p, uint32_t output, int64_t i) {
  const struct fragment_matrix *f = p->f;
  const int64_t unit = output / p->plan->panels, cluster = p->plan->cluster;
  bool sparse = true;
  if (cluster)
    for (int64_t s = unit * cluster; s < (unit + 1) * cluster && s < f->strips; s++)
      sparse &= p->order[strip_of(p, s) * f->tiles_per_strip + i] & 1;
  else
    sparse = i < (int64_t)f->strip[unit].sparse_tiles;
  return sparse ? p->costs.sparse_tile : p->costs.dense_tile;
}

static double output_cost(const struct planner *p, uint32_t output) {
  double cost = 0;
  for (int64_t i = 0; i < p->f->tiles_per_strip; i++) cost += tile_cost(p, output, i);
  return cost;
}

/* Tiles [first, end) of an output. */
static struct product_segment segment_of(const struct planner *p, uint32_t output, int64_t first,
                                         int64_t end) {
  if (p->plan->cluster)
    return (struct product_segment){.column = (uint32_t)first,
                                    .sparse = (uint16_t)(end - first),
                                    .strip = output / p->plan->panels * p->plan->cluster,
                                    .panel = output % p->plan->panels,
                                    .output = output,
                                    .peers = 1};
  const int64_t strip = output / p->plan->panels;
  const int64_t sparse = p->f->strip[strip].sparse_tiles;
  const int64_t sparse_end = end < sparse ? end : sparse;
  const int64_t sparse_here = first < sparse_end ? sparse_end - first : 0;
  return (struct product_segment){
      .offset = fragment_tile_offset(p->f, strip, first),
      .column = (uint32_t)(strip * p->f->tiles_per_strip + first),
      .sparse = (uint16_t)sparse_here,
      .dense = (uint16_t)(end - first - sparse_here),
      .strip = (uint32_t)strip,
      .panel = output % p->plan->panels,
      .output = output,
      .peers = 1,
  };
}

/* Each block's share of the cut outputs is what it lacks to an equal part of everything. */
static void share_out(struct planner *p) {
  const struct product_plan *plan = p->plan;
  double total = 0, cut = 0, room = 0, sum = 0, cost = 0;
  for (uint32_t b = 0; b < plan->blocks; b++) p->end[b] = 0;
  for (uint32_t o = 0; o < plan->outputs; o++) {
    /* Panels of the same strips follow each other and cost the same. */
    if (o % plan->panels == 0) cost = output_cost(p, o);
    total += cost;
    if (o < p->whole)
      p->end[o % plan->blocks] -= cost;
    else
      cut += cost;
  }
  for (uint32_t b = 0; b < plan->blocks; b++) {
    p->end[b] += total / plan->blocks;
    if (p->end[b] < 0) p->end[b] = 0;
    room += p->end[b];
  }
  for (uint32_t b = 0; b < plan->blocks; b++) {
    sum += p->end[b];
    p->end[b] = cut * (sum / room);
  }
}

static void put_piece(struct planner *p, uint32_t block, uint32_t output, int64_t first,
                      int64_t end) {
  p->pieces[p->piece_count++] = (struct piece){block, segment_of(p, output, first, end)};
}

/* A tile goes to the block in whose share its middle lies. */
static void cut_outputs(struct planner *p) {
  const struct product_plan *plan = p->plan;
  double done = 0;
  uint32_t block = 0;
  for (uint32_t o = p->whole; o < plan->outputs; o++) {
    const int64_t tiles = p->f->tiles_per_strip;
    int64_t first = 0;
    for (int64_t i = 0; i < tiles; i++) {
      const double cost = tile_cost(p, o, i);
      uint32_t owner = block;
      while (owner + 1 < plan->blocks && done + cost / 2 >= p->end[owner]) owner++;
      if (owner != block && i > first) {
        put_piece(p, block, o, first, i);
        first = i;
      }
      block = owner;
      done += cost;
    }
    put_piece(p, block, o, first, tiles);
  }
}

/* The pieces of an output follow each other; where there are several, each gets a slot. */
static void number_slots(struct planner *p) {
  struct product_plan *plan = p->plan;
  for (uint32_t i = 0, end; i < p->piece_count; i = end) {
    for (end = i + 1; end < p->piece_count; end++)
      if (p->pieces[end].segment.output != p->pieces[i].segment.output) break;
    if (end - i == 1) continue;
    for (uint32_t j = i; j < end; j++) {
      struct product_segment *segment = &p->pieces[j].segment;
      segment->peers = end - i;
      segment->first_slot = plan->slots;
      segment->slot = plan->slots + (j - i);
    }
    plan->slots += end - i;
  }
}

/* The pieces of a gate's output and of the same strip of up share slots and a counter: the gate's
 * pieces first. */
static void number_pairs(struct planner *p) {
  struct product_plan *plan = p->plan;
  const uint32_t gates = plan->outputs / 2;
  uint32_t up = 0;
  while (p->pieces[up].segment.output < gates) up++;
  for (uint32_t gate = 0, output = 0; output < gates; output++) {
    const uint32_t first_gate = gate, first_up = up;
    while (gate < p->piece_count && p->pieces[gate].segment.output == output) gate++;
    while (up < p->piece_count && p->pieces[up].segment.output == output + gates) up++;
    const uint32_t peers = gate - first_gate + up - first_up;
    for (uint32_t i = 0; i < peers; i++) {
      const bool of_gate = i < gate - first_gate;
      struct product_segment *segment =
          &p->pieces[of_gate ? first_gate + i : first_up + i - (gate - first_gate)].segment;
      segment->output = output;
      segment->peers = peers;
      segment->gate_peers = gate - first_gate;
      segment->first_slot = plan->slots;
      segment->slot = plan->slots + i;
    }
    plan->slots += peers;
  }
}

static void list_segments(struct planner *p) {
  struct product_plan *plan = p->plan;
  uint32_t next = 0;
  for (uint32_t b = 0; b < plan->blocks; b++) {
    plan->first_segment[b] = plan->segments;
    for (uint32_t o = b; o < p->whole; o += plan->blocks)
      plan->segment[plan->segments++] = segment_of(p, o, 0, p->f->tiles_per_strip);
    for (; next < p->piece_count && p->pieces[next].block == b; next++)
      plan->segment[plan->segments++] = p->pieces[next].segment;
  }
  plan->first_segment[plan->blocks] = plan->segments;
  INVARIANT(next == p->piece_count);
}

/* `p` has the matrix and its costs, `plan` the panels' size, the blocks and the cluster. */
static enum status make_plan(struct product_plan *out, struct product_plan plan, struct planner p,
                             uint32_t tokens, struct error *err) {
  const struct fragment_matrix *f = p.f;
  const uint32_t blocks = plan.blocks, strips_each = plan.cluster ? plan.cluster : 1;
  INVARIANT(tokens && plan.panel_tokens && blocks && p.costs.sparse_tile && p.costs.dense_tile);
  p.plan = &plan;
  plan.panels = (tokens - 1) / plan.panel_tokens + 1;
  const uint64_t units = ((uint64_t)f->strips + strips_each - 1) / strips_each;
  const uint64_t outputs = units * plan.panels;
  if (outputs > PLAN_OUTPUTS_MAX || blocks > PLAN_BLOCKS_MAX)
    return error_set(err, STATUS_REFUSED,
                     "a product of %lld rows for %u tokens on %u blocks is too large for one "
                     "launch; give it fewer tokens at a time",
                     (long long)f->rows, tokens, blocks);
  plan.outputs = (uint32_t)outputs;
  const uint32_t rounds = plan.outputs / blocks;
  p.whole = rounds > 1 && !p.cuts_all ? (rounds - 1) * blocks : 0;
  /* A piece begins with an output or with a block. */
  const size_t pieces = plan.outputs - p.whole + blocks;
  enum status status = STATUS_FAILED;
  p.end = mem_alloc(blocks, sizeof *p.end, err);
  p.pieces = mem_alloc(pieces, sizeof *p.pieces, err);
  plan.segment = mem_alloc(p.whole + pieces, sizeof *plan.segment, err);
  plan.first_segment = mem_alloc((size_t)blocks + 1, sizeof *plan.first_segment, err);
  if (!p.end || !p.pieces || !plan.segment || !plan.first_segment) goto out;
  share_out(&p);
  cut_outputs(&p);
  if (p.cuts_all)
    number_pairs(&p);
  else
    number_slots(&p);
  list_segments(&p);
  *out = plan;
  status = STATUS_OK;
out:
  mem_free(p.end);
  mem_free(p.pieces);
  if (status) product_plan_release(&plan);
  return status;
}

enum status product_plan_make(struct product_plan *out, const struct fragment_matrix *f,
                              uint32_t tokens, uint32_t panel_tokens, uint32_t blocks,
                              struct product_costs costs, struct error *err) {
  const struct product_plan plan = {.panel_tokens = panel_tokens, .blocks = blocks};
  return make_plan(out, plan, (struct planner){.f = f, .costs = costs}, tokens, err);
}

enum status product_plan_make_pair(struct product_plan *out, const struct fragment_matrix *f,
                                   uint32_t tokens, uint32_t panel_tokens, uint32_t blocks,
                                   struct product_costs costs, struct error *err) {
  INVARIANT(f->strips % 2 == 0);
  const struct product_plan plan = {.panel_tokens = panel_tokens, .blocks = blocks};
  return make_plan(out, plan, (struct planner){.f = f, .cuts_all = true, .costs = costs}, tokens,
                   err);
}

enum status product_plan_make_clusters(struct product_plan *out, const struct fragment_matrix *f,
                                       const uint32_t *order, uint32_t tokens,
                                       uint32_t panel_tokens, uint32_t clusters, uint32_t cluster,
                                       struct product_costs costs, struct error *err) {
  INVARIANT(order && cluster);
  const struct product_plan plan = {
      .panel_tokens = panel_tokens, .blocks = clusters, .cluster = cluster};
  return make_plan(out, plan, (struct planner){.f = f, .order = order, .costs = costs}, tokens,
                   err);
}

enum status product_plan_make_pair_clusters(struct product_plan *out,
                                            const struct fragment_matrix *f, const uint32_t *order,
                                            uint32_t tokens, uint32_t panel_tokens,
                                            uint32_t clusters, uint32_t cluster,
                                            struct product_costs costs, struct error *err) {
  INVARIANT(order && cluster && cluster % 2 == 0 && f->strips % 2 == 0);
  const struct product_plan plan = {
      .panel_tokens = panel_tokens, .blocks = clusters, .cluster = cluster};
  return make_plan(out, plan,
                   (struct planner){.f = f, .order = order, .pair = true, .costs = costs}, tokens,
                   err);
}

void product_plan_release(struct product_plan *plan) {
  mem_free(plan->segment);
  mem_free(plan->first_segment);
  *plan = (struct product_plan){0};
}

size_t product_plan_counters(const struct product_plan *plan) {
  return (size_t)plan->outputs * (plan->cluster ? plan->cluster : 1);
}

size_t product_plan_slot_bytes(const struct product_plan *plan) {
  return (size_t)plan->slots * (plan->cluster ? plan->cluster : 1) * plan->panel_tokens *
         FRAGMENT_STRIP_ROWS * sizeof(float);
}

size_t product_workspace_bytes(const struct product_plan *plan) {
  return product_plan_slot_bytes(plan) + product_plan_counters(plan) * sizeof(uint32_t) +
         (size_t)plan->segments * sizeof(struct product_segment) +
         ((size_t)plan->blocks + 1) * sizeof(uint32_t);
}
