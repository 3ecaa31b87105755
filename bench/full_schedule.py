#!/usr/bin/env python3
"""The paper's schedule, 2000 steps, on a model so small that two cores can afford it: does the order
of the paper's table hold? One command, restartable run by run.

usage: full_schedule.py MODEL TEXT HELDOUT [--own-tokens 1000000] [--step-tokens 1024] [--seeds 3]

MODEL is a directory such as stories260K. TEXT (UTF-8) gives the beginnings of the stories that the
model then writes itself, sampled from its own distribution: that is what masks are learned from.
One-shot masks are calibrated on the same. HELDOUT is measured on; nothing is learned from it.
"""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import recipe

STEPS, TILE, WINDOW = 2000, "16", 256
# The paper's numbers, and what else is its own.
PAPER = ("--lr 1e-3 --lr-24 1e-3 --adam-eps 1e-8 --kappa-first 25 --kappa-last 350 --tau-first 4 "
         "--kappa-24-first 100 --tau-24-last 0.05 --l2 10 --prior-strength-24 3")
FAITHFUL = "--density soft --tile-prior linear"


def write_own_text(program, model, text, path, tokens):
    """Stories of a context's length each, begun with two words of TEXT's paragraphs."""
    with open(text) as file:
        starts = [" ".join(line.split()[:2]) for line in file if len(line.split()) > 4]
    with open(os.path.join(model, "config.json")) as file:
        length = json.load(file)["max_position_embeddings"] - 16
    with open(path + ".partial", "w") as out:
        for seed in range(tokens // length):
            run = subprocess.run([program, "generate", model, "--prompt", starts[seed % len(starts)],
                                  "--tokens", str(length), "--temperature", "1", "--seed",
                                  str(seed), "--threads", "1", "--quiet"], check=True,
                                 stdout=subprocess.PIPE)
            story = run.stdout.decode("utf-8", "ignore").strip()
            out.write(json.dumps({"text": story}) + "\n")
            if seed % 200 == 0:
                print(f"own text: {seed * length} of {tokens} tokens", flush=True)
    os.replace(path + ".partial", path)


def plan(tokens, seeds):
    """Seed after seed, so that an unfinished ledger has all rows of the first ones."""
    learn = f"--window {WINDOW} --batch {tokens // STEPS // WINDOW}"
    lines = ["magnitude | prune | 0 | 1 | --method magnitude --pattern 2:4",
             "wanda | prune | 65536 | 1 | --method wanda --pattern 2:4",
             "sparsegpt | prune | 65536 | 1 | --method sparsegpt --pattern 2:4"]
    for seed in range(1, seeds + 1):
        lines += [f"joint{percent} | joint | {tokens} | {seed} | {learn} --sparsity {percent}%"
                  for percent in (45, 35, 25)]
        lines.append(f"maskllm | maskllm | {tokens} | {seed} | {learn}")
        if seed == 1:
            at_45 = f"{learn} --sparsity 45%"
            lines += [f"joint45-numbers | joint | {tokens} | 1 | {at_45} {PAPER}",
                      f"joint45-paper | joint | {tokens} | 1 | {at_45} {PAPER} {FAITHFUL}"]
    return "\n".join(lines) + "\n"


def account(path, model):
    """The order of the paper's table; whether each seed of one is below all of the next."""
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] == model:
                found.setdefault(row["name"], []).append(float(row["perplexity"]))
    order = [name for name in ("dense", "joint25", "joint35", "joint45", "maskllm", "sparsegpt",
                               "wanda", "magnitude") if name in found]
    for name, worse in zip(order, order[1:] + [None]):
        mean = statistics.mean(found[name])
        spread = statistics.stdev(found[name]) if len(found[name]) > 1 else 0
        holds = worse is None or max(found[name]) < min(found[worse])
        print(f"{name:10} {mean:9.2f} ± {spread:.2f} ({len(found[name])})"
              + ("" if holds else f"   NOT below every {worse}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("heldout")
    parser.add_argument("--own-tokens", type=int, default=1_000_000)
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", default="full-schedule")
    parser.add_argument("--csv", default=os.path.join(os.path.dirname(recipe.HERE), "results",
                                                      "full_schedule.csv"))
    parser.add_argument("--tessera", default=os.path.join(os.path.dirname(recipe.HERE), "tessera"))
    parser.add_argument("--threads", default="1")
    parser.add_argument("--once", action="store_true", help="one run, then end")
    parser.add_argument("--account", action="store_true", help="only print what the ledger says")
    a = parser.parse_args()
    name = os.path.basename(os.path.realpath(a.model))
    if not a.account:
        os.makedirs(a.work, exist_ok=True)
        for link, target in (("model", a.model), ("heldout.txt", a.heldout)):
            path = os.path.join(a.work, link)
            if not os.path.lexists(path):
                os.symlink(os.path.realpath(target), path)
        own = os.path.join(a.work, "learn.jsonl")
        if not os.path.exists(own):
            write_own_text(a.tessera, a.model, a.text, own, a.own_tokens)
        with open(os.path.join(a.work, "plan"), "w") as file:
            file.write(plan(STEPS * a.step_tokens, a.seeds))
        study = recipe.Study(SimpleNamespace(
            folder=a.work, plan=os.path.join(a.work, "plan"), csv=a.csv, work=a.work, model=name,
            tessera=a.tessera, tile=TILE, window=WINDOW, threads=a.threads))
        while key := study.next_run():
            study.run(key)
            if a.once:
                return
    account(a.csv, name)


if __name__ == "__main__":
    sys.exit(main())
