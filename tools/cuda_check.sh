#!/bin/sh
# Compiles the GPU kernels for every supported card and writes what the compiler says of them to
# results/cuda_kernels.csv: registers, shared memory, and how many blocks share a multiprocessor.
# Fails on spilled registers, stack frames and warnings. Needs nvcc, no card. Usage: cuda_check.sh
set -eu
cd "$(dirname "$0")/.."
. tools/nvcc.sh

# The host's side needs CUDA's headers, so that a build without CUDA never sees it.
headers=$(dirname "$(dirname "$(readlink -f "$nvcc")")")/include
for source in src/kernel/cuda/device*.c bench/gpu_*.c; do
  ${CC:-cc} -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Werror -fsyntax-only \
    -DTSR_CUDA_SM90A '-DTSR_VERSION="0"' -I src -isystem "$headers" "$source"
done

# kernel, threads, stages, bytes of shared memory, bytes of 2:4 weights in flight, for a block that
# may use argv[1] bytes: the rules are those of the program.
cat >"$work/shapes.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include "kernel/cuda/product.h"
int main(int argc, char **argv) {
  const uint32_t limit = argc > 1 ? (uint32_t)atol(argv[1]) : 0;
#define ROW(tokens, threads)                                                          \
  printf("product_%d %d %u %u %u\n", tokens, threads,                                  \
         product_stages(FRAGMENT_BF16, tokens, limit),                                \
         product_shared_bytes(FRAGMENT_BF16, tokens,                                  \
                              product_stages(FRAGMENT_BF16, tokens, limit)),          \
         (product_stages(FRAGMENT_BF16, tokens, limit) - 1) * FRAGMENT_SPARSE_STEP_BYTES);
  PRODUCT_KERNELS(ROW)
#define QUANT_ROW(bits, tokens)                                                                   \
  {                                                                                               \
    const struct fragment_form form = {(bits) == 8 ? FRAGMENT_I8 : FRAGMENT_I4, true, false};     \
    const uint32_t stages = product_stages(form.kind, tokens, limit);                             \
    printf("product_i%d_%d 256 %u %u %u\n", bits, tokens, stages,                                 \
           product_shared_bytes(form.kind, tokens, stages),                                       \
           (stages - 1) * fragment_step_bytes(form, true));                                       \
  }
  QUANT_KERNELS(QUANT_ROW)
#define TALL_ROW(of, pair, name, tokens)                                                          \
  {                                                                                               \
    const struct fragment_form form = {FRAGMENT_##of, FRAGMENT_##of != FRAGMENT_BF16, false};     \
    const uint32_t stages = tall_stages(form.kind, tokens, limit);                                \
    printf("%s %d %u %u %u\n", #name, TALL_THREADS, stages,                                       \
           tall_shared_bytes(form.kind, tokens, stages),                                          \
           (stages - 1) * TALL_STRIPS * fragment_step_bytes(form, true));                         \
  }
  TALL_KERNELS(TALL_ROW)
#define CLUSTER_ROW(of, pair, name, tokens)                                                       \
  {                                                                                               \
    const struct fragment_form form = {FRAGMENT_##of, FRAGMENT_##of != FRAGMENT_BF16, false};     \
    const uint32_t stages = cluster_stages(form.kind, pair, tokens, limit);                       \
    printf("%s %d %u %u %u\n", #name, CLUSTER_THREADS, stages,                                    \
           cluster_shared_bytes(form.kind, pair, tokens, stages),                                 \
           (stages - 1) * fragment_step_bytes(form, true));                                       \
  }
  CLUSTER_KERNELS(CLUSTER_ROW)
  return 0;
}
END
${CC:-cc} -std=c11 -I src "$work/shapes.c" -o "$work/shapes"

# card, shared memory of a multiprocessor in KiB, its warps and blocks
cards="80 164 64 32
86 100 48 16
89 100 48 24
90a 228 64 32"
out="$work/kernels.csv"
echo "card,kernel,threads,registers,spill_bytes,stages,shared_bytes,blocks_per_sm,warps_per_sm,weight_bytes_in_flight_per_sm,nvcc" >"$out"
echo "$cards" | while read -r card shared warps blocks; do
  sources="src/kernel/cuda/product.cu src/kernel/cuda/quant.cu"
  if [ "$card" = 90a ]; then
    sources="$sources src/kernel/cuda/cluster.cu"
  else
    sources="$sources src/kernel/cuda/tall.cu"
  fi
  : >"$work/log"
  for source in $sources; do
    "$nvcc" -gencode "arch=compute_$card,code=sm_$card" -O3 -std=c++17 -I src -Xptxas -v \
      -c "$source" -o "$work/product.o" >>"$work/log" 2>&1 || {
      cat "$work/log" >&2
      exit 1
    }
  done
  if grep -i -e warning -e 'performance loss' "$work/log" >&2; then exit 1; fi
  "$work/shapes" $(((shared - 1) * 1024)) >"$work/shapes.txt"
  awk -v card="sm_$card" -v shared=$((shared * 1024)) -v warps="$warps" -v blocks="$blocks" \
    -v nvcc="$version" '
    function least(a, b) { return a < b ? a : b }
    FNR == NR { threads[$1] = $2; stages[$1] = $3; bytes[$1] = $4; flight[$1] = $5; next }
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
    /stack frame/ { spilled[kernel] = $1 + $5 + $9 }
    /Used [0-9]+ registers/ {
      for (i = 1; i < NF; i++) if ($i == "Used") registers = $(i + 1)
      per_block = threads[kernel] / 32
      # Registers are dealt to warps in units of 256, from four files of 16384.
      by_registers = int(4 * int(16384 / (int((registers * 32 + 255) / 256) * 256)) / per_block)
      by_shared = int(shared / (bytes[kernel] + 1024))
      fit = least(least(by_registers, by_shared), least(int(warps / per_block), blocks))
      printf "%s,%s,%d,%d,%d,%d,%d,%d,%d,%d,%s\n", card, kernel, threads[kernel], registers,
        spilled[kernel], stages[kernel], bytes[kernel], fit, fit * per_block,
        fit * flight[kernel], nvcc
    }' "$work/shapes.txt" "$work/log" | sort -t, -k2,2V >>"$out"
done
awk -F, 'NR > 1 && ($5 > 0 || $8 < 1) { print "does not fit or spills: " $0; bad = 1 }
  NR > 1 { n++ } END { if (n != 86) { print n + 0 " kernels compiled, 86 expected"; bad = 1 } exit bad }' \
  "$out" >&2
cp "$out" results/cuda_kernels.csv
column -s, -t results/cuda_kernels.csv 2>/dev/null || cat results/cuda_kernels.csv
