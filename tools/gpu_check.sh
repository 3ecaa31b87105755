#!/bin/sh
# Everything that waits for a card, in one command: builds for the card found, runs every GPU kernel
# against float64 and the CPU, whole learning steps against the CPU's, times products against
# cuBLASLt and learning steps beside PyTorch (where PYTHON, default python3, has torch and
# transformers), and writes results/gpu_*.csv and a summary. Ten minutes at most; safe to run again.
# Without a card, or with --dry, it builds all of it for sm_80 and rehearses on the CPU what can be;
# FOLDER=DIR with model.gguf and texts (tools/demo_data.py, bench/stories.py) rehearses
# bench/gpu_result.py too.
# Usage: gpu_check.sh [--dry] [SECONDS of timing products, default 100, and as many of learning]
# Exit status: 0 all right, 1 something is wrong, 77 a dry run went well (nothing was measured).
set -u
cd "$(dirname "$0")/.."
dry=
[ "${1:-}" = --dry ] && dry="as asked" && shift
seconds=${1:-100}
python=${PYTHON:-python3}
build=build-gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
begin=$(date +%s)

# within SECONDS COMMAND...: no longer than that, nor than what is left of ten minutes; 124: stopped.
within() {
  left=$((600 - $(date +%s) + begin))
  [ "$1" -lt "$left" ] && left=$1
  shift
  [ "$left" -gt 5 ] || return 124
  timeout "$left" "$@"
}

# "8.6" of the first card becomes 86; Hopper's kernels use what only 90a has.
card=
[ -n "$dry" ] ||
  card=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/[^0-9]//gp')
[ "$card" = 90 ] && card=90a
if [ -n "$card" ]; then
  echo "building for sm_$card"
else
  [ -n "$dry" ] || dry="no card is listed by nvidia-smi"
  echo "dry run ($dry): building for sm_80"
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

# --- without a card: what is built starts, and what can run on the CPU runs there ---

# rehearse WHAT EXPECTED-STATUS COMMAND...: the command's output is shown only where it fails.
failures=0
rehearse() {
  what=$1 expected=$2
  shift 2
  within 200 "$@" >"$work/said" 2>&1
  found=$?
  if [ "$found" -eq "$expected" ]; then
    echo "  right: $what"
  else
    tail -15 "$work/said"
    echo "  WRONG: $what (exit status $found, expected $expected)"
    failures=$((failures + 1))
  fi
}

if [ -n "$dry" ]; then
  echo "built: gpu_check, gpu_learn and tessera with the CUDA backend, $(($(date +%s) - begin)) s"
  export CUDA_VISIBLE_DEVICES=
  rehearse "gpu_check says that there is no card (its kernels ran under the emulator alone)" 77 \
    "$build/bench/gpu_check" "$work" "$commit" "$seconds"
  rehearse "gpu_learn says that there is no card" 77 \
    "$build/bench/gpu_learn" "$work" "$commit" "$seconds"
  rehearse "gpu_learn's checks of operations and steps, the CPU against itself" 0 \
    "$build/bench/gpu_learn" "$work" "$commit" 0 cpu
  rehearse "tessera refuses --device cuda with a sentence" 3 \
    "$build/tessera" eval tests/golden/models/llama --ppl README.md --device cuda
  rehearse "gpu_end_to_end.py on one block of a small model on the CPU; nothing is kept" 0 \
    "$python" bench/gpu_end_to_end.py "$build/tessera" --dry-run
  rehearse "gpu_peers.py lists the layers of gpu_check; nothing is timed" 0 \
    "$python" bench/gpu_peers.py --list
  if "$python" -c 'import torch, transformers' 2>/dev/null; then
    rehearse "reference_torch.py, one step of 64 tokens on the CPU" 0 "$python" \
      bench/reference_torch.py --device cpu --tokens 64 --window 64 --steps 1 --json --mode tile
  else
    echo "  left out: reference_torch.py ($python has no torch and transformers: set PYTHON)"
  fi
  if [ -n "${FOLDER:-}" ]; then
    rehearse "gpu_result.py, all rows from few tokens on the CPU; nothing is kept" 0 "$python" \
      bench/gpu_result.py "$FOLDER" --device cpu --tokens 4096 --seconds 190 --window 128 \
      --work "$work/result" --csv "$work/result.csv" --tessera "$build/tessera"
  else
    echo "  left out: gpu_result.py (set FOLDER to a folder of a small model and texts)"
  fi
  [ "$failures" -eq 0 ] || {
    echo "gpu_check: $failures of the rehearsals above went wrong"
    exit 1
  }
  echo "gpu_check: dry run in $(($(date +%s) - begin)) s: everything was built, what needs no card" \
    "ran; no kernel ran on a card, nothing was checked or measured there"
  exit 77
fi

# --- on a card ---

within 150 "$build/bench/gpu_check" "$work" "$commit" "$seconds"
status=$?
within 150 "$build/bench/gpu_learn" "$work" "$commit" "$seconds"
learning=$?
[ "$status" -eq 124 ] && echo "gpu_check: products were stopped, their time was up"
[ "$learning" -eq 124 ] && echo "gpu_check: learning was stopped, its time was up"
[ "$status" -eq 0 ] && status=$learning

# The same steps as a plain PyTorch program: rows "torch joint" and "torch tile" of the ledger.
torch_steps() {
  rate=$(within 30 "$python" bench/reference_torch.py --device cuda --tokens 4096 \
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
within 40 "$python" bench/gpu_peers.py "$work/gpu_peers.csv" 30
# Whole models of LLaMA-2 7B's shape, prompts read and continued, in the time that is left.
within 240 "$python" bench/gpu_end_to_end.py "$build/tessera" --csv "$work/gpu_end_to_end.csv" ||
  echo "gpu_check: the end-to-end bench ended early; what it measured is kept"
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
  "$python" bench/gpu_table.py results/gpu_products.csv \
    $([ -s results/gpu_peers.csv ] && echo results/gpu_peers.csv)
} | tee results/gpu_summary.txt
exit "$status"
