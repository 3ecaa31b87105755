#!/usr/bin/env python3
"""What int8 and int4 weights cost and what they gain, dense and hybrid, into a ledger.

usage: quant.py [FOLDER] [--mask MASK] [--tokens 4096] [--work DIR] [--csv results/quant.csv]

FOLDER holds the demo's model and text (tools/demo_data.py puts them there). Its GGUF is packed as
bf16, int8 (a scale for a row, for 32 columns) and int4 (for 32; with minimums, which takes the Q4_1
blocks of the source over; without, which quantizes them again), dense and under MASK; without one a
tile mask of 45 % sparsity is learned shortly. Each row has the perplexity of the held-out text and
the KL divergence to the dense model in fp32, twice: with the weights expanded and products in fp32
(eval), and token by token as generate computes (eval --decode), where integers multiply activations
rounded to int8; the bytes of the weights' file; and decode speed at batch 1 and 8 and of a prompt of
512 tokens, all models measured in turn in one run of bench. KL of a hybrid is to the dense model,
too: what the mask costs is in it; `kl_masked` is to the same mask in fp32, so that it holds what
quantizing costs alone. Models and measurements found in DIR are taken as they are, but for speed.
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

SPARSITY, WINDOW, LEARN_TOKENS = "0.45", 512, 20480
FORMS = (("bf16", ["--dtype", "bf16"]),
         ("int8 row", ["--dtype", "int8", "--group", "row"]),
         ("int8", ["--dtype", "int8"]),
         ("int4 mins", ["--dtype", "int4", "--mins"]),
         ("int4", ["--dtype", "int4"]))
CASES = (("decode", 1), ("decode", 8), ("prefill", 512))
FIELDS = ["date", "commit", "machine", "isa", "threads", "model", "weights", "form", "density",
          "file_bytes", "window", "predictions", "perplexity", "kl", "kl_masked", "same_top1",
          "decode_perplexity", "decode_kl", "decode_same_top1", "weight_bytes"] + [
              f"{phase}_{batch}_tokens_per_s" for phase, batch in CASES]


def tessera(*arguments):
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "out.json")
        subprocess.run([TESSERA, *arguments, "--force", "--json", output], check=True,
                       stdout=subprocess.DEVNULL)
        with open(output) as file:
            return json.load(file)


def learn_mask(folder, work):
    model, data = (os.path.join(folder, name) for name in ("model.gguf", "learn.jsonl"))
    prior, run = os.path.join(work, "prior.mask"), os.path.join(work, "run")
    tessera("prune", model, "--method", "sparsegpt", "--pattern", "2:4", "--calib", data,
            "--calib-tokens", "12288", "--out", prior)
    tessera("learn", model, "--mode", "tile", "--sparsity", SPARSITY, "--data", data, "--tokens",
            str(LEARN_TOKENS), "--window", str(WINDOW), "--prior", prior, "--out", run)
    return os.path.join(run, "mask.safetensors")


def pack(source, mask, options, out):
    """A packed directory; a dense bf16 model, which is no packed one, is exported."""
    if options == ["--dtype", "bf16"] and not mask:
        tessera("export", source, "--to", "hf", "--type", "bf16", "--out", out)
    else:
        tessera("pack", source, *(["--mask", mask] if mask else []), *options, "--out", out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--mask")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--work", default="tessera-quant")
    parser.add_argument("--csv", default="results/quant.csv")
    arguments = parser.parse_args()
    source, text = (os.path.join(arguments.folder, name) for name in ("model.gguf", "heldout.txt"))
    work = arguments.work
    os.makedirs(work, exist_ok=True)
    mask = arguments.mask or learn_mask(arguments.folder, work)
    rows, paths = [], []
    for form in ("dense", "hybrid"):
        for name, options in FORMS:
            path = os.path.join(work, f"{form}-{name}".replace(" ", "-"))
            kept = path + ".json"
            if not os.path.exists(kept):
                # blocks of the source are taken over, but where all is to be quantized anew
                pack(f32(source, work) if name == "int4" else source,
                     mask if form == "hybrid" else None, options, path)
                row = measure(path, source, text, mask, form, name, arguments)
                with open(kept, "w") as file:
                    json.dump(row, file)
            with open(kept) as file:
                rows.append(json.load(file))
            paths.append(path)
            print(rows[-1], flush=True)
    add_speed(rows, paths)
    new = not os.path.exists(arguments.csv)
    with open(arguments.csv, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def measure(path, source, text, mask, form, name, arguments):
    """The row of a packed model, but for speed."""
    how = ["--ppl", text, "--window", str(WINDOW), "--tokens", str(arguments.tokens), "--quiet"]
    # the last hidden states of both references are kept: they are the same in every row
    dense = ["--kl-to", source, "--kl-cache", os.path.join(arguments.work, "dense.states")]
    masked = ["--kl-to", f32(source, arguments.work, mask), "--kl-cache",
              os.path.join(arguments.work, "masked.states")]
    exact = tessera("eval", path, *how, *dense)
    alone = tessera("eval", path, *how, *masked) if form == "hybrid" else exact
    decoded = tessera("eval", path, *how, *dense, "--decode")
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit(TESSERA), "machine": machine(),
        "isa": exact["isa"], "threads": exact["threads"], "model": "SmolLM2-135M-Instruct",
        "weights": name, "form": form, "density": round(exact["density"], 5),
        "file_bytes": os.path.getsize(os.path.join(path, "model.safetensors")),
        "window": WINDOW, "predictions": exact["predictions"],
        "perplexity": round(exact["perplexity"], 4), "kl": round(exact["kl"], 6),
        "kl_masked": round(alone["kl"], 6), "same_top1": round(exact["top1_agreement"], 4),
        "decode_perplexity": round(decoded["perplexity"], 4), "decode_kl": round(decoded["kl"], 6),
        "decode_same_top1": round(decoded["top1_agreement"], 4)}


def add_speed(rows, paths):
    speed = tessera("bench", *paths, "--decode", "1,8", "--prefill", "512", "--rounds", "3",
                    "--seconds", "0.15")
    for row, path in zip(rows, paths):
        for measured in speed["rows"]:
            if measured["model"] == path:
                phase, batch = measured["phase"], measured["batch"]
                row[f"{phase}_{batch}_tokens_per_s"] = round(measured["tokens_per_s"], 1)
        row["weight_bytes"] = next(m["weight_bytes"] for m in speed["models"]
                                   if m["model"] == path)


def f32(source, work, mask=None):
    """The source in fp32, so that nothing of its blocks can be taken over; or masked."""
    path = os.path.join(work, "masked-f32" if mask else "source-f32")
    if not os.path.exists(path):
        tessera("export", source, *(["--mask", mask] if mask else []), "--to", "hf", "--type",
                "f32", "--out", path)
    return path


if __name__ == "__main__":
    main()
