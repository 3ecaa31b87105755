#!/bin/sh
# Holds tessera against other programs, by one command: the logits of the demo's model and its
# tokenizer, and its exports in transformers and llama.cpp (recorded in results/exports.csv); and,
# where the evaluation data is at hand, all kinds of tokenizers (results/tokenizers.csv) and the
# zero-shot scores of 200 items a task (results/zeroshot_check.csv; TSR_ITEMS= changes the number).
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

echo "blocks of GGUF files as they are, against their expansion and llama.cpp"
"$PYTHON" tools/compare/blocks.py "$folder/model.gguf" "$folder/heldout.txt" 200

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

zeroshot=$shared/data/zeroshot
if [ -d "$zeroshot" ]; then
  echo "zero-shot scores in PyTorch"
  items=.cache/tasks
  python3 tools/tasks_convert.py piqa $items "$zeroshot/piqa.jsonl"
  python3 tools/tasks_convert.py arc_easy $items "$zeroshot/ARC-Easy_test.jsonl"
  python3 tools/tasks_convert.py openbookqa $items "$zeroshot/openbook_qa.jsonl"
  python3 tools/tasks_convert.py hellaswag $items "$zeroshot/hellaswag_val_full.txt.bz2"
  python3 tools/tasks_convert.py winogrande $items "$zeroshot/winogrande.jsonl"
  python3 tools/tasks_convert.py boolq $items "$zeroshot/boolq.jsonl"
  for model in "$shared/data/models/stories260K" "$folder/model.gguf"; do
    name=stories260K
    [ "$model" = "$folder/model.gguf" ] && name=SmolLM2-135M-Instruct
    "$PYTHON" tools/compare/zeroshot.py "$model" $items --name $name --limit "${TSR_ITEMS:-200}"
  done
else
  echo "skip: no tasks at $zeroshot, so zero-shot scores are not compared"
fi
