#!/usr/bin/env python3
"""What products rounded to bf16 do to a learned mask, into a ledger.

usage: precision.py [FOLDER] [--tokens 20480] [--heldout-tokens 8192] [--work DIR] [--csv FILE]

FOLDER holds the demo's model and texts (tools/demo_data.py puts them there). For each mode three
runs from one SparseGPT prior: fp32 and bf16 with seed 1, and fp32 with seed 2, which says how far
apart two runs are that differ in nothing but the noise. Each row has the held-out perplexity
(measured in fp32), and how the mask differs from that of fp32 and seed 1: the share of tiles that
are dense in one and 2:4 in the other, and the share of groups that keep other weights among those
in tiles that are 2:4 in both. Runs found finished in DIR are taken as they are.
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

SPARSITY, WINDOW, CALIBRATION_TOKENS = "0.45", 512, 12288
RUNS = (("fp32", 1), ("bf16", 1), ("fp32", 2))


def tessera(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "out.json")
        subprocess.run([TESSERA, *arguments, "--json", output], check=True,
                       stdout=subprocess.DEVNULL)
        with open(output) as file:
            return json.load(file)


def read_mask(path):
    """name -> (rows, columns, tile rows, tile columns, tile map, codes)"""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    matrices = {}
    for key, text in header["__metadata__"].items():
        if not key.startswith("matrix:"):
            continue
        name, sizes = key[7:], [int(word) for word in text.split()[1:]]
        parts = [data[slice(*header[f"{name}.{part}"]["data_offsets"])]
                 for part in ("tile_map", "codes")]
        matrices[name] = (*sizes, *parts)
    return matrices


def nibbles_that_differ(a, b):
    bits = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
    bits |= bits >> 2
    bits |= bits >> 1
    return (bits & int.from_bytes(b"\x11" * len(a), "little")).bit_count()


def compare(a, b):
    """Share of tiles, and of groups in tiles that are 2:4 in both, that differ."""
    tiles = other_tiles = groups = other_groups = 0
    for name, (rows, cols, tile_rows, tile_cols, map_a, codes_a) in a.items():
        map_b, codes_b = b[name][4:]
        across, stride = -(-cols // tile_cols), (cols + 7) // 8
        for tile in range(across * -(-rows // tile_rows)):
            dense = [bits[tile // 8] >> tile % 8 & 1 for bits in (map_a, map_b)]
            tiles += 1
            other_tiles += dense[0] != dense[1]
            if any(dense):
                continue
            top, left = tile // across * tile_rows, tile % across * tile_cols // 8
            width = min(tile_cols // 8, stride - left)
            for row in range(top, min(top + tile_rows, rows)):
                at = row * stride + left
                groups += 2 * width
                other_groups += nibbles_that_differ(codes_a[at:at + width], codes_b[at:at + width])
    return other_tiles / tiles, other_groups / groups


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--heldout-tokens", type=int, default=8192)
    parser.add_argument("--work", default="tessera-precision")
    parser.add_argument("--csv", default="results/precision.csv")
    arguments = parser.parse_args()
    model, learn, heldout = (
        os.path.join(arguments.folder, name) for name in ("model.gguf", "learn.jsonl", "heldout.txt"))
    os.makedirs(arguments.work, exist_ok=True)
    prior = os.path.join(arguments.work, "prior.mask")
    if not os.path.exists(prior):
        tessera("prune", model, "--method", "sparsegpt", "--pattern", "2:4", "--calib", learn,
                "--calib-tokens", str(CALIBRATION_TOKENS), "--out", prior)
    rows = []
    for mode in ("tile", "joint"):
        first = None
        for precision, seed in RUNS:
            run = os.path.join(arguments.work, f"{mode}-{precision}-{seed}")
            mask = os.path.join(run, "mask.safetensors")
            if not os.path.exists(mask):
                tessera("learn", model, "--mode", mode, "--sparsity", SPARSITY, "--data", learn,
                        "--tokens", str(arguments.tokens), "--window", str(WINDOW), "--seed",
                        str(seed), "--precision", precision, "--prior", prior, "--out", run)
            with open(os.path.join(run, "record.jsonl")) as file:
                final = [line for line in map(json.loads, file) if line["type"] == "final"][-1]
            result = tessera("eval", model, "--mask", mask, "--ppl", heldout, "--window",
                             str(WINDOW), "--tokens", str(arguments.heldout_tokens), "--quiet")
            made = read_mask(mask)
            first = first or made
            tiles, groups = compare(first, made)
            rows.append({
                "date": time.strftime("%Y-%m-%d"), "commit": commit(TESSERA),
                "machine": machine(), "isa": result["isa"], "mode": mode, "precision": precision,
                "seed": seed, "learning_tokens": arguments.tokens,
                "learning_seconds": round(final["seconds"]), "density": round(result["density"], 6),
                "window": WINDOW, "predictions": result["predictions"],
                "perplexity": round(result["perplexity"], 3),
                "perplexity_stderr": round(result["perplexity_stderr"], 3),
                "tiles_that_differ": round(tiles, 5), "groups_that_differ": round(groups, 6),
            })
            print(rows[-1], flush=True)
    new = not os.path.exists(arguments.csv)
    with open(arguments.csv, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
