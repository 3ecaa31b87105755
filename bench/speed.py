#!/usr/bin/env python3
"""Decode and prefill speed of this machine, into a ledger (docs/BENCH.md says what is measured).

usage: speed.py [FOLDER] [--peers] [--quick] [--dtype bf16,int8,int4] [--only synthetic|demo]
                [--csv results/speed.csv]

Measures synthetic models (llama2-7b and qwen2.5-0.5b, dense and at four densities) in each of the
types, then the demo's model in FOLDER (tools/demo_data.py puts it there), dense and hybrid at 45 %,
in each of them, too; with --peers bf16 against llama.cpp and PyTorch, integers against llama.cpp's
Q8_0 and Q4_0. PYTHON names the interpreter that has the peers.
--quick takes fewer batches and shorter runs: minutes rather than an hour. TSR_ISA lowers the
instruction set, as everywhere. A row of the ledger is replaced when the same is measured again on
the same machine with the same instruction set and threads; all others stay.
"""
import argparse
import csv
import json
import os
import subprocess
import tempfile
import time

from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))
TESSERA = os.path.join(os.path.dirname(HERE), "tessera")

SYNTHETIC = [("llama2-7b", 2), ("qwen2.5-0.5b", 0)]
FIELDS = ["date", "commit", "machine", "isa", "threads", "model", "form", "dtype", "density",
          "phase", "batch", "tokens_per_s", "bytes_per_token", "read_share", "speedup", "roofline",
          "peer"]
DIGITS = {"density": 5, "tokens_per_s": 2, "bytes_per_token": 0, "read_share": 3, "speedup": 3,
          "roofline": 3}


def tessera(*arguments):
    subprocess.run([TESSERA, *arguments], check=True, stdout=subprocess.DEVNULL)


KEY = [field for field in FIELDS[2:11] if field != "tokens_per_s"]


def key_of(row):
    """What a row is about: where it was measured, on what, and by whom."""
    return tuple(str(row.get(field) or "") for field in KEY) + ((row["peer"] or "").split(" ")[0],)


def write(csv_path, rows):
    """Puts rows in the place of those about the same, or behind the others."""
    kept = []
    if os.path.exists(csv_path):
        with open(csv_path, newline="") as file:
            kept = list(csv.DictReader(file))
    new = {key_of(row): row for row in rows}
    rows = [new.pop(key_of(row), row) for row in kept]
    rows += new.values()
    with open(csv_path + ".part", "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(csv_path + ".part", csv_path)


def bench(csv_path, *arguments):
    """Runs the program, whose table goes to the terminal, and keeps what it measured."""
    with tempfile.NamedTemporaryFile(suffix=".json") as output:
        subprocess.run([TESSERA, "bench", *arguments, "--force", "--json", output.name], check=True)
        with open(output.name) as file:  # the program replaced the file that `output` has open
            result = json.load(file)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit(TESSERA), "machine": machine(),
             "isa": result["isa"], "threads": result["threads"]}
    rows = result["rows"] + [{"form": "dense", "density": 1, **row,
                              "peer": f"{row['peer']} {row['version']}"}
                             for row in result["peers"]]
    for row in rows:
        row["model"] = os.path.basename(row["model"])
    write(csv_path, [about | {key: plain(key, row.get(key)) for key in FIELDS[5:]} for row in rows])


def plain(key, value):
    if value is None or key not in DIGITS:
        return value
    return round(value, DIGITS[key]) if DIGITS[key] else round(value)


def make_models(folder, work, dtype):
    """The demo's model, dense and hybrid. Which weights a mask keeps does not matter for speed, and
    integers are of its weights as bf16, so that those of peers are the same."""
    source, mask = os.path.join(folder, "model.gguf"), os.path.join(work, "mask")
    plain_form, name = os.path.join(work, "SmolLM2-135M"), f"SmolLM2-135M-{dtype}"
    if not os.path.exists(mask):
        tessera("export", source, "--to", "hf", "--type", "bf16", "--out", plain_form)
        tessera("prune", source, "--method", "magnitude", "--pattern", "hybrid", "--sparsity",
                "0.45", "--out", mask)
    if dtype == "bf16":
        dense, hybrid = plain_form, plain_form + "-hybrid"
    else:
        dense, hybrid = os.path.join(work, name), os.path.join(work, name + "-hybrid")
        tessera("pack", plain_form, "--dtype", dtype, "--out", dense)
    tessera("pack", plain_form, "--mask", mask, "--dtype", dtype, "--out", hybrid)
    return dense, hybrid


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dtype", default="bf16,int8,int4")
    parser.add_argument("--only", choices=["synthetic", "demo"])
    parser.add_argument("--csv", default="results/speed.csv")
    arguments = parser.parse_args()
    short = ["--decode", "1,8", "--prefill", "128,512", "--seconds", "0.3", "--rounds", "3"]
    short = short if arguments.quick else []
    for dtype in arguments.dtype.split(",") if arguments.only != "demo" else []:
        for name, layers in SYNTHETIC:
            bench(arguments.csv, "--synthetic", name, "--layers", str(layers), "--dtype", dtype,
                  *short)
    if arguments.only == "synthetic":
        return
    with tempfile.TemporaryDirectory() as work:
        for dtype in arguments.dtype.split(","):
            models = make_models(arguments.folder, work, dtype)
            # PyTorch has no integers: its bf16 is measured once
            peers = ["--peers"] if dtype == "bf16" else ["--peer", "llama.cpp"]
            bench(arguments.csv, *models, *short, *(peers if arguments.peers else []))


if __name__ == "__main__":
    main()
