#!/usr/bin/env python3
"""Our products beside what users would pick, over the dense product: one table from two ledgers.

Medians over the layers that both ledgers have: ours at each density by the kernel that was chosen,
over cuBLASLt in the same run; cuSPARSELt and CUTLASS through PyTorch (pure 2:4, our density 0.5)
over PyTorch's dense layer in theirs; bytes of the weights over dense; and the ratios that STOICC
has published, where batch and share of tiles are the same.

Usage: gpu_table.py GPU_PRODUCTS_CSV [GPU_PEERS_CSV]
"""
import csv
import statistics
import sys

# STOICC, over cuBLAS on an A100 at batch 16, by the density that its share of 2:4 tiles comes to.
STOICC = {0.875: 1.17, 0.75: 1.29, 0.625: 1.45, 0.5: 1.65}
STOICC_BATCH = 16
# PATCH's models through STOICC against dense ones, end to end, at densities 0.75, 0.65 and 0.55:
# LLaMA-2 7B, batch 16, a prompt of 128 and 128 tokens generated.
END_TO_END = {"A6000": (1.18, 1.27, 1.38), "A100": (1.07, 1.11, 1.16)}


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def median(values):
    return f"{statistics.median(values):.2f}" if values else ""


def ours(products):
    """{(tokens, density): speed-ups}, {density: bytes over dense}."""
    speed, size = {}, {}
    for r in products:
        if r["weights"] != "bf16":
            continue
        density = float(r["density"])
        speed.setdefault((int(r["tokens"]), density), []).append(float(r["choice_speedup"]))
        size.setdefault(density, {})[r["layer"]] = (
            int(r["weight_bytes"]) / (2 * int(r["rows"]) * int(r["cols"])))
    return speed, {d: list(v.values()) for d, v in size.items()}


def peers(rows):
    """{(tokens, backend): speed-ups over its dense}, {backend: bytes over dense}."""
    dense = {(r["layer"], r["tokens"]): r for r in rows if r["backend"] == "dense" and r["ms"]}
    speed, size = {}, {}
    for r in rows:
        base = dense.get((r["layer"], r["tokens"]))
        if r["backend"] == "dense" or not r["ms"] or not base:
            continue
        key = int(r["tokens"]), r["backend"]
        speed.setdefault(key, []).append(float(base["ms"]) / float(r["ms"]))
        size.setdefault(r["backend"], []).append(int(r["bytes"]) / int(base["bytes"]))
    return speed, size


def main():
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    speed, size = ours(rows_of(sys.argv[1]))
    others, other_size = peers(rows_of(sys.argv[2])) if len(sys.argv) > 2 else ({}, {})
    densities = sorted(size, reverse=True)
    backends = sorted(other_size)
    print("over dense, medians of the layers\n")
    print("| batch | " + " | ".join(f"density {d:g}" for d in densities) +
          "".join(f" | {b} 2:4" for b in backends) + " | STOICC, 2:4 |")
    print("|---|" + "---|" * (len(densities) + len(backends) + 1))
    for tokens in sorted({t for t, _ in speed}):
        cells = [median(speed.get((tokens, d), [])) for d in densities]
        cells += [median(others.get((tokens, b), [])) for b in backends]
        cells.append(f"{STOICC[0.5]:.2f}" if tokens == STOICC_BATCH else "")
        print(f"| {tokens} | " + " | ".join(cells) + " |")
    cells = [median(size[d]) for d in densities] + [median(other_size[b]) for b in backends]
    print("| bytes | " + " | ".join(cells) + " | |")
    print("\nSTOICC over cuBLAS, A100, batch 16, as published: " +
          ", ".join(f"{r:.2f} at density {d:g}" for d, r in STOICC.items()))
    print("End to end with STOICC, LLaMA-2 7B, batch 16, as published, at 0.75 / 0.65 / 0.55: " +
          ", ".join(f"{c} {' / '.join(map(str, r))}" for c, r in END_TO_END.items()))


if __name__ == "__main__":
    main()
