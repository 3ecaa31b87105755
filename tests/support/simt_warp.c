/* The instructions of a warp, once all its lanes are there: shared memory, ldmatrix, mma, mma.sp,
 * cp.async. */
#include "support/simt_internal.h"

static const char *const operation_name[] = {"a 4-byte load",
                                             "an 8-byte load",
                                             "a 16-byte load",
                                             "a store",
                                             "ldmatrix",
                                             "ldmatrix, transposed",
                                             "a copy",
                                             "mma",
                                             "mma.sp, low",
                                             "mma.sp, high",
                                             "a shuffle",
                                             "an expectation",
                                             "an mbarrier",
                                             "an arrival",
                                             "a bulk copy",
                                             "a bulk copy of a panel",
                                             "wgmma",
                                             "a fence of wgmma",
                                             "a commit of wgmma",
                                             "a wait for wgmma"};

static void count_conflicts(struct call *const calls[SIMT_WARP], int lanes_per_pass,
                            uint32_t bytes) {
  uint32_t addresses[SIMT_WARP];
  for (int first = 0; first < SIMT_WARP; first += lanes_per_pass) {
    for (int i = 0; i < lanes_per_pass; i++) addresses[i] = calls[first + i]->address;
    simt.report->bank_conflicts += (uint64_t)bank_conflicts(addresses, lanes_per_pass, bytes);
  }
}

static void load_shared(struct call *const calls[SIMT_WARP], int first_lane, uint32_t bytes) {
  for (int l = 0; l < SIMT_WARP; l++)
    shared_read(first_lane + l, calls[l]->address, bytes, calls[l]->out.w, calls[l]->line);
  simt.report->shared_bytes += SIMT_WARP * bytes;
}

static void load_rows(struct call *const calls[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++) {
    uint32_t row[4];
    shared_read(SHARED_WARP, calls[l]->address, 16, row, calls[l]->line);
    for (int i = 0; i < 4; i++) calls[4 * (l % 8) + i]->out.w[l / 8] = row[i];
  }
  simt.report->shared_bytes += SIMT_WARP * 16;
}

/* Lane l gets column l / 4, rows 2 (l % 4) and the next, of each of the four matrices. */
static void load_columns(struct call *const calls[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++) {
    uint16_t row[8]; /* row l % 8 of matrix l / 8 */
    shared_read(SHARED_WARP, calls[l]->address, 16, row, calls[l]->line);
    for (int col = 0; col < 8; col++) {
      uint32_t *to = &calls[4 * col + l % 8 / 2]->out.w[l / 8];
      *to = l % 2 ? (*to & 0xffff) | (uint32_t)row[col] << 16 : row[col];
    }
  }
  simt.report->shared_bytes += SIMT_WARP * 16;
}

static float half_of(uint32_t word, int half) { return bf16_to_f32((uint16_t)(word >> 16 * half)); }

/* The code of group `group` of the 32 columns, row `row`. */
static uint32_t code_of(const uint32_t meta[SIMT_WARP], int row, int group, int selector,
                        int line) {
  const uint32_t word = meta[4 * (row % 8) + 2 * selector + group / 4];
  const uint32_t code = word >> (16 * (row / 8) + 4 * (group % 4)) & 15;
  if ((code & 3) >= code >> 2)
    simt_fail(line,
              "metadata of row %d, group %d is %u: the first position must be below "
              "the second",
              row, group, code);
  return code;
}

void warp_unpack_a(struct operand_a *out, const struct words4 words[SIMT_WARP],
                   const uint32_t meta[SIMT_WARP], bool sparse, int selector, int line) {
  for (int row = 0; row < 16; row++)
    for (int col = 0; col < 16; col++) {
      const struct words4 *lane = &words[4 * (row % 8) + col % 8 / 2];
      out->value[row][col] = half_of(lane->w[row / 8 + 2 * (col / 8)], col % 2);
      out->column[row][col] = col;
      if (!sparse) continue;
      const uint32_t code = code_of(meta, row, col / 2, selector, line);
      out->column[row][col] = col / 2 * 4 + (int)(col % 2 ? code >> 2 : code & 3);
    }
}

void warp_multiply(const struct operand_a *a, float b[32][8], float *const d[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++)
    for (int r = 0; r < 4; r++) {
      const int row = l / 4 + 8 * (r / 2), token = 2 * (l % 4) + r % 2;
      double sum = d[l][r];
      for (int col = 0; col < 16; col++)
        sum += (double)a->value[row][col] * b[a->column[row][col]][token];
      d[l][r] = (float)sum;
    }
}

static void multiply(struct call *const calls[SIMT_WARP], bool sparse, int selector) {
  struct words4 words[SIMT_WARP];
  uint32_t meta[SIMT_WARP];
  struct operand_a a;
  float b[32][8], *d[SIMT_WARP];
  for (int l = 0; l < SIMT_WARP; l++) {
    words[l] = *calls[l]->a;
    meta[l] = calls[l]->value;
    d[l] = *calls[l]->d;
    for (int r = 0; r < (sparse ? 4 : 2); r++)
      for (int half = 0; half < 2; half++)
        b[2 * (l % 4) + 8 * r + half][l / 4] = half_of(calls[l]->b.w[r], half);
  }
  warp_unpack_a(&a, words, meta, sparse, selector, calls[0]->line);
  warp_multiply(&a, b, d);
}

static void shuffle_lanes(struct call *const calls[SIMT_WARP]) {
  for (int l = 0; l < SIMT_WARP; l++) {
    if (calls[l]->address >= SIMT_WARP)
      simt_fail(calls[l]->line, "a shuffle from lane %u", calls[l]->address);
    calls[l]->out.w[0] = calls[calls[l]->address]->value;
  }
}

static void copy_chunk(struct lane *lane, int thread) {
  const struct call *call = &lane->call;
  shared_expect(thread, call->address, call->line);
  if (call->bytes > 16) simt_fail(call->line, "a copy of %u bytes", call->bytes);
  if ((uintptr_t)call->from % 16) simt_fail(call->line, "a copy from a misaligned address");
  if (call->bytes) simt_check_global(call->from, call->bytes, false);
  if (lane->copy_count == SIMT_COPIES_MAX)
    simt_fail(call->line, "more copies than the emulator holds");
  lane->copies[lane->copy_count++] =
      (struct copy){call->address, call->bytes, lane->group, call->from};
  simt.report->copied_bytes += call->bytes;
}

void warp_run(uint32_t first_lane) {
  struct call *calls[SIMT_WARP];
  for (int l = 0; l < SIMT_WARP; l++) calls[l] = &simt.lanes[first_lane + (uint32_t)l].call;
  for (int l = 1; l < SIMT_WARP; l++)
    if (calls[l]->op != calls[0]->op || calls[l]->line != calls[0]->line)
      simt_fail(calls[l]->line, "the warp diverges: lane 0 is at %s of line %d, lane %d at %s",
                operation_name[calls[0]->op], calls[0]->line, l, operation_name[calls[l]->op]);
  switch (calls[0]->op) {
    case OP_LOAD4:
      count_conflicts(calls, 32, 4);
      load_shared(calls, (int)first_lane, 4);
      break;
    case OP_LOAD8: /* half a warp at a time */
      count_conflicts(calls, 16, 8);
      load_shared(calls, (int)first_lane, 8);
      break;
    case OP_LOAD16: /* a quarter of a warp at a time: 128 bytes */
      count_conflicts(calls, 8, 16);
      load_shared(calls, (int)first_lane, 16);
      break;
    case OP_STORE4:
      break; /* done by the lanes: one alone may store */
    case OP_MATRICES:
      count_conflicts(calls, 8, 16);
      load_rows(calls);
      break;
    case OP_MATRICES_TRANSPOSED:
      count_conflicts(calls, 8, 16);
      load_columns(calls);
      break;
    case OP_COPY:
      count_conflicts(calls, 8, 16);
      for (uint32_t l = 0; l < SIMT_WARP; l++)
        copy_chunk(&simt.lanes[first_lane + l], (int)(first_lane + l));
      break;
    case OP_DENSE:
      multiply(calls, false, 0);
      simt.report->mma_dense++;
      break;
    case OP_SPARSE_LOW:
    case OP_SPARSE_HIGH:
      multiply(calls, true, calls[0]->op == OP_SPARSE_HIGH);
      simt.report->mma_sparse++;
      break;
    case OP_SHUFFLE:
      shuffle_lanes(calls);
      break;
    default:
      async_run(calls, first_lane);
      break;
  }
}
