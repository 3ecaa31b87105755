#!/usr/bin/env python3
"""A whole model of LLaMA-2 7B's shape on a GPU: prompts read and continued, dense and hybrid.

usage: gpu_end_to_end.py TESSERA [--csv FILE] [--rounds N] [--dry-run]

The setting is that of PATCH (arXiv 2509.23410): prompts of 128 tokens, 128 and 1024 tokens
generated, 16 texts at once, random weights, bf16. Each density is a run of its own, in which the
dense form takes its turns beside the hybrid one; both choose their kernels, cuBLASLt's among them,
from the table of the card. The ledger has memory in bytes, and STOICC's published ratios beside
ours. Rows are written density by density: what is stopped keeps what it measured. --dry-run measures one block on the CPU and keeps nothing: it shows that the script runs.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time

from provenance import commit

HERE = os.path.dirname(os.path.abspath(__file__))
# density: generated tokens: speed-up over dense on an A6000, on an A100
PUBLISHED = {0.75: {128: (1.18, 1.07), 1024: (1.13, 1.06)},
             0.65: {128: (1.27, 1.11), 1024: (1.18, 1.09)},
             0.55: {128: (1.38, 1.16), 1024: (1.25, 1.12)}}
FIELDS = ["date", "commit", "card", "driver", "model", "form", "dtype", "density", "prompt",
          "generated", "batch", "graph", "rounds", "tokens_per_s", "speedup", "speedup_low",
          "speedup_high", "device_bytes", "weight_bytes", "kv_bytes", "published_a6000",
          "published_a100"]
DIGITS = {"density": 5, "tokens_per_s": 1, "speedup": 3, "speedup_low": 3, "speedup_high": 3}


def card():
    """Name and driver of the first GPU."""
    found = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version",
                            "--format=csv,noheader"], stdout=subprocess.PIPE, text=True, check=True)
    name, _, driver = found.stdout.splitlines()[0].partition(", ")
    return name, driver


def bench(program, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        subprocess.run([program, "bench", *arguments, "--json", path], check=True)
        with open(path) as file:
            return json.load(file)


def rows_of(result, density, where):
    """Ledger rows of one run: rows, samples and models come in the same order of entries."""
    models = {m["form"]: m for m in result["models"]}
    for row, sample in zip(result["rows"], result["samples"]):
        model = models[row["form"]]
        positions = row["prompt"] + row["generated"]
        published = PUBLISHED.get(density, {}).get(row["generated"], (None, None))
        hybrid = row["form"] == "hybrid"
        yield {**where, **row, "graph": result["graph"], "rounds": result["rounds"],
               "speedup_low": sample.get("speedup_low"), "speedup_high": sample.get("speedup_high"),
               "device_bytes": model.get("device_bytes"), "weight_bytes": model["weight_bytes"],
               "kv_bytes": model["kv_bytes_per_position"] * positions * row["batch"],
               "published_a6000": published[0] if hybrid else None,
               "published_a100": published[1] if hybrid else None}


def shown(name, value):
    if value is None:
        return ""
    return f"{value:.{DIGITS[name]}f}" if name in DIGITS else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", metavar="TESSERA")
    parser.add_argument("--csv", default=os.path.join(os.path.dirname(HERE), "results",
                                                      "gpu_end_to_end.csv"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.dry_run:
        result = bench(options.program, "--synthetic", "qwen2.5-0.5b", "--layers", "1",
                       "--vocabulary", "512", "--density", "0.55", "--text", "16+4x2", "--rounds",
                       "1", "--seconds", "0.05")
        rows = list(rows_of(result, 0.55, {}))
        ok = len(rows) == 2 and all(r["tokens_per_s"] > 0 and r["kv_bytes"] > 0 for r in rows)
        print("end to end:", "dry run on the CPU, nothing is kept" if ok else "no rows came out")
        sys.exit(0 if ok else 1)
    name, driver = card()
    where = {"date": time.strftime("%Y-%m-%d"), "commit": commit(options.program), "card": name,
             "driver": driver}
    with open(options.csv, "w", newline="") as file:
        ledger = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        ledger.writeheader()
        for density in (0.55, 0.65, 0.75, 0.5):
            result = bench(options.program, "--device", "cuda", "--graph", "--synthetic",
                           "llama2-7b", "--layers", "32", "--vocabulary", "32000", "--density",
                           str(density), "--text", "128+128x16,128+1024x16", "--rounds",
                           str(options.rounds), "--seconds", "1")
            for row in rows_of(result, density, where):
                ledger.writerow({f: shown(f, row.get(f)) for f in FIELDS})
            file.flush()


if __name__ == "__main__":
    main()
