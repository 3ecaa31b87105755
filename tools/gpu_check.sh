#!/bin/sh
# Everything that waits for a card, in one command: builds for the card found, runs every GPU kernel
# against float64 and the CPU, whole learning steps against the CPU's, times products against
# cuBLASLt and learning steps beside PyTorch (where PYTHON, default python3, has torch and
# transformers), and writes results/gpu_*.csv and a summary. Ten minutes at most; safe to run again.
# Usage: gpu_check.sh [SECONDS of timing products, default 100, and as many of learning]
# Exit status: 0 all right, 1 something is wrong, 77 no card (all was built, nothing was measured).
set -u
cd "$(dirname "$0")/.."
seconds=${1:-100}
build=build-gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# "8.6" of the first card becomes 86; Hopper's kernels use what only 90a has.
card=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/[^0-9]//gp')
[ "$card" = 90 ] && card=90a
if [ -n "$card" ]; then
  echo "building for sm_$card"
else
  echo "no card is listed by nvidia-smi: dry run, built for sm_80"
  card=80
fi
PATH="$PATH:/usr/local/cuda/bin"
commit=$(git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)
{
  cmake -S . -B "$build" -DTSR_CUDA=ON -DTSR_TESTS=OFF "-DTSR_CUDA_ARCHITECTURES=$card" &&
    cmake --build "$build" -j"$(nproc)" --target gpu_check gpu_learn tessera
} >"$work/log" 2>&1 || {
  tail -30 "$work/log"
  echo "gpu_check: the build failed"
  exit 1
}
timeout 150 "$build/bench/gpu_check" "$work" "$commit" "$seconds"
status=$?
timeout 150 "$build/bench/gpu_learn" "$work" "$commit" "$seconds"
learning=$?
# Whole models of LLaMA-2 7B's shape: prompts read and continued. Without a card: the same program on
# a small model of this machine, so that what measures is known to run.
e2e() {
  timeout "$1" "${PYTHON:-python3}" bench/gpu_end_to_end.py "$build/tessera" \
    --csv "$work/gpu_end_to_end.csv" ${2:-}
}
if [ "$status" -eq 77 ]; then
  e2e 100 --dry-run || {
    echo "gpu_check: the end-to-end bench does not run"
    exit 1
  }
  echo "gpu_check: everything was built; nothing was checked or measured, because there is no card"
  exit 77
fi
[ "$status" -eq 124 ] && echo "gpu_check: products were stopped after 150 seconds"
[ "$learning" -eq 124 ] && echo "gpu_check: learning was stopped after 150 seconds"
[ "$status" -eq 0 ] && status=$learning

e2e 240 || echo "gpu_check: the end-to-end bench ended early; what it measured is kept"

# The same steps as a plain PyTorch program: rows "torch joint" and "torch tile" of the ledger.
torch_steps() {
  rate=$(timeout 40 "${PYTHON:-python3}" bench/reference_torch.py --device cuda --tokens 4096 \
    --window 512 --json "$@" 2>/dev/null | sed -n 's/.*"tokens_per_s": \([0-9.]*\).*/\1/p')
  [ -n "$rate" ] || return 0
  echo "$(date +%F),$commit,torch,$*,smollm2-135m,4096,,,,$rate" >>"$work/gpu_learn_times.csv"
}
[ -s "$work/gpu_learn_times.csv" ] && {
  torch_steps --mode joint
  torch_steps --mode joint --bf16 --compile
  torch_steps --mode tile --bf16 --compile
}
# What users would pick instead of our products: dense and 2:4 layers of PyTorch.
timeout 40 "${PYTHON:-python3}" bench/gpu_peers.py "$work/gpu_peers.csv" 30
for ledger in gpu_checks.csv gpu_products.csv gpu_learn_checks.csv gpu_learn_times.csv \
  gpu_choice.json gpu_peers.csv gpu_end_to_end.csv; do
  [ -s "$work/$ledger" ] && cp "$work/$ledger" results/
done

# Medians of the speed-up over cuBLASLt, and the least, over all layers.
[ -s "$work/gpu_products.csv" ] && {
  echo "speed-up over cuBLASLt dense by the kernel that was chosen (cuBLASLt itself: 1):"
  echo "density, tokens, median and least over the layers"
  awk -F, 'NR > 1 && $20 == "bf16" { print $7 "," $8 "," $19 }' "$work/gpu_products.csv" | sort -t, -k1,1nr -k2,2n -k3,3n |
    awk -F, '
      function flush() { if (n) printf "  %-5s %5d  %6.2f %6.2f\n", d, t, v[int((n + 1) / 2)], v[1] }
      $1 != d || $2 != t { flush(); n = 0; d = $1; t = $2 }
      { v[++n] = $3 }
      END { flush() }'
  "${PYTHON:-python3}" bench/gpu_table.py results/gpu_products.csv \
    $([ -s results/gpu_peers.csv ] && echo results/gpu_peers.csv)
} | tee results/gpu_summary.txt
exit "$status"
