#!/bin/sh
# Compiles the GPU kernels of learning for every supported card and writes what the compiler says of
# them to results/cuda_learn_kernels.csv: registers, spilled bytes, how many blocks share a
# multiprocessor by their registers, and the shared memory that a block is given where the kernel
# alone decides it. Fails on spilled registers, stack frames and warnings. Needs nvcc and a C
# compiler, no card. Usage: cuda_check_learn.sh
set -eu
cd "$(dirname "$0")/.."
. tools/nvcc.sh
expected=$(grep -c '^  K(' src/kernel/cuda/learn.h)
out="$work/kernels.csv"
echo "card,kernel,threads,registers,spill_bytes,blocks_per_sm_by_registers,shared_bytes,nvcc" >"$out"
# Attention on the tensor cores, and what else has another number of threads: "kernel threads bytes".
cat >"$work/forms.c" <<'END'
#include <stdio.h>
#include "kernel/cuda/learn.h"
#define FORM(name, body, width, groups, tile, columns) {#name, {width, groups, tile, columns}},
static const struct { const char *name; struct attention_form f; } forms[3][4] = {
    {ATTENTION_MMA_FORWARD(FORM)}, {ATTENTION_MMA_BACK_Q(FORM)}, {ATTENTION_MMA_BACK_KV(FORM)}};
int main(void) {
  for (int pass = 0; pass < 3; pass++)
    for (int i = 0; i < 4; i++)
      printf("%s %d %u\n", forms[pass][i].name, ATTENTION_MMA_THREADS,
             form_shared_bytes(&forms[pass][i].f, pass ? 2u : 1u, pass == 2));
  printf("cholesky_diagonal %d %d\n", CHOLESKY_BLOCK, CHOLESKY_SHARED_BYTES);
}
END
"${CC:-cc}" -I src "$work/forms.c" -o "$work/forms"
"$work/forms" >"$work/forms.txt"
for card in 80 86 89 90a; do
  "$nvcc" -gencode "arch=compute_$card,code=sm_$card" -O3 -std=c++17 -I src -Xptxas -v \
    -c src/kernel/cuda/learn.cu -o "$work/learn.o" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
  }
  if grep -i warning "$work/log" >&2; then exit 1; fi
  awk -v card="sm_$card" -v nvcc="$version" '
    FILENAME ~ /forms.txt$/ { threads[$1] = $2; shared[$1] = $3; next }
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
    /stack frame/ { spilled[kernel] = $1 + $5 + $9 }
    /Used [0-9]+ registers/ {
      for (i = 1; i < NF; i++) if ($i == "Used") registers = $(i + 1)
      # Registers are dealt to warps in units of 256, from four files of 16384.
      count = kernel in threads ? threads[kernel] : 256
      fit = int(4 * int(16384 / (int((registers * 32 + 255) / 256) * 256)) / (count / 32))
      printf "%s,%s,%d,%d,%d,%d,%s,%s\n", card, kernel, count, registers, spilled[kernel], fit,
             shared[kernel], nvcc
    }' "$work/forms.txt" "$work/log" | sort >>"$out"
done
awk -F, -v expected=$((4 * expected)) '
  NR > 1 && ($5 > 0 || $6 < 1) { print "does not fit or spills: " $0; bad = 1 }
  NR > 1 { n++ }
  END { if (n != expected) { print n + 0 " kernels compiled, " expected " expected"; bad = 1 } exit bad }' \
  "$out" >&2
cp "$out" results/cuda_learn_kernels.csv
echo "cuda-check: $((4 * expected)) builds of learning kernels, nothing spills"
