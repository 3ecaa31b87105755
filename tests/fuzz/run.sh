#!/bin/sh
# Runs every fuzz target of a build for a while, from small valid files on. Usage:
# tests/fuzz/run.sh BUILD SECONDS [TARGET..]. Inputs found on the way stay in BUILD/corpus, so that
# the next run goes on from there; an input that crashes a target is left in BUILD/crashes.
set -u
build=$1 seconds=$2
shift 2
golden=tests/golden
mkdir -p "$build/crashes"
[ $# -gt 0 ] || set -- $(cd "$build/fuzz" && ls | sed -n 's/^fuzz_//p')
failed=""
seeds_of() {
  case $1 in
    safetensors) find $golden -name '*.safetensors' -size -128k ;;
    packed) find $golden -path '*packed*' -name '*.safetensors' ;;
    gguf | model) find $golden -name '*.gguf' -size -128k ;;
    config) find $golden -name 'config.json' ;;
    npz) find $golden -name '*.npz' ;;
    npy) find $golden -name '*.npy' ;;
    json) find $golden -name '*.json' -size -64k ;;
    tasks) find $golden -name '*.jsonl' ;;
    config) find $golden -name 'config.json' -o -name '*.gguf' -size -64k ;;
    mask) find $golden -name 'mask*.npz' -o -name 'mask*.safetensors' ;;
    tokenizer) find $golden -type f -size -64k -name 'tokenizer*' -o -name '*.gguf' -size -64k ;;
  esac
}
for name in "$@"; do
  corpus="$build/corpus/$name"
  mkdir -p "$corpus"
  seeds_of "$name" | while read -r seed; do
    cp "$seed" "$corpus/seed-$(echo "$seed" | tr / -)"
  done
  if "$build/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
    -max_len=131072 -print_final_stats=1 -artifact_prefix="$build/crashes/$name-" "$corpus" \
    >"$build/$name.log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$name.log")
    printf '%-20s %9s inputs, nothing found\n' "fuzz_$name" "$runs"
  else
    failed="$failed $name"
    tail -30 "$build/$name.log"
  fi
done
[ -z "$failed" ] || { echo "fuzzing found faults in:$failed"; exit 1; }
