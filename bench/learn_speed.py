#!/usr/bin/env python3
"""Learning speed of tessera against the plain PyTorch program, interleaved, into a ledger.

usage: learn_speed.py MODEL TEXT [--rounds 3] [--isa avx2 --isa best] [--csv results/learn_speed.csv]

Each round runs a few joint steps of 1,024 tokens of both programs (bench/reference_torch.py; run
this with a Python that has torch and transformers), ours once for each instruction set asked for
(a name as in TSR_ISA, or best) in the precision that is its default. Ratios are taken within a
round, because machines drift; the ledger gets the medians.

Each round also measures what bounds a step: the best rate of matrix products of this size, of ours
(bench_kernels, built if need be) and in fp32 of PyTorch's, and the peak of a loop of multiply-adds.
The share is 0.75 GFLOP a token over the better products: 6 operations for each of the linears'
106 million weights and 4 for each of the head's 28, which gets no gradient.
"""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))
TESSERA = os.path.join(os.path.dirname(HERE), "tessera")
BENCH_KERNELS = os.path.join(os.path.dirname(HERE), "build", "bench", "bench_kernels")
STEPS = 3
GFLOP_A_TOKEN = 0.75


def lowered(isa):
    return os.environ if isa == "best" else {**os.environ, "TSR_ISA": isa}


def product_rates(threads, isa):
    """GFLOP/s by precision: the best product and the peak."""
    output = subprocess.run([BENCH_KERNELS, str(threads), "rate"], check=True, env=lowered(isa),
                            stdout=subprocess.PIPE, text=True).stdout
    fields = [line.split() for line in output.splitlines() if line.startswith("rate ")]
    return {name: (float(best), float(peak)) for _, name, best, peak in fields}


def tessera_rate(model, text, prior, threads, isa):
    """Tokens a second, share of mask work, peak bytes, precision; the first step warms up."""
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        subprocess.run(
            [TESSERA, "learn", model, "--mode", "joint", "--sparsity", "0.45", "--data", text,
             "--tokens", str(STEPS * 1024), "--window", "512", "--batch", "2", "--prior", prior,
             "--heldout-windows", "1", "--evaluations", "1", "--threads", str(threads), "--out", run,
             "--quiet", "--json", os.path.join(folder, "out.json")],
            check=True, stdout=subprocess.DEVNULL,
            env=lowered(isa))
        with open(os.path.join(run, "record.jsonl")) as file:
            steps = [line for line in map(json.loads, file) if line["type"] == "step"][1:]
        with open(os.path.join(folder, "out.json")) as file:
            report = json.load(file)
    seconds = statistics.median(step["seconds"] for step in steps)
    mask = statistics.median(step["mask_seconds"] / step["seconds"] for step in steps)
    return 1024 / seconds, mask, report["peak_bytes"], report["settings"]["precision"]


def torch_rate(threads):
    """Tokens a second, version, GFLOP/s of its best fp32 product."""
    output = subprocess.run(
        [sys.executable, os.path.join(HERE, "reference_torch.py"), "--json", "--steps",
         str(STEPS - 1), "--threads", str(threads)],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    report = json.loads(output)
    return report["tokens_per_s"], report["torch"], report["product_gflops"]


def median(values):
    return round(statistics.median(values), 1)


def share(ours, products, torch_products):
    """Of the better products' rate; PyTorch's are fp32."""
    best = products[ours[3]][0]
    if ours[3] == "fp32":
        best = max(best, torch_products)
    return ours[0] * GFLOP_A_TOKEN / best


def append(path, rows):
    """Rows of before keep their values; what they did not have stays empty."""
    old = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            old = list(csv.DictReader(file))
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(old + rows)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--csv", default="results/learn_speed.csv")
    parser.add_argument("--isa", action="append")
    arguments = parser.parse_args()
    isas = arguments.isa or ["best"]
    subprocess.run(["cmake", "--build", os.path.join(os.path.dirname(HERE), "build"), "--target",
                    "bench_kernels"], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        prior = os.path.join(folder, "prior.mask")
        subprocess.run([TESSERA, "prune", arguments.model, "--method", "magnitude", "--pattern",
                        "2:4", "--out", prior, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        rounds = []
        for index in range(arguments.rounds):
            ours = {isa: tessera_rate(arguments.model, arguments.text, prior, arguments.threads, isa)
                    for isa in isas}
            theirs = torch_rate(arguments.threads)
            products = {isa: product_rates(arguments.threads, isa) for isa in isas}
            rounds.append((ours, theirs, products))
            for isa in isas:
                print(f"round {index + 1}, {isa}: tessera {ours[isa][0]:.1f}, torch {theirs[0]:.1f} "
                      f"tokens/s ({ours[isa][0] / theirs[0]:.2f}x); masks {100 * ours[isa][1]:.1f} % "
                      f"of a step; products {products[isa][ours[isa][3]][0]:.0f}, torch's "
                      f"{theirs[2]:.0f}, peak {products[isa][ours[isa][3]][1]:.0f} GFLOP/s; share "
                      f"{100 * share(ours[isa], products[isa], theirs[2]):.0f} %", flush=True)
    rows = [{
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(TESSERA),
        "machine": machine(),
        "isa": isa,
        "precision": rounds[0][0][isa][3],
        "threads": arguments.threads,
        "step": "joint, SmolLM2-135M, 2 x 512 tokens",
        "tessera_tokens_per_s": round(statistics.median(r[0][isa][0] for r in rounds), 1),
        "torch_tokens_per_s": round(statistics.median(r[1][0] for r in rounds), 1),
        "ratio": round(statistics.median(r[0][isa][0] / r[1][0] for r in rounds), 2),
        "mask_share": round(statistics.median(r[0][isa][1] for r in rounds), 3),
        "peak_mib": round(max(r[0][isa][2] for r in rounds) / 2**20),
        "product_gflops": median(r[2][isa][r[0][isa][3]][0] for r in rounds),
        "torch_product_gflops": median(r[1][2] for r in rounds),
        "peak_gflops": median(r[2][isa][r[0][isa][3]][1] for r in rounds),
        "product_share": round(statistics.median(share(r[0][isa], r[2][isa], r[1][2])
                                                 for r in rounds), 3),
        "torch": rounds[0][1][1],
        "rounds": arguments.rounds,
    } for isa in isas]
    append(arguments.csv, rows)
    for row in rows:
        print(f"{arguments.csv}: {row}")


if __name__ == "__main__":
    main()
