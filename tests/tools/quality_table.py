#!/usr/bin/env python3
"""Checks bench/table.py on a tiny model: rows, restart, what is written, what is refused.

usage: quality_table.py MODEL TEXT SCRATCH (TSR_PROGRAM names the program)
"""
import csv
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL, TEXT, SCRATCH = sys.argv[1:]
ITEM = {"goal": "Find the cat", "sol1": "Look in the box.", "sol2": "Go away.", "label": 0}


def path(*names):
    return os.path.join(SCRATCH, *names)


def table(*arguments, tokens="2048"):
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, "bench", "table.py"), "--model", MODEL, "--learn", TEXT,
         "--text", "tiny=" + TEXT, "--text-tokens", "1024", "--window", "64", "--work",
         path("work"), "--tasks-dir", path("tasks"), "--limit", "2", "--tokens", tokens,
         "--calib-tokens", "1024", "--sparsities", "0.45", "--csv", path("out", "table.csv"),
         "--document", path("out", "RESULTS.md"), *arguments], capture_output=True, text=True)


def ledger():
    with open(path("out", "table.csv"), newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def main():
    os.makedirs(path("tasks"))
    with open(path("tasks", "piqa.jsonl"), "w") as file:
        file.write(3 * (json.dumps(ITEM) + "\n"))
    first = table("--rows", "dense,greedy45")
    assert first.returncode == 0, first.stderr
    rows = ledger()
    assert set(rows) == {"dense", "greedy45"}
    assert float(rows["dense"]["density"]) == 1 and float(rows["dense"]["kl"]) == 0
    assert abs(float(rows["greedy45"]["density"]) - 0.55) < 0.02
    assert float(rows["greedy45"]["perplexity_tiny"]) > float(rows["dense"]["perplexity_tiny"])
    assert rows["dense"]["mean_acc"] == rows["dense"]["acc_piqa"]

    # tile maps read here add up to the density that the program counts
    with open(path("work", "rows", "greedy45.json")) as file:
        row = json.load(file)
    kept, total = (sum(x) for x in zip(*row["tiles"].values()))
    assert abs(kept / total - row["density"]) < 1e-9

    # a second call makes the new row only
    stamp = os.stat(path("work", "rows", "greedy45.json")).st_mtime_ns
    second = table("--rows", "dense,greedy45,tile45-t16-s1")
    assert second.returncode == 0, second.stderr
    assert os.stat(path("work", "rows", "greedy45.json")).st_mtime_ns == stamp
    row = ledger()["tile45-t16-s1"]
    assert row["seed"] == "1" and row["learning_tokens"] == "2048" and float(row["density"]) < 0.56
    with open(path("out", "RESULTS.md")) as file:
        document = file.read()
    for word in ("greedy hybrid", "tile, tiles of 16", "quality_density.svg", "Not run:",
                 "Where the density went"):
        assert word in document, word
    assert os.path.exists(path("out", "quality_density.svg"))
    assert os.path.exists(path("work", "report.html"))

    # masks whose kept weights were changed: other models, measured as such
    third = table("--rows", "greedy45-*")
    assert third.returncode == 0, third.stderr
    rows = ledger()
    assert rows["greedy45-refit"]["weights"] == "refit"
    assert rows["greedy45-recovered"]["weights"] == "recover"
    assert rows["greedy45-recovered"]["learning_tokens"] == "2048"
    for key in ("greedy45-refit", "greedy45-recovered"):
        assert rows[key]["density"] == rows["greedy45"]["density"]
        assert rows[key]["perplexity_tiny"] != rows["greedy45"]["perplexity_tiny"]

    # rows of other settings are not mixed in; unknown rows are refused
    other = table("--rows", "dense", tokens="4096")
    assert other.returncode == 1 and "tokens" in other.stderr, other.stderr
    unknown = table("--rows", "pika")
    assert unknown.returncode == 1 and "pika" in unknown.stderr, unknown.stderr


main()
