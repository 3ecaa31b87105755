/* Attention of a pass's rows over pages of keys and values, one kernel: included for each row of
 * ATTEND_KERNELS, with
 *   LANES  lanes that share a position's row, 8 elements (16 bytes) each
 *   ROWS   query rows of an item, which all meet what a lane has loaded
 *
 * Reading pages is what costs. A warp takes every fourth page of the piece and loads its 16 rows of
 * keys and of values at once, 16 bytes a lane, straight from global memory: nobody else wants them.
 * A score's parts lie in LANES lanes; those of all positions are added by halving: each exchange
 * sends away the half of the sums that the other lane will keep, so that 16 positions cost LANES
 * / 2 exchanges and each pair of lanes ends with the score of one position. */

#define AT_ONCE (32 / LANES)         /* positions of one load of the warp */
#define LOADS (SERVE_PAGE / AT_ONCE) /* of a page's keys */
#define WIDTH (8 * LANES)            /* elements of a row that lanes hold */
#define PARTIAL (ROWS * (WIDTH + 2)) /* floats */
#define ATTEND__(lanes, rows, suffix) attend_##lanes##x##rows##suffix
#define ATTEND_(lanes, rows, suffix) ATTEND__(lanes, rows, suffix)
#define ATTEND(suffix) ATTEND_(LANES, ROWS, suffix)

/* What a warp, and then the block, knows of its rows. */
struct ATTEND(_state) {
  float q[ROWS][8];
  uint32_t low[ROWS], high[ROWS]; /* positions that the row sees; none where it does not exist */
  float max[ROWS];
  float sum[ROWS];    /* of this lane's positions */
  float mix[ROWS][8]; /* of this lane's columns, over this lane's positions */
};

DEVICE void ATTEND(_open)(const struct serve_attend_args *a, const struct attend_item *item,
                          struct ATTEND(_state) * s) {
  const uint32_t column = thread_index() % LANES * 8;
  UNROLL for (uint32_t r = 0; r < ROWS; r++) {
    const struct attend_row row = attend_row(a, item, r);
    s->low[r] = row.low;
    s->high[r] = row.high;
    s->max[r] = ATTEND_LEAST;
    s->sum[r] = 0;
    const float *q = a->q + ((uint64_t)row.row * a->heads + row.head) * a->head_dim;
    UNROLL for (uint32_t e = 0; e < 8; e++) {
      s->q[r][e] = row.high && column + e < a->head_dim ? global_load(q + column + e) : 0;
      s->mix[r][e] = 0;
    }
  }
}

/* The page's rows of keys or of values: zeros in lanes past the last column. */
DEVICE void ATTEND(_load)(const struct serve_attend_args *a, const uint16_t *from,
                          struct words4 rows[LOADS]) {
  const uint32_t lane = thread_index() % 32, column = lane % LANES * 8;
  UNROLL for (uint32_t j = 0; j < LOADS; j++) {
    rows[j] = (struct words4){{0, 0, 0, 0}};
    if (column < a->cache.stride)
      rows[j] = global_load16(from + (j * AT_ONCE + lane / LANES) * a->cache.stride + column);
  }
}

/* Of two lanes' sums for 2 n positions, the n that this one keeps. */
DEVICE void ATTEND(_halve)(float part[LOADS], uint32_t step, uint32_t n) {
  const bool upper = thread_index() & step;
  UNROLL for (uint32_t i = 0; i < LOADS / 2; i++) {
    if (i >= n) continue;
    const float mine = upper ? part[n + i] : part[i], other = upper ? part[i] : part[n + i];
    part[i] = mine + float_of_bits(shuffle_xor(bits_of_float(other), step));
  }
}

/* The score of row r with position AT_ONCE * (lane % LANES / 2) + lane / LANES of the page. */
DEVICE float ATTEND(_score)(const struct serve_attend_args *a, const struct ATTEND(_state) * s,
                            uint32_t r, const struct words4 keys[LOADS]) {
  float part[LOADS];
  UNROLL for (uint32_t j = 0; j < LOADS; j++) {
    part[j] = 0;
    UNROLL for (uint32_t e = 0; e < 8; e++) part[j] =
        fmaf(s->q[r][e], cached(a->cache.type, &keys[j], e), part[j]);
  }
#if LANES == 32
  ATTEND(_halve)(part, 16, 8);
#endif
#if LANES >= 16
  ATTEND(_halve)(part, 8, 4);
#endif
#if LANES >= 8
  ATTEND(_halve)(part, 4, 2);
#endif
  ATTEND(_halve)(part, 2, 1);
  part[0] += float_of_bits(shuffle_xor(bits_of_float(part[0]), 1));
  const float scaled = a->scale * part[0];
  return a->softcap > 0 ? a->softcap * tanhf(scaled / a->softcap) : scaled;
}

/* Adds 16 positions from `first` on to every row. */
DEVICE void ATTEND(_page)(const struct serve_attend_args *a, struct ATTEND(_state) * s,
                          const uint16_t *keys_from, const uint16_t *values_from, uint32_t first,
                          uint32_t rows) {
  const uint32_t lane = thread_index() % 32;
  const uint32_t position = first + AT_ONCE * (lane % LANES / 2) + lane / LANES;
  struct words4 keys[LOADS], values[LOADS];
  ATTEND(_load)(a, keys_from, keys);
  ATTEND(_load)(a, values_from, values);
  UNROLL for (uint32_t r = 0; r < ROWS; r++) {
    if (r >= rows) continue;
    const float score = ATTEND(_score)(a, s, r, keys);
    const bool seen = position >= s->low[r] && position < s->high[r];
    const float top = warp_max(seen ? score : ATTEND_LEAST);
    const float most = top > s->max[r] ? top : s->max[r], rescale = expf(s->max[r] - most);
    const float weight = seen ? expf(score - most) : 0;
    s->max[r] = most;
    s->sum[r] = s->sum[r] * rescale + (lane % 2 ? 0 : weight);
    UNROLL for (uint32_t e = 0; e < 8; e++) s->mix[r][e] *= rescale;
    UNROLL for (uint32_t j = 0; j < LOADS; j++) {
      const uint32_t holder = lane / LANES * LANES + 2 * j;
      const float w = float_of_bits(shuffle_from(bits_of_float(weight), holder));
      UNROLL for (uint32_t e = 0; e < 8; e++) s->mix[r][e] =
          fmaf(w, cached(a->cache.type, &values[j], e), s->mix[r][e]);
    }
  }
}

/* Adds up what the lanes of a warp hold of a row, and leaves it in shared memory: columns in the
 * order (e, lane), maximum, sum. */
DEVICE void ATTEND(_leave)(struct ATTEND(_state) * s, uint32_t r) {
  const uint32_t lane = thread_index() % 32, group = lane / LANES;
  const uint32_t at = shared_base() + 4 * (thread_index() / 32 * PARTIAL + r * (WIDTH + 2));
  UNROLL for (uint32_t e = 0; e < 8; e++) UNROLL for (uint32_t step = LANES; step < 32; step *= 2)
      s->mix[r][e] += float_of_bits(shuffle_xor(bits_of_float(s->mix[r][e]), step));
  UNROLL for (uint32_t i = 0; i < 8 / AT_ONCE; i++) {
    float mine = 0;
    UNROLL for (uint32_t g = 0; g < AT_ONCE; g++) if (g == group) mine = s->mix[r][i * AT_ONCE + g];
    shared_store4(at + 4 * (32 * i + lane), bits_of_float(mine));
  }
  const float sum = warp_sum(s->sum[r]);
  if (lane == 0) {
    shared_store4(at + 4 * WIDTH, bits_of_float(s->max[r]));
    shared_store4(at + 4 * (WIDTH + 1), bits_of_float(sum));
  }
}

/* What the block's warps left of row r, in their order: factors by which each counts, and the sum.
 * Returns the maximum. */
DEVICE float ATTEND(_weigh)(uint32_t r, float factor[ATTEND_WARPS], float *sum) {
  float max[ATTEND_WARPS], most = ATTEND_LEAST;
  const uint32_t at = shared_base() + 4 * (r * (WIDTH + 2) + WIDTH);
  UNROLL for (uint32_t w = 0; w < ATTEND_WARPS; w++) {
    max[w] = float_of_bits(shared_load4(at + 4 * w * PARTIAL));
    most = max[w] > most ? max[w] : most;
  }
  *sum = 0;
  UNROLL for (uint32_t w = 0; w < ATTEND_WARPS; w++) {
    factor[w] = expf(max[w] - most);
    *sum += factor[w] * float_of_bits(shared_load4(at + 4 * w * PARTIAL + 4));
  }
  return most;
}

/* From the warps' shares to the output, where this is the only piece, or to its place among the
 * item's. Place i of a row holds column attend_column(i). */
DEVICE void ATTEND(_put)(const struct serve_attend_args *a, const struct attend_item *item,
                         bool alone, float *partial) {
  for (uint32_t r = 0; r < item->rows; r++) {
    float factor[ATTEND_WARPS], sum;
    const float most = ATTEND(_weigh)(r, factor, &sum);
    const struct attend_row row = attend_row(a, item, r);
    for (uint32_t first = 0; first < WIDTH; first += ATTEND_THREADS) {
      /* all lanes load: places past the last are those of the first */
      const uint32_t i = first + thread_index(), place = i < WIDTH ? i : 0;
      float mixed = 0;
      UNROLL for (uint32_t w = 0; w < ATTEND_WARPS; w++) mixed +=
          factor[w] *
          float_of_bits(shared_load4(shared_base() + 4 * (w * PARTIAL + r * (WIDTH + 2) + place)));
      if (i >= WIDTH) continue;
      if (alone)
        attend_store(a, &row, i % LANES * 8 + i / LANES, mixed / sum);
      else
        global_store(partial + r * (WIDTH + 2) + i, mixed);
    }
    if (alone || thread_index()) continue;
    global_store(partial + r * (WIDTH + 2) + WIDTH, most);
    global_store(partial + r * (WIDTH + 2) + WIDTH + 1, sum);
  }
}

/* The item's pieces, in order. */
DEVICE void ATTEND(_join)(const struct serve_attend_args *a, const struct attend_item *item,
                          const float *partials) {
  for (uint32_t i = thread_index(); i < item->rows * WIDTH; i += ATTEND_THREADS) {
    const uint32_t r = i / WIDTH, place = i % WIDTH;
    const float *row = partials + r * (WIDTH + 2);
    float most = ATTEND_LEAST, sum = 0, mixed = 0;
    for (uint32_t p = 0; p < item->pieces; p++) {
      const float max = global_load_fresh(row + p * PARTIAL + WIDTH);
      most = max > most ? max : most;
    }
    for (uint32_t p = 0; p < item->pieces; p++) {
      const float factor = expf(global_load_fresh(row + p * PARTIAL + WIDTH) - most);
      sum += factor * global_load_fresh(row + p * PARTIAL + WIDTH + 1);
      mixed += factor * global_load_fresh(row + p * PARTIAL + place);
    }
    const struct attend_row at = attend_row(a, item, r);
    attend_store(a, &at, place % LANES * 8 + place / LANES, mixed / sum);
  }
}

DEVICE void ATTEND(_body)(const struct serve_attend_args *a) {
  struct attend_item item = attend_item(a);
  struct ATTEND(_state) s;
  if (item.piece >= item.pieces) return;
  const uint32_t from = (item.first_piece + item.piece) * a->piece;
  const uint32_t end = item.high - from < a->piece ? item.high : from + a->piece;
  const uint32_t begin = (item.low > from ? item.low : from) / SERVE_PAGE;
  ATTEND(_open)(a, &item, &s);
  for (uint32_t page = begin + thread_index() / 32; page * SERVE_PAGE < end; page += ATTEND_WARPS) {
    const uint32_t at =
        global_load(a->cache.pages + (uint64_t)item.slot * a->cache.page_most + page);
    ATTEND(_page)
    (a, &s, a->cache.memory + cache_row(&a->cache, at, 0, item.kv_head, 0),
     a->cache.memory + cache_row(&a->cache, at, 1, item.kv_head, 0), page * SERVE_PAGE, item.rows);
  }
  UNROLL for (uint32_t r = 0; r < ROWS; r++) if (r < item.rows) ATTEND(_leave)(&s, r);
  block_barrier();
  float *partials = a->partials + (uint64_t)item.index * a->pieces * PARTIAL;
  ATTEND(_put)(a, &item, item.pieces == 1, partials + item.piece * PARTIAL);
  if (item.pieces > 1 && last_to_arrive(a->counters + item.index, item.pieces))
    ATTEND(_join)(a, &item, partials);
}
KERNEL(ATTEND(), ATTEND(_body), ATTEND_THREADS, struct serve_attend_args)

#undef AT_ONCE
#undef LOADS
#undef WIDTH
#undef PARTIAL
#undef ATTEND__
#undef ATTEND_
#undef ATTEND
#undef LANES
#undef ROWS
