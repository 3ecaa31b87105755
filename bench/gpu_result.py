#!/usr/bin/env python3
"""The paper's order on one card, in pieces: masks learned from many tokens (joint at 25, 35 and 45 %,
maskllm) beside SparseGPT's and Wanda's, and a row each in a ledger.

usage: gpu_result.py FOLDER [--device cuda] [--tokens 30000000] [--seconds 540] [--work DIR]
                     [--csv results/gpu_result.csv] [--tessera PROGRAM] [--seed N] [--window N]
                     [--learn OPTIONS]

FOLDER holds model.gguf (or model/), learn.jsonl and heldout.txt, as tools/demo_data.py makes them;
--data takes another text to learn from, such as one that the dense model wrote. The command ends by
itself after --seconds and says what is left: a learning run is stopped with its checkpoint saved,
and the next call with the same DIR goes on, to the same bits. What is in the ledger is not made
again. --learn adds options to every learning run, as in --learn '--graphs --batch 64'. With --device
cpu and few --tokens it is a rehearsal. Exit status: 0 all rows are there, 75 there is more to do.
"""
import argparse
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time

from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))
MORE_TO_DO = 75
GRACE_SECONDS = 60  # for a run that was told to stop: its step, and the checkpoint
LEAST_SECONDS = 20  # with less left, nothing is begun

# name, method, sparsity; in the paper's order, best first
ROWS = (
    ("dense", "dense", 0),
    ("joint-25", "joint", 0.25),
    ("joint-35", "joint", 0.35),
    ("joint-45", "joint", 0.45),
    ("maskllm", "maskllm", 0.5),
    ("sparsegpt", "sparsegpt", 0.5),
    ("wanda", "wanda", 0.5),
)
FIELDS = ("date commit machine card device model name method seed tokens data window seconds "
          "tokens_per_second density predictions perplexity kl top1_agreement best_step steps "
          "options").split()


def card_name(device):
    """What nvidia-smi calls the card; nothing on the CPU."""
    if not device.startswith("cuda"):
        return ""
    try:
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                               check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return names[int(device.partition(":")[2] or 0)].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown card"


class OutOfTime(Exception):
    """The time of this call is spent; what was begun is saved."""


class Result:
    def __init__(self, a):
        self.a, self.deadline = a, time.monotonic() + a.seconds
        self.model = next((p for p in (self.path("model.gguf"), self.path("model"))
                           if os.path.exists(p)), None)
        if not self.model:
            sys.exit(f"gpu_result: there is no model.gguf or model in {a.folder}; "
                     "tools/demo_data.py makes one")
        self.name = os.path.basename(os.path.realpath(self.model))
        self.data = a.data or self.path("learn.jsonl")
        os.makedirs(a.work, exist_ok=True)

    def path(self, name):
        return os.path.join(self.a.folder, name)

    def out(self, name):
        return os.path.join(self.a.work, name)

    def tessera(self, report, *arguments):
        """Runs the program until it ends or time is up; its report."""
        left = self.deadline - time.monotonic()
        if left < LEAST_SECONDS:
            raise OutOfTime
        process = subprocess.Popen([self.a.tessera, *arguments, "--json", report, "--quiet"],
                                   stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # the checkpoint before is kept
                process.wait()
            raise OutOfTime from None
        if code:
            sys.exit(f"gpu_result: tessera {arguments[0]} ended with {code}")
        with open(report, encoding="utf-8") as file:
            return json.load(file)

    def prune(self, method):
        """The mask of a one-shot method, made once; and what it took."""
        mask, report = self.out(f"{method}.mask"), self.out(f"{method}.json")
        if not os.path.exists(mask):
            self.tessera(report, "prune", self.model, "--method", method, "--pattern", "2:4",
                         "--calib", self.data, "--device", self.a.device, "--out", mask)
        with open(report, encoding="utf-8") as file:
            return mask, json.load(file)

    def learn(self, name, method, sparsity):
        prior, _ = self.prune("sparsegpt")
        run, report = self.out(name), self.out(f"{name}.json")
        if not (os.path.exists(report) and os.path.exists(os.path.join(run, "mask.safetensors"))):
            self.tessera(report, "learn", self.model, "--mode", method, "--sparsity",
                         str(sparsity), "--data", self.data, "--tokens", str(self.a.tokens),
                         "--seed", str(self.a.seed), "--prior", prior, "--out", run, "--resume",
                         "--device", self.a.device, "--checkpoint-every", "120",
                         *shlex.split(self.a.learn))
        with open(report, encoding="utf-8") as file:
            return os.path.join(run, "mask.safetensors"), json.load(file)

    def make(self, name, method, sparsity):
        mask, report = None, {}
        if method in ("sparsegpt", "wanda"):
            mask, report = self.prune(method)
        elif method != "dense":
            mask, report = self.learn(name, method, sparsity)
        measured = self.tessera(self.out("eval.json"), "eval", self.model, "--ppl",
                                self.path("heldout.txt"), "--window", str(self.a.window),
                                "--kl-to", self.model, "--kl-cache", self.out("states"),
                                "--device", self.a.device, "--force",
                                *(["--mask", mask] if mask else []))
        learned = method in ("joint", "maskllm")
        return {
            "date": time.strftime("%Y-%m-%d"), "commit": commit(self.a.tessera),
            "machine": machine(), "card": card_name(self.a.device), "device": self.a.device,
            "model": self.name, "name": name, "method": method, "seed": self.a.seed,
            "tokens": self.a.tokens if learned else 0, "data": os.path.basename(self.data),
            "window": self.a.window, "seconds": round(report.get("seconds", 0), 1),
            "tokens_per_second": round(report.get("tokens_per_second", 0), 1),
            "density": round(measured["density"], 6), "predictions": measured["predictions"],
            "perplexity": round(measured["perplexity"], 3), "kl": round(measured["kl"], 4),
            "top1_agreement": round(measured["top1_agreement"], 4),
            "best_step": report.get("best_step", ""), "steps": report.get("steps", ""),
            "options": self.a.learn if learned else "",
        }

    def done(self):
        if not os.path.exists(self.a.csv):
            return []
        with open(self.a.csv, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file)
                    if row["model"] == self.name and row["seed"] == str(self.a.seed)
                    and row["device"] == self.a.device
                    and row["tokens"] in ("0", str(self.a.tokens))]

    def add(self, row):
        new = not os.path.exists(self.a.csv)
        with open(self.a.csv, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def say_order(self):
        """The rows by their perplexity, and whether that is the paper's order."""
        rows = {row["name"]: float(row["perplexity"]) for row in self.done()}
        for name in sorted(rows, key=rows.get):
            print(f"{name:12} {rows[name]:10.3f}")
        paper = [rows[name] for name, _, _ in ROWS if name in rows]
        print("the paper's order", "holds" if paper == sorted(paper) else "does not hold")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=30_000_000)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--work", default="gpu-result")
    parser.add_argument("--csv", default="results/gpu_result.csv")
    parser.add_argument("--tessera", default=os.path.join(os.path.dirname(HERE), "tessera"))
    parser.add_argument("--data", help="the text to learn from (default: FOLDER/learn.jsonl)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window", type=int, default=512, help="of the measurements")
    parser.add_argument("--learn", default="", help="more options of tessera learn")
    result = Result(parser.parse_args())
    try:
        for row in ROWS:
            if row[0] not in {known["name"] for known in result.done()}:
                result.add(result.make(*row))
                print(f"gpu_result: {row[0]} is measured", flush=True)
    except OutOfTime:
        left = len(ROWS) - len(result.done())
        print(f"gpu_result: time is up, {left} of {len(ROWS)} rows are left: run it again")
        sys.exit(MORE_TO_DO)
    result.say_order()


if __name__ == "__main__":
    main()
