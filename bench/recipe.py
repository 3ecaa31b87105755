#!/usr/bin/env python3
"""The recipe study: learning runs of a plan, one row each in a ledger. Restartable: rows that the
ledger has are not run again, and the plan is read anew before every run, so lines may be added.

usage: recipe.py FOLDER PLAN [--csv results/recipe.csv] [--work DIR] [--tessera PROGRAM]
                 [--tile N] [--window N] [--threads N] [--once]

FOLDER holds model.gguf (or model/), learn.jsonl and heldout.txt, as tools/demo_data.py makes them,
and may hold second.txt, another text that nothing was learned from. A line of PLAN:

  name | mode | tokens | seeds | options of tessera learn

with seeds as 1-3 or 1,5. Mode `prune` makes a one-shot mask instead: options of tessera prune, with
tokens to calibrate on. Modes `refit` and `recover` change the kept weights under a mask: options of
tessera refit and tessera recover; their figures are those of another model. In the options, @NAME
is the mask of the row of that name (first seed), and @prior that of SparseGPT 2:4, which learning
rows start from unless they have a --prior; `--model @NAME` recovers the model of a refit row. @model is
the model of FOLDER.

`distance` is log(perplexity / dense perplexity) over that of the greedy hybrid at 45 %.
"""
import argparse
import csv
import json
import math
import os
import shlex
import shutil
import subprocess
import time

from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))

SPARSITY, WINDOW, SECOND_TOKENS = "0.45", 512, 20480
BASELINES = """
dense | prune | 0 | 1 |
prior | prune | 12288 | 1 | --method sparsegpt --pattern 2:4
greedy | prune | 12288 | 1 | --pattern hybrid --sparsity 0.45 --from @prior
"""
FIELDS = ("date commit machine isa precision model name mode seed tokens options seconds density "
          "predictions perplexity kl distance second_perplexity second_distance best_step steps "
          "settings").split()


def read_plan(text):
    """(name, mode, tokens, seed, options) of every run."""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, mode, tokens, seeds, options = (part.strip() for part in line.split("|"))
        for part in seeds.split(","):
            first, _, last = part.partition("-")
            for seed in range(int(first), int(last or first) + 1):
                yield name, mode, int(tokens), seed, options


class Study:
    def __init__(self, arguments):
        self.folder, self.plan, self.csv = arguments.folder, arguments.plan, arguments.csv
        self.work, self.program = arguments.work, arguments.tessera
        self.model = next(path for path in (self.path("model.gguf"), self.path("model"))
                          if os.path.exists(path))
        self.name = arguments.model or os.path.basename(os.path.realpath(self.folder))
        self.tile = ["--tile", arguments.tile] if arguments.tile else []
        self.window, self.threads = arguments.window, arguments.threads
        self.commit = commit(self.program)
        os.makedirs(self.work, exist_ok=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def rows(self):
        if not os.path.exists(self.csv):
            return []
        with open(self.csv, newline="") as file:
            return [row for row in csv.DictReader(file) if row["model"] == self.name]

    def tessera(self, *arguments):
        output = os.path.join(self.work, "out.json")
        subprocess.run([self.program, *arguments, "--json", output, "--force", "--quiet",
                        "--threads", self.threads], check=True,
                       stdout=subprocess.DEVNULL)
        with open(output) as file:
            return json.load(file)

    def mask_of(self, name, seed=1):
        return os.path.join(self.work, f"{name}-{seed}.mask")

    def make(self, name, mode, tokens, seed, options):
        """The mask of a run; what `learn` reported."""
        mask = self.mask_of(name, seed)
        words = [self.model if word == "@model" else
                 self.mask_of(word[1:]) if word.startswith("@") else word
                 for word in shlex.split(options)]
        if name == "dense":
            return None, {}
        if mode in ("refit", "recover"):
            return self.change_weights(name, mode, tokens, seed, words)
        words += self.tile
        if mode == "prune":
            if "--from" not in words:
                words += ["--calib", self.path("learn.jsonl"), "--calib-tokens", str(tokens)]
            return mask, self.tessera("prune", self.model, *words, "--out", mask)
        if "--prior" not in words:
            words += ["--prior", self.mask_of("prior")]
        if "--sparsity" not in words:
            words += ["--sparsity", "0.5" if mode == "maskllm" else SPARSITY]
        run = os.path.join(self.work, "run")
        shutil.rmtree(run, ignore_errors=True)
        report = self.tessera("learn", self.model, "--mode", mode, "--data",
                              self.path("learn.jsonl"), "--tokens", str(tokens), "--seed",
                              str(seed), "--out", run, *words)
        shutil.copy(os.path.join(run, "mask.safetensors"), mask)
        return mask, report

    def change_weights(self, name, mode, tokens, seed, words):
        """The directory of a model whose kept weights were changed; what tessera reported."""
        model, text, count = self.model, "--data", "--tokens"
        if "--model" in words:
            at = words.index("--model")
            model = words[at + 1].replace(".mask", ".refit")
            del words[at:at + 2]
        out = os.path.join(self.work, "recovered")
        if mode == "refit":
            text, count, out = "--calib", "--calib-tokens", self.refit_of(name, seed)
        report = self.tessera(mode, model, text, self.path("learn.jsonl"), count, str(tokens),
                              "--seed", str(seed), "--out", out, *words)
        return out, report

    def refit_of(self, name, seed=1):
        return os.path.join(self.work, f"{name}-{seed}.refit")

    def measure(self, result, text, *more):
        """Of a mask, of a directory with a model of its own, or of the dense model."""
        states = os.path.join(self.work, f"{text}.states")
        if result and os.path.isdir(result):
            model = [result]
        else:
            model = [self.model, *(["--mask", result] if result else [])]
        return self.tessera("eval", *model, "--ppl", self.path(text), "--window", str(self.window),
                            "--kl-to", self.model, "--kl-cache", states, *more)

    def distance(self, column, perplexity):
        known = {row["name"]: row for row in self.rows()}
        if not perplexity or "dense" not in known:
            return 0
        dense = float(known["dense"][column])
        greedy = float(known["greedy"][column]) if "greedy" in known else perplexity
        return round(math.log(perplexity / dense) / math.log(greedy / dense), 4)

    def run(self, key):
        name, mode, tokens, seed, options = key
        start = time.time()
        mask, report = self.make(*key)
        seconds = report.get("seconds", time.time() - start)
        result = self.measure(mask, "heldout.txt")
        second = {}
        if os.path.exists(self.path("second.txt")):
            second = self.measure(mask, "second.txt", "--tokens", str(SECOND_TOKENS))
        settings = report.get("settings", {})
        row = {
            "date": time.strftime("%Y-%m-%d"), "commit": self.commit, "machine": machine(),
            "isa": report.get("isa", ""), "precision": settings.get("precision", "fp32"),
            "model": self.name, "name": name, "mode": mode, "seed": seed, "tokens": tokens,
            "options": options, "seconds": round(seconds, 1),
            "density": round(result["density"], 6), "predictions": result["predictions"],
            "perplexity": round(result["perplexity"], 3), "kl": round(result["kl"], 4),
            "distance": self.distance("perplexity", result["perplexity"]),
            "second_perplexity": round(second.get("perplexity", 0), 3),
            "second_distance": self.distance("second_perplexity", second.get("perplexity")),
            "best_step": report.get("best_step", ""), "steps": report.get("steps", ""),
            "settings": " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                                 for k, v in settings.items()
                                 if k not in ("mode", "seed", "tokens", "sparsity")),
        }
        new = not os.path.exists(self.csv)
        with open(self.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(f"{name:28} {mode:8} seed {seed} {tokens:7} tokens {row['seconds']:7.0f} s: "
              f"{row['perplexity']:8.2f} {row['distance']:.3f}   second "
              f"{row['second_perplexity']:8.2f} {row['second_distance']:.3f}", flush=True)

    def next_run(self):
        with open(self.plan) as file:
            text = file.read()
        done = {(row["name"], row["mode"], int(row["tokens"]), int(row["seed"]), row["options"])
                for row in self.rows()}
        for key in read_plan(BASELINES + text):
            missing = {"prune": self.mask_of, "refit": self.refit_of}.get(key[1])
            if key not in done or (missing and key[0] != "dense"
                                   and not os.path.exists(missing(key[0], key[3]))):
                return key
        return None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("plan")
    parser.add_argument("--csv", default="results/recipe.csv")
    parser.add_argument("--work", default="recipe-work")
    parser.add_argument("--model", help="name of the model in the ledger (default: FOLDER's)")
    parser.add_argument("--tessera", default=os.path.join(os.path.dirname(HERE), "tessera"))
    parser.add_argument("--tile", help="side of the tiles (default: tessera's)")
    parser.add_argument("--window", type=int, default=WINDOW, help="window of the measurements")
    parser.add_argument("--threads", default="0")
    parser.add_argument("--once", action="store_true", help="one run, then end")
    arguments = parser.parse_args()
    study = Study(arguments)
    while key := study.next_run():
        study.run(key)
        if arguments.once:
            break


if __name__ == "__main__":
    main()
