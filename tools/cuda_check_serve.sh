#!/bin/sh
# Compiles the GPU kernels of decoding, beside the products, for every supported card and writes what
# the compiler says of them to results/cuda_serve_kernels.csv: registers, spilled bytes, and how many
# blocks share a multiprocessor by their registers (256 threads each, 128 of attention). Fails on
# spilled registers, stack frames and warnings. Needs nvcc, no card. Usage: cuda_check_serve.sh
set -eu
cd "$(dirname "$0")/.."
. tools/nvcc.sh
out="$work/kernels.csv"

expected=$(grep -c '^  K(' src/kernel/cuda/serve.h)
echo "card,kernel,threads,registers,spill_bytes,blocks_per_sm_by_registers,nvcc" >"$out"
for card in 80 86 89 90a; do
  "$nvcc" -gencode "arch=compute_$card,code=sm_$card" -O3 -std=c++17 -I src -Xptxas -v \
    -c src/kernel/cuda/serve.cu -o "$work/serve.o" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
  }
  if grep -i warning "$work/log" >&2; then exit 1; fi
  awk -v card="sm_$card" -v nvcc="$version" '
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
    /stack frame/ { spilled[kernel] = $1 + $5 + $9 }
    /Used [0-9]+ registers/ {
      for (i = 1; i < NF; i++) if ($i == "Used") registers = $(i + 1)
      threads = kernel ~ /^attend_/ ? 128 : 256
      # Registers are dealt to warps in units of 256, from four files of 16384.
      warps = 4 * int(16384 / (int((registers * 32 + 255) / 256) * 256))
      printf "%s,%s,%d,%d,%d,%d,%s\n", card, kernel, threads, registers, spilled[kernel],
        int(warps * 32 / threads), nvcc
    }' "$work/log" | sort >>"$out"
done
awk -F, -v expected=$((4 * expected)) '
  NR > 1 && ($5 > 0 || $6 < 1) { print "does not fit or spills: " $0; bad = 1 }
  NR > 1 { n++ }
  END {
    if (n != expected) { print n + 0 " kernels compiled, " expected " expected"; bad = 1 }
    exit bad
  }' "$out" >&2
cp "$out" results/cuda_serve_kernels.csv
echo "cuda-check: $((4 * expected)) builds of decoding kernels, nothing spills"
