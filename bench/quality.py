#!/usr/bin/env python3
"""Quality at exactly 45 % after a given number of learning tokens, into a ledger.

usage: quality.py [FOLDER] [--tokens 20480] [--seeds 1] [--csv results/quality.csv]

FOLDER holds the demo's model and texts (tools/demo_data.py puts them there). Each row gives the
perplexity and the KL to the dense model on text that nothing was learned from, and `distance`:
log(perplexity / dense perplexity) over that of the greedy hybrid of the same SparseGPT pass.
"""
import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TESSERA = os.path.join(os.path.dirname(HERE), "tessera")
sys.path.insert(0, HERE)
from learn_speed import machine  # noqa: E402

SPARSITY, WINDOW, CALIBRATION_TOKENS = "0.45", 512, 12288


def tessera(*arguments):
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        subprocess.run([TESSERA, *arguments, "--force", "--json", output.name], check=True,
                       stdout=subprocess.DEVNULL)
        return json.load(output)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--csv", default="results/quality.csv")
    arguments = parser.parse_args()
    model, learn, heldout = (
        os.path.join(arguments.folder, name) for name in ("model.gguf", "learn.jsonl", "heldout.txt"))
    version = subprocess.run([TESSERA, "--version"], stdout=subprocess.PIPE, text=True).stdout
    rows = []

    with tempfile.TemporaryDirectory() as work:
        states = os.path.join(work, "dense.states")

        def measure(name, mask, seed="", seconds="", tokens=""):
            result = tessera("eval", model, *(["--mask", mask] if mask else []), "--ppl", heldout,
                             "--window", str(WINDOW), "--kl-to", model, "--kl-cache", states,
                             "--quiet")
            far = [math.log(p / rows[0]["perplexity"]) for p in
                   (result["perplexity"], rows[1]["perplexity"])] if len(rows) > 1 else None
            rows.append({
                "date": time.strftime("%Y-%m-%d"), "commit": version.split("(")[1].rstrip(")\n"),
                "machine": machine(), "isa": result.get("isa", ""), "name": name, "seed": seed,
                "learning_tokens": tokens, "learning_seconds": seconds,
                "density": round(result["density"], 6), "window": WINDOW,
                "predictions": result["predictions"], "perplexity": round(result["perplexity"], 3),
                "kl": round(result["kl"], 4), "distance": round(far[0] / far[1], 3) if far else len(rows),
            })
            print({key: rows[-1][key] for key in ("name", "seed", "density", "perplexity", "kl",
                                                  "distance")}, flush=True)

        measure("dense", None)
        prior, greedy = os.path.join(work, "prior.mask"), os.path.join(work, "greedy.mask")
        tessera("prune", model, "--method", "sparsegpt", "--pattern", "2:4", "--calib", learn,
                "--calib-tokens", str(CALIBRATION_TOKENS), "--out", prior)
        tessera("prune", model, "--from", prior, "--pattern", "hybrid", "--sparsity", SPARSITY,
                "--out", greedy)
        measure("greedy", greedy)
        for mode in ("tile", "joint"):
            for seed in range(1, arguments.seeds + 1):
                run = os.path.join(work, f"{mode}-{seed}")
                report = tessera("learn", model, "--mode", mode, "--sparsity", SPARSITY, "--data",
                                 learn, "--tokens", str(arguments.tokens), "--window", str(WINDOW),
                                 "--seed", str(seed), "--prior", prior, "--out", run)
                measure(mode, os.path.join(run, "mask.safetensors"), seed,
                        round(report["seconds"]), arguments.tokens)

    new = not os.path.exists(arguments.csv)
    with open(arguments.csv, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
