/* The vocabulary of our GPU kernels on the device: the only place with PTX. tests/support/simt.h is
 * the same vocabulary on the host; what a function means is said here.
 *
 * Addresses in shared memory are u32, as the instructions want them. */
#ifndef TSR_KERNEL_CUDA_SIMT_PTX_H
#define TSR_KERNEL_CUDA_SIMT_PTX_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
/* Makes the kernel `name` of `threads` threads, which runs body(&args) with the launch's argument.
 */
#define KERNEL(name, body, threads, type)                  \
  extern "C" __global__ void __launch_bounds__(threads, 1) \
      name(const __grid_constant__ type args) {            \
    body(&args);                                           \
  }

struct words2 {
  uint32_t w[2];
};
struct words4 {
  uint32_t w[4];
};

DEVICE uint32_t thread_index(void) { return threadIdx.x; }
DEVICE uint32_t block_index(void) { return blockIdx.x; }

/* First byte of the block's dynamic shared memory. */
DEVICE uint32_t shared_base(void) {
  extern __shared__ uint4 simt_shared[];
  return (uint32_t)__cvta_generic_to_shared(simt_shared);
}

/* --- shared memory; addresses aligned to the width --- */

DEVICE uint32_t shared_load4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
DEVICE struct words2 shared_load8(uint32_t address) {
  struct words2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.w[0]), "=r"(v.w[1])
               : "r"(address)
               : "memory");
  return v;
}
DEVICE struct words4 shared_load16(uint32_t address) {
  struct words4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(address)
               : "memory");
  return v;
}
DEVICE void shared_store4(uint32_t address, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
/* ldmatrix.x4: lane l addresses row l % 8 (16 bytes) of matrix l / 8 and receives, of each matrix,
 * the two bf16 2 (l % 4), 2 (l % 4) + 1 of row l / 4. All lanes of the warp together. */
DEVICE struct words4 load_matrices(uint32_t address) {
  struct words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(address)
               : "memory");
  return v;
}

/* The same, each matrix transposed: elements 2 (l % 4), 2 (l % 4) + 1 of column l / 4. */
DEVICE struct words4 load_matrices_transposed(uint32_t address) {
  struct words4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(address)
               : "memory");
  return v;
}

/* --- asynchronous copies from global to shared memory --- */

/* 16 bytes at `to`: `bytes` of them from `from`, then zeros. Both addresses aligned to 16, also
 * where no byte is read. */
DEVICE void async_copy16(uint32_t to, const void *from, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
/* Closes the thread's group of copies. */
DEVICE void async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits until at most `pending` (0 to 6) of the thread's groups have not arrived. The instruction
 * takes a constant; the branch is the same for all. */
DEVICE void async_wait(uint32_t pending) {
  switch (pending) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 4:
      asm volatile("cp.async.wait_group 4;" ::: "memory");
      break;
    case 5:
      asm volatile("cp.async.wait_group 5;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 6;" ::: "memory");
      break;
  }
}

/* --- synchronization --- */

DEVICE void block_barrier(void) { __syncthreads(); }
/* Orders the thread's accesses to global memory for all other blocks. */
DEVICE void memory_fence(void) { __threadfence(); }

/* --- global memory; naturally aligned --- */

/* `global_load` is for what nobody writes during the launch. */
#define global_load(pointer) (*(pointer))
#define global_load_fresh(pointer) __ldcg(pointer)
#define global_store(pointer, value) (*(pointer) = (value))
DEVICE uint32_t global_add(uint32_t *counter, uint32_t value) { return atomicAdd(counter, value); }
DEVICE void global_add_long(unsigned long long *counter, unsigned long long value) {
  atomicAdd(counter, value);
}
/* 16 bytes at once, aligned to that. */
DEVICE struct words4 global_load16(const void *pointer) {
  const uint4 v = *(const uint4 *)pointer;
  return {{v.x, v.y, v.z, v.w}};
}
DEVICE void global_store16(void *pointer, struct words4 v) {
  *(uint4 *)pointer = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]);
}

/* --- between the lanes of a warp, all together --- */

/* What lane (own ^ mask), or lane `lane`, brings. */
DEVICE uint32_t shuffle_xor(uint32_t value, uint32_t mask) {
  return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
DEVICE uint32_t shuffle_from(uint32_t value, uint32_t lane) {
  return __shfl_sync(0xffffffffu, value, (int)lane);
}

/* --- arithmetic --- */

DEVICE uint16_t bf16_round(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
DEVICE float bf16_widen(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }
DEVICE float f16_widen(uint16_t x) { return __half2float(__ushort_as_half(x)); }
DEVICE uint16_t f16_round(float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE uint32_t bits_of_float(float x) { return __float_as_uint(x); }
DEVICE float float_of_bits(uint32_t x) { return __uint_as_float(x); }
DEVICE uint64_t bits_of_double(double x) { return (uint64_t)__double_as_longlong(x); }
DEVICE double double_of_bits(uint64_t x) { return __longlong_as_double((long long)x); }
/* Good to a few units in the last place of a number that is not close to zero. */
DEVICE float log_fast(float x) { return __logf(x); }
DEVICE float exp_fast(float x) { return __expf(x); }
/* a * b + c, rounded once. */
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
/* 2^x, to 2 units in the last place; 0 for minus infinity. */
DEVICE float exp2_fast(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}
/* Two bf16, `low` in the low half, rounded to nearest even. */
DEVICE uint32_t bf16_pair(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
/* a - b, half by half. */
DEVICE uint32_t bf16_pair_subtract(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("{\n.reg .b32 one, minus;\nmov.b32 one, 0x3f803f80;\nxor.b32 minus, %2, 0x80008000;\n"
      "fma.rn.bf16x2 %0, %1, one, minus;\n}"
      : "=r"(v)
      : "r"(a), "r"(b));
  return v;
}
/* Byte i of the result is byte (selector >> 4 i) % 8 of the eight bytes a, b. */
DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

/* d (16 x 8) += a (16 x 16) b (16 x 8) in bf16 with fp32 sums. Lane l, g = l / 4, t = l % 4:
 * a[r]: row g + 8 (r % 2), columns 2 t + 8 (r / 2) and the next; b: columns (of A) 2 t + 8 r and
 * the next, token g; d[r]: row g + 8 (r / 2), token 2 t + r % 2. */
DEVICE void mma_dense(float d[4], const struct words4 *a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a->w[0]), "r"(a->w[1]), "r"(a->w[2]), "r"(a->w[3]), "r"(b0), "r"(b1));
}

/* d (16 x 8) += a (16 x 32, 2:4) b (32 x 8): a holds the 16 kept columns as above, b[r] columns
 * 2 t + 8 r. low takes the metadata of lanes t = 0, 1, high that of t = 2, 3; low half of a word:
 * row g, high half: row g + 8, four codes i0 | i1 << 2 with i0 < i1. */
#define SIMT_MMA_SPARSE(name, selector)                                                         \
  DEVICE void name(float d[4], const struct words4 *a, const struct words4 *b, uint32_t meta) { \
    asm volatile(                                                                               \
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "             \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, "            \
        "%12, " selector ";"                                                                    \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                        \
        : "r"(a->w[0]), "r"(a->w[1]), "r"(a->w[2]), "r"(a->w[3]), "r"(b->w[0]), "r"(b->w[1]),   \
          "r"(b->w[2]), "r"(b->w[3]), "r"(meta));                                               \
  }
SIMT_MMA_SPARSE(mma_sparse_low, "0x0")
SIMT_MMA_SPARSE(mma_sparse_high, "0x1")

#endif
