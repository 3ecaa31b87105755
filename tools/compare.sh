#!/bin/sh
# Holds tessera against other programs, by one command: the logits of the demo's model and its
# tokenizer, and its exports in transformers and llama.cpp (recorded in results/exports.csv); and,
# where the evaluation data is at hand, all kinds of tokenizers (results/tokenizers.csv).
# Usage: tools/compare.sh [FOLDER], from the root of a built tree; FOLDER holds, or will hold, the
# demo's model and texts. PYTHON names an interpreter that has the packages below; without it, a
# virtual environment is made in .cache (torch is large: some 2 GB).
set -eu
folder=${1:-tessera-demo/data}
shared=${TSR_SHARED:-../shared}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.cache/compare/bin/python
  if [ ! -x "$PYTHON" ]; then
    echo "installing torch, transformers, llama-cpp-python and others into .cache/compare"
    python3 -m venv .cache/compare
    "$PYTHON" -m pip install -q torch transformers tokenizers sentencepiece protobuf safetensors \
      gguf llama-cpp-python numpy
  fi
fi
[ -f "$folder/model.gguf" ] && [ -f "$folder/learn.jsonl" ] || python3 tools/demo_data.py "$folder"
mkdir -p .cache

echo "logits of the demo's model in transformers"
"$PYTHON" tools/compare/transformers_logits.py "$folder/model.gguf" "$folder/heldout.txt" 256

echo "exports in transformers and llama.cpp"
./tessera prune "$folder/model.gguf" --method wanda --pattern hybrid --sparsity 45% \
  --calib "$folder/learn.jsonl" --calib-tokens 4096 --out .cache/compare.mask --force
"$PYTHON" tools/compare/exports.py "$folder/model.gguf" .cache/compare.mask "$folder/heldout.txt"

if [ -d "$shared/data/tokenizers" ]; then
  echo "tokenizers on hostile texts"
  "$PYTHON" tools/compare/tokenizers.py --record results/tokenizers.csv
else
  echo "skip: no evaluation data at $shared, so tokenizers are not compared"
fi
