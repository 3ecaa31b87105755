#!/usr/bin/env python3
"""What the hybrid product's kernels should reach: a model of cycles and bytes, on paper.

Prints the tables of docs/GPU.md; with --measured results/gpu_products.csv, puts each measured time
beside its prediction. Each term is a time; the largest binds, and the start and the end of a launch
come on top. Nothing in here was fitted to a measurement.

Usage: gpu_model.py [--measured FILE]
"""
import argparse
import csv

# Bytes of weights for 128 rows x 64 columns, 2:4 and dense. Of integers: instructions that make a
# fragment of a lane's eight weights bf16 (a load; a permutation, a multiply-add and half a
# conversion for each weight, and what takes bytes and nibbles apart), and those that fetch a row
# block's scales for 32 columns.
FORMS = {
    "bf16": dict(sparse=9216, dense=16384, make=1, scale=0),
    "int8": dict(sparse=5120, dense=8192, make=23, scale=0),  # a scale for each row
    "int4": dict(sparse=3584, dense=4608, make=24, scale=6),  # f16 scales for 32 columns
}
# Published figures: multiprocessors, clock in GHz, memory and L2 bandwidth in bytes/s, dense bf16
# multiply-adds a cycle of a multiprocessor with mma (on H100 1280 is what others have measured) and
# with wgmma; how many blocks in clusters of four run at once.
CARDS = {
    "A100": dict(sms=108, ghz=1.41, memory=1.555e12 * 0.90, l2=4.0e12, fma=1024),
    "H100": dict(sms=132, ghz=1.755, memory=3.35e12 * 0.90, l2=5.5e12, fma=1280, wgmma=2048,
                 clustered=128),
}
FRAGMENTS = {"sparse": 2, "dense": 4}  # of a row block and step
LAUNCH = 3e-6  # start of a launch, first tiles, and the last block's sums
# panel: (warps down, warps across)
KERNELS = {8: (8, 1), 16: (8, 1), 32: (8, 1), 64: (8, 1), 128: (2, 4), 256: (2, 4)}


def panel_of(tokens):
    return next((p for p in KERNELS if p >= tokens), 256)


def kernel_of(card, rows, tokens):
    """Panel; warps down a strip and across; strips that share a panel's copy; by wgmma?"""
    strips = -(-rows // 128)
    panel = panel_of(tokens)
    if tokens > 64 and "wgmma" in CARDS[card]:
        # Two warp groups, one below the other; each reads its own weights and all activations.
        return panel, 2, 1, 4 if strips >= 4 else min(strips, 2), True
    if tokens > 64 and strips > 1:
        # Two strips a block, 16 warps: 4 down both, 4 across.
        return 128, 2, 4, 2, False
    return panel, *KERNELS[panel], 1, False


def terms(card, rows, cols, density, tokens, kernel=None, form="bf16"):
    """Seconds of each term."""
    c, f = CARDS[card], FORMS[form]
    panel, down, across, shared_by, wgmma = kernel or kernel_of(card, rows, tokens)
    panels = -(-tokens // panel)
    strips, tiles = -(-rows // 128), -(-cols // 128)
    sparse = 2 * (1 - density)  # share of 2:4 tiles
    steps = 2 * strips * tiles
    weights = steps * (sparse * f["sparse"] + (1 - sparse) * f["dense"])
    activations = panel * 128  # bytes of a step
    partials = 2 * c["sms"] * panel * 128 * 4  # each block shares about two outputs with others
    y = rows * tokens * 2
    memory = (weights + cols * tokens * 2 + y) / c["memory"]
    l2 = (panels * (weights + steps * activations / shared_by) + 2 * partials + y) / c["l2"]
    # Shared memory, 128 bytes a cycle: written once (a block of two strips writes its panel once
    # for both), weights read once by each warp across, activations once by each warp down.
    written = activations / (1 if wgmma else shared_by)

    # A warp that reads the scales of a row block takes a cycle for 32 columns.
    scales = 8 * 2 * across * 128 if f["scale"] else 0

    def shared(kind):
        return (f[kind] * (1 + across) + scales + written + down * activations) / 128
    # mma m16n8k16 and mma.sp m16n8k32 take the same cycles.
    mma = 16 * 8 * 16 / c["wgmma" if wgmma else "fma"]

    def tensor(kind):
        return 8 * (panel / 8) * FRAGMENTS[kind] * mma

    # What the four schedulers issue for a strip's eight row blocks: each warp across makes all
    # fragments; a product is one instruction by mma and a part of one by wgmma.
    def issue(kind):
        made = 8 * across * (FRAGMENTS[kind] * f["make"] + 2 * f["scale"])
        products = 0 if wgmma else 8 * (panel / 8) * FRAGMENTS[kind]
        loads = 0 if wgmma else down * across * (panel / across / 8) * 2
        return (made + products + loads) / 4

    sms = c["clustered"] if shared_by == 4 else c["sms"]
    per_sm = panels * steps / sms / (c["ghz"] * 1e9)
    mix = lambda cost: per_sm * (sparse * cost("sparse") + (1 - sparse) * cost("dense"))
    return {"memory": memory, "L2": l2, "shared": mix(shared), "tensor": mix(tensor),
            "issue": mix(issue)}


def predict(card, rows, cols, density, tokens, form="bf16"):
    t = terms(card, rows, cols, density, tokens, form=form)
    binding = max(t, key=t.get)
    return LAUNCH + t[binding], binding, t


def dense_library(card, rows, cols, tokens):
    """A dense product as a library would do it, by the same count: blocks of 128 x 256, on H100 by
    wgmma in pairs that share a panel, both operands from shared memory."""
    kernel = (256, 2, 1, 2, True) if "wgmma" in CARDS[card] else (256, 2, 4, 1, False)
    return LAUNCH + max(terms(card, rows, cols, 1, tokens, kernel).values())


def table(rows, cols, batches, densities):
    print(f"W {rows} x {cols}, microseconds (speed-up over density 1), binding term\n")
    print("| card | tokens | " + " | ".join(f"{d:g}" for d in densities) + " |")
    print("|---|---|" + "---|" * len(densities))
    for card in CARDS:
        for tokens in batches:
            cells, base = [], None
            for d in densities:
                seconds, binding, _ = predict(card, rows, cols, d, tokens)
                base = base or seconds
                cells.append(f"{seconds * 1e6:.1f} ({base / seconds:.2f}) {binding}")
            print(f"| {card} | {tokens} | " + " | ".join(cells) + " |")
    print()


def integers(rows, cols, batches, densities):
    """Times of integers, speed-up over their own density 1 and over dense bf16 in these kernels."""
    print("Integers: microseconds (over the same at density 1; over dense bf16), binding term\n")
    print("| card | weights | tokens | " + " | ".join(f"{d:g}" for d in densities) + " |")
    print("|---|---|---|" + "---|" * len(densities))
    for card in CARDS:
        for form in ("int8", "int4"):
            for tokens in batches:
                cells, base = [], predict(card, rows, cols, 1, tokens, form)[0]
                plain = predict(card, rows, cols, 1, tokens)[0]
                for d in densities:
                    s, binding, _ = predict(card, rows, cols, d, tokens, form)
                    cells.append(f"{s * 1e6:.1f} ({base / s:.2f}; {plain / s:.2f}) {binding}")
                print(f"| {card} | {form} | {tokens} | " + " | ".join(cells) + " |")
    print("\nTheir terms at density 0.55, microseconds\n")
    print("| card | weights | tokens | memory | L2 | shared | tensor | issue |\n"
          "|---|---|---|---|---|---|---|---|")
    for card in CARDS:
        for form in ("int8", "int4"):
            t = terms(card, rows, cols, 0.55, 4096, form=form)
            print(f"| {card} | {form} | 4096 | " +
                  " | ".join(f"{v * 1e6:.1f}" for v in t.values()) + " |")
    print()


def pairs(rows, cols, batches, densities):
    """Gate and up as a pair against two products and a pass over both outputs."""
    print("Gate and up: microseconds as a pair (over two products and y = f(gate) up)\n")
    print("| card | tokens | " + " | ".join(f"{d:g}" for d in densities) + " |")
    print("|---|---|" + "---|" * len(densities))
    for card in CARDS:
        for tokens in batches:
            cells = []
            for d in densities:
                both = predict(card, 2 * rows, cols, d, tokens)[0]
                # Each sum is written and read, the output written: the memory's term of the pass.
                apart = both + LAUNCH + 6 * rows * tokens / CARDS[card]["memory"]
                cells.append(f"{both * 1e6:.1f} ({apart / both:.2f})")
            print(f"| {card} | {tokens} | " + " | ".join(cells) + " |")
    print()


def memory(rows, cols, densities):
    """Bytes on the card of a matrix: tiles, and 6 bytes a tile of tables."""
    tiles = -(-rows // 128) * -(-cols // 128)
    print(f"W {rows} x {cols} on the card: MB (over dense bf16)\n")
    print("| weights | " + " | ".join(f"{d:g}" for d in densities) + " |")
    print("|---|" + "---|" * len(densities))
    more = dict(FORMS)
    more["int8, scales for 32"] = dict(sparse=5632, dense=8704)
    more["int4, scales and minimums"] = dict(sparse=4096, dense=5120)
    for form, f in more.items():
        cells = []
        for d in densities:
            sparse = 2 * (1 - d)
            size = tiles * (2 * (sparse * f["sparse"] + (1 - sparse) * f["dense"]) + 6)
            size += 4 * rows if form == "int8" else 0
            cells.append(f"{size / 1e6:.1f} ({size / (2 * rows * cols):.3f})")
        print(f"| {form} | " + " | ".join(cells) + " |")
    print()


def measured(path):
    print("layer, density, tokens: measured / predicted (binding term)")
    with open(path) as file:
        for row in csv.DictReader(file):
            card = next((c for c in CARDS if c in row["card"]), None)
            if not card:
                raise SystemExit(f"no figures for {row['card']}; add them to CARDS")
            form = row["weights"].split("_")[0]
            seconds, binding, _ = predict(card, int(row["rows"]), int(row["cols"]),
                                          float(row["density"]), int(row["tokens"]), form)
            ratio = float(row["ms"]) / 1e3 / seconds
            print(f"{row['layer']}, {form}, {row['density']}, {row['tokens']}: {ratio:.2f} ({binding})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measured", help="results/gpu_products.csv of a card")
    args = parser.parse_args()
    if args.measured:
        measured(args.measured)
        return
    table(14336, 4096, (1, 16, 64, 512, 4096), (1, 0.75, 0.65, 0.55, 0.5))
    print("Over a dense library by the same count\n\n| card | tokens | 0.55 | 0.5 |\n|---|---|---|---|")
    for card in CARDS:
        for tokens in (512, 4096):
            dense = dense_library(card, 14336, 4096, tokens)
            cells = [f"{dense / predict(card, 14336, 4096, d, tokens)[0]:.2f}" for d in (0.55, 0.5)]
            print(f"| {card} | {tokens} | " + " | ".join(cells) + " |")
    print("\nTerms at density 0.55, microseconds\n")
    print("| card | tokens | memory | L2 | shared | tensor | issue |\n|---|---|---|---|---|---|---|")
    for card in CARDS:
        for tokens in (1, 16, 64, 512, 4096):
            t = terms(card, 14336, 4096, 0.55, tokens)
            print(f"| {card} | {tokens} | " + " | ".join(f"{v * 1e6:.1f}" for v in t.values()) + " |")
    print()
    integers(14336, 4096, (1, 16, 128, 512, 4096), (1, 0.75, 0.55, 0.5))
    pairs(14336, 4096, (128, 512, 4096), (1, 0.75, 0.55, 0.5))
    memory(14336, 4096, (1, 0.75, 0.65, 0.55, 0.5))


if __name__ == "__main__":
    main()
