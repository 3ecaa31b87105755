/* The vocabulary of sm_90a on the device: what the copy engine and wgmma add to simt_ptx.h. Only
 * the product of clusters (cluster_body.h) uses it. What a function means is said here; its double
 * on the host is in tests/support/simt.h.
 *
 * Functions of a warp are called by all of its lanes together; where one lane is enough, the first
 * does it. */
#ifndef TSR_KERNEL_CUDA_SIMT_PTX_90A_H
#define TSR_KERNEL_CUDA_SIMT_PTX_90A_H

#include "kernel/cuda/product.h"
#include "kernel/cuda/simt_ptx.h"

/* --- clusters --- */

/* This block's number in its cluster, the cluster's number in the launch. */
DEVICE uint32_t cluster_rank(void) {
  uint32_t v;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}
DEVICE uint32_t cluster_index(void) {
  uint32_t v;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(v));
  return v;
}
/* All threads of all blocks of the cluster. Orders what they did to shared memory. */
DEVICE void cluster_barrier(void) {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

/* A barrier of `threads` of the block's threads, a multiple of 32; `id` from 1 on (0 is the
 * block's). */
DEVICE void group_barrier(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* For all warps of a group of four: gives back or takes registers, so that each thread has `count`
 * (a constant, a multiple of 8). */
#define registers_give(count) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count))
#define registers_take(count) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count))

/* --- mbarriers: 8 bytes in shared memory. A phase ends when so many have arrived and all bytes
 * that were expected in it have been copied; then the next begins --- */

/* One thread. To be followed by mbarrier_init_done and a barrier of the cluster. */
DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_init_done(void) {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* One arrival of the warp, which expects `bytes` more. */
DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  if (threadIdx.x % 32 == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
/* Waits until the phase of this parity has ended: the first has parity 0, and before it lies an
 * ended one of parity 1. The lanes leave together, as wgmma wants them. */
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t ended;
  do
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  while (!ended);
  __syncwarp();
}
/* One arrival of the warp, after everything that its lanes did, at the mbarrier at this address in
 * each of the first `blocks` blocks of the cluster. */
DEVICE void mbarrier_release(uint32_t barrier, uint32_t blocks) {
  __syncwarp();
  if (threadIdx.x % 32 < blocks)
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(barrier),
        "r"(threadIdx.x % 32)
        : "memory");
}

/* --- bulk copies from global to shared memory, counted by an mbarrier --- */

/* Addresses and size are multiples of 16. */
DEVICE void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
  if (threadIdx.x % 32 == 0)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
/* The map's box of activations, 64 columns from `col` on, tokens from `token` on, to the address
 * `to` (a multiple of 1024) of each of the first `blocks` blocks of the cluster, whose mbarriers at
 * the address `barrier` count it. Zeros past the last column and the last token. */
DEVICE void bulk_copy_panel(uint32_t to, const struct panel_map *map, uint32_t col, uint32_t token,
                            uint32_t barrier, uint32_t blocks) {
  if (threadIdx.x % 32) return;
  if (blocks == 1)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(col), "r"(token), "r"(barrier)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(col), "r"(token), "r"(barrier), "h"((uint16_t)((1u << blocks) - 1))
        : "memory");
}

/* --- wgmma: products of a warp group, of which each warp brings 16 of 64 rows --- */

/* Before the first wgmma, and again when its registers were touched since. */
DEVICE void wgmma_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Waits for all that was committed: accumulators and weights are the warp's again, and the
 * activations have been read. */
DEVICE void wgmma_wait(void) { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

/* d[octet] (16 rows of the warp x 8 tokens, as in mma_dense) += a b, where `panel` describes
 * operand B: 16 columns of `octets` (16 or 32) times 8 tokens. wgmma_sparse_*: a as in
 * mma_sparse_*, and 32 columns. */
#define WGMMA_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_16(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 1), WGMMA_4(d, i + 2), WGMMA_4(d, i + 3)
#define WGMMA_64(d, i) WGMMA_16(d, i), WGMMA_16(d, i + 4), WGMMA_16(d, i + 8), WGMMA_16(d, i + 12)
#define WGMMA_OUTPUTS_16(d) WGMMA_64(d, 0)
#define WGMMA_OUTPUTS_32(d) WGMMA_64(d, 0), WGMMA_64(d, 16)
#define WGMMA_NAMES_16                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_32                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA_DENSE(octets, tokens, a0, a1, a2, a3, b, accumulate)                                \
  DEVICE void wgmma_dense_##octets(float(*d)[4], const struct words4 *a, uint64_t panel) {        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulate                                  \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" tokens                                       \
                 "k16.f32.bf16.bf16 {" WGMMA_NAMES_##octets "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 \
                                                            "}, %" b ", p, 1, 1, 0;\n}"           \
                 : WGMMA_OUTPUTS_##octets(d)                                                      \
                 : "r"(a->w[0]), "r"(a->w[1]), "r"(a->w[2]), "r"(a->w[3]), "l"(panel), "r"(1));   \
  }
WGMMA_DENSE(16, "128", "64", "65", "66", "67", "68", "69")
WGMMA_DENSE(32, "256", "128", "129", "130", "131", "132", "133")

#define WGMMA_SPARSE(name, selector, octets, tokens, a0, a1, a2, a3, b, e, accumulate)            \
  DEVICE void name##_##octets(float(*d)[4], const struct words4 *a, uint64_t panel,               \
                              uint32_t meta) {                                                    \
    asm volatile(                                                                                 \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulate                                           \
        ", 0;\n"                                                                                  \
        "wgmma.mma_async.sp.sync.aligned.m64n" tokens "k32.f32.bf16.bf16 {" WGMMA_NAMES_##octets  \
        "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b ", %" e ", " selector ", p, 1, 1, 0;\n}"   \
        : WGMMA_OUTPUTS_##octets(d)                                                               \
        : "r"(a->w[0]), "r"(a->w[1]), "r"(a->w[2]), "r"(a->w[3]), "l"(panel), "r"(meta), "r"(1)); \
  }
WGMMA_SPARSE(wgmma_sparse_low, "0", 16, "128", "64", "65", "66", "67", "68", "69", "70")
WGMMA_SPARSE(wgmma_sparse_low, "0", 32, "256", "128", "129", "130", "131", "132", "133", "134")
WGMMA_SPARSE(wgmma_sparse_high, "1", 16, "128", "64", "65", "66", "67", "68", "69", "70")
WGMMA_SPARSE(wgmma_sparse_high, "1", 32, "256", "128", "129", "130", "131", "132", "133", "134")

/* `octets` is a constant; one of the two is compiled. */
#define wgmma_dense(d, octets, a, panel) \
  ((octets) == 16 ? wgmma_dense_16(d, a, panel) : wgmma_dense_32(d, a, panel))
#define wgmma_sparse_low(d, octets, a, panel, meta) \
  ((octets) == 16 ? wgmma_sparse_low_16(d, a, panel, meta) : wgmma_sparse_low_32(d, a, panel, meta))
#define wgmma_sparse_high(d, octets, a, panel, meta)        \
  ((octets) == 16 ? wgmma_sparse_high_16(d, a, panel, meta) \
                  : wgmma_sparse_high_32(d, a, panel, meta))

#endif
