/* The end of a segment: sums become outputs, or meet those of other blocks. Included by the bodies
 * of the products, with LOCAL, PANEL_TOKENS and
 *   OUTPUT_THREADS    threads that come here, numbered from 0 by OUTPUT_THREAD (thread_index()
 *                     unless defined)
 *   OUTPUT_BARRIER()  a barrier of exactly these
 *   QUANT_BITS        0 where the weights are bf16 */
#ifndef OUTPUT_THREAD
#define OUTPUT_THREAD() thread_index()
#endif

DEVICE void LOCAL(store)(const struct product_args *args, uint32_t row, uint32_t token, float sum) {
  if (row >= args->rows || token >= args->tokens) return;
  const uint64_t at = token * args->y_stride + row;
  if (args->bias) sum += bf16_widen(global_load(args->bias + row));
  /* y may be the residual: each element is read before the same thread writes it. */
  if (args->residual) sum += bf16_widen(global_load_fresh(args->residual + at));
  if (PANEL_TOKENS <= PRODUCT_PAIR_PANEL_MAX && args->y_wide)
    global_store(args->y_wide + at, sum);
  else
    global_store(args->y + at, bf16_round(sum));
}

#if QUANT_BITS
/* The same sums times the scales of their rows, where a row has one. Rows past the matrix need
 * none. */
DEVICE void LOCAL(scale_rows)(const struct product_args *args, uint32_t strip, uint32_t block,
                              float (*sums)[4], int octets) {
  const uint32_t rows = args->activation ? 2 * args->gate_strips * FRAGMENT_STRIP_ROWS : args->rows;
  const uint32_t row =
      strip * FRAGMENT_STRIP_ROWS + block * FRAGMENT_BLOCK_ROWS + thread_index() % 32 / 4;
  UNROLL
  for (int r = 0; r < 4; r += 2) {
    const uint32_t at = row + 4 * r;
    const float scale = at < rows ? global_load(args->row_scales + at) : 0;
    UNROLL
    for (int n = 0; n < octets; n++) {
      sums[n][r] *= scale;
      sums[n][r + 1] *= scale;
    }
  }
}
#endif

/* A block of 16 rows of the strip, `octets` times 8 tokens of the panel from `first_token` on.
 * sums[octet]: operand C of each m16n8. */
DEVICE void LOCAL(put_block)(const struct product_args *args, const struct product_segment *segment,
                             const struct product_place *place, uint32_t block,
                             uint32_t first_token, float (*sums)[4], int octets) {
  const uint32_t lane = thread_index() % 32;
  float *slot = args->partials + (uint64_t)place->slot * (PANEL_TOKENS * FRAGMENT_STRIP_ROWS);
  UNROLL
  for (int n = 0; n < octets; n++) {
    UNROLL
    for (int r = 0; r < 4; r++) {
      const uint32_t row = block * FRAGMENT_BLOCK_ROWS + lane / 4 + r / 2 * 8;
      const uint32_t token = first_token + 8 * n + 2 * (lane % 4) + r % 2;
      if (segment->peers > 1)
        global_store(slot + token * FRAGMENT_STRIP_ROWS + row, sums[n][r]);
      else
        LOCAL(store)
      (args, place->strip * FRAGMENT_STRIP_ROWS + row, segment->panel * PANEL_TOKENS + token,
       sums[n][r]);
    }
  }
}

/* True, for all threads, in the block that arrives last at a shared output. */
DEVICE bool LOCAL(arrive_last)(const struct product_args *args,
                               const struct product_segment *segment,
                               const struct product_place *place) {
  memory_fence();
  OUTPUT_BARRIER();
  if (OUTPUT_THREAD() == 0) {
    uint32_t *counter = args->counters + place->counter;
    const bool last = global_add(counter, 1) == segment->peers - 1;
    if (last) global_store(counter, 0); /* as the next launch wants it */
    memory_fence();
    shared_store4(shared_base(), last);
  }
  OUTPUT_BARRIER();
  return shared_load4(shared_base());
}

/* The sum of slots [first, end) of the output's, at place `i` of each. */
DEVICE float LOCAL(sum_slots)(const struct product_args *args, const struct product_place *place,
                              uint32_t first, uint32_t end, uint32_t i) {
  const uint64_t slot_floats = PANEL_TOKENS * FRAGMENT_STRIP_ROWS;
  const float *slots = args->partials + place->first_slot * slot_floats;
  float sum = 0;
  for (uint32_t p = first; p < end; p++)
    sum += global_load_fresh(slots + p * place->slot_stride * slot_floats + i);
  return sum;
}

/* f(gate) * up: SiLU is x times the logistic function of x, GELU by tanh that of
 * 2 sqrt(2 / pi) (x + 0.044715 x^3). */
DEVICE void LOCAL(store_pair)(const struct product_args *args, uint32_t row, uint32_t token,
                              float gate, float up) {
  if (row >= args->rows || token >= args->tokens) return;
  if (args->bias) {
    gate += bf16_widen(global_load(args->bias + row));
    up += bf16_widen(global_load(args->bias + args->rows + row));
  }
  const float x =
      args->activation == PAIR_SILU ? gate : 1.59576912f * (gate + 0.044715f * gate * gate * gate);
  global_store(args->y + token * args->y_stride + row, bf16_round(gate / (1 + exp_fast(-x)) * up));
}

/* Adds the output's slots in the order of the tiles. They were written by other blocks and are read
 * past the first-level cache, which may hold older bytes. */
DEVICE void LOCAL(add_slots)(const struct product_args *args, const struct product_segment *segment,
                             const struct product_place *place) {
  const uint64_t slot_floats = PANEL_TOKENS * FRAGMENT_STRIP_ROWS;
  /* Pairs are for decoding; the large panels have no registers to spare for them. */
  const uint32_t gates = PANEL_TOKENS <= PRODUCT_PAIR_PANEL_MAX ? segment->gate_peers : 0;
  const uint32_t strip = gates ? place->strip % args->gate_strips : place->strip;
  for (uint32_t i = OUTPUT_THREAD(); i < slot_floats; i += OUTPUT_THREADS) {
    const uint32_t token = segment->panel * PANEL_TOKENS + i / FRAGMENT_STRIP_ROWS;
    const uint32_t row = strip * FRAGMENT_STRIP_ROWS + i % FRAGMENT_STRIP_ROWS;
    if (token >= args->tokens) return;
    const float rest = LOCAL(sum_slots)(args, place, gates, segment->peers, i);
    if (gates)
      LOCAL(store_pair)(args, row, token, LOCAL(sum_slots)(args, place, 0, gates, i), rest);
    else
      LOCAL(store)(args, row, token, rest);
  }
}

/* The same for a pair in prefill: `rows` rows of the gate and of up, from `gate_row` and `up_row`
 * of the slots of their places on, make the output's rows from `first_row` on. */
DEVICE void LOCAL(add_pair_slots)(const struct product_args *args,
                                  const struct product_segment *segment,
                                  const struct product_place *gate, uint32_t gate_row,
                                  const struct product_place *up, uint32_t up_row, uint32_t rows,
                                  uint32_t first_row) {
  for (uint32_t i = OUTPUT_THREAD(); i < PANEL_TOKENS * rows; i += OUTPUT_THREADS) {
    const uint32_t token = i / rows, row = i % rows, at = token * FRAGMENT_STRIP_ROWS + row;
    if (segment->panel * PANEL_TOKENS + token >= args->tokens) return;
    LOCAL(store_pair)
    (args, first_row + row, segment->panel * PANEL_TOKENS + token,
     LOCAL(sum_slots)(args, gate, 0, segment->peers, at + gate_row),
     LOCAL(sum_slots)(args, up, 0, segment->peers, at + up_row));
  }
}

/* A block of 16 rows of which a thread has the sums of both: into the output. */
DEVICE void LOCAL(put_pair)(const struct product_args *args, const struct product_segment *segment,
                            uint32_t first_row, uint32_t first_token, float (*gate)[4],
                            float (*up)[4], int octets) {
  const uint32_t lane = thread_index() % 32;
  UNROLL
  for (int n = 0; n < octets; n++) {
    UNROLL
    for (int r = 0; r < 4; r++) LOCAL(store_pair)
    (args, first_row + lane / 4 + r / 2 * 8,
     segment->panel * PANEL_TOKENS + first_token + 8 * n + 2 * (lane % 4) + r % 2, gate[n][r],
     up[n][r]);
  }
}

#undef OUTPUT_THREADS
#undef OUTPUT_THREAD
#undef OUTPUT_BARRIER
