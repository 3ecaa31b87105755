#!/usr/bin/env python3
"""What the hybrid product's kernels should reach: a model of cycles and bytes, on paper.

Prints the tables of docs/GPU.md; with --measured results/gpu_products.csv, puts each measured time
beside its prediction. Each term is a time; the largest binds, and the start and the end of a launch
come on top. Nothing in here was fitted to a measurement.

Usage: gpu_model.py [--measured FILE]
"""
import argparse
import csv

SPARSE_STEP, DENSE_STEP = 9216, 16384  # bytes of weights for 128 rows x 64 columns
# Published figures: multiprocessors, clock in GHz, memory and L2 bandwidth in bytes/s, dense bf16
# multiply-adds a cycle of a multiprocessor with mma (on H100 1280 is what others have measured) and
# with wgmma; how many blocks in clusters of four run at once.
CARDS = {
    "A100": dict(sms=108, ghz=1.41, memory=1.555e12 * 0.90, l2=4.0e12, fma=1024),
    "H100": dict(sms=132, ghz=1.755, memory=3.35e12 * 0.90, l2=5.5e12, fma=1280, wgmma=2048,
                 clustered=128),
}
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


def terms(card, rows, cols, density, tokens, kernel=None):
    """Seconds of each term."""
    c = CARDS[card]
    panel, down, across, shared_by, wgmma = kernel or kernel_of(card, rows, tokens)
    panels = -(-tokens // panel)
    strips, tiles = -(-rows // 128), -(-cols // 128)
    sparse = 2 * (1 - density)  # share of 2:4 tiles
    steps = 2 * strips * tiles
    weights = steps * (sparse * SPARSE_STEP + (1 - sparse) * DENSE_STEP)
    activations = panel * 128  # bytes of a step
    partials = 2 * c["sms"] * panel * 128 * 4  # each block shares about two outputs with others
    y = rows * tokens * 2
    memory = (weights + cols * tokens * 2 + y) / c["memory"]
    l2 = (panels * (weights + steps * activations / shared_by) + 2 * partials + y) / c["l2"]
    # Shared memory, 128 bytes a cycle: written once (a block of two strips writes its panel once
    # for both), weights read once by each warp across, activations once by each warp down.
    written = activations / (1 if wgmma else shared_by)

    def shared(step):
        return (step + written + across * step + down * activations) / 128
    # mma m16n8k16 and mma.sp m16n8k32 take the same cycles.
    mma = 16 * 8 * 16 / c["wgmma" if wgmma else "fma"]
    tensor = {s: 8 * (panel / 8) * n * mma for s, n in ((SPARSE_STEP, 2), (DENSE_STEP, 4))}
    sms = c["clustered"] if shared_by == 4 else c["sms"]
    per_sm = panels * steps / sms / (c["ghz"] * 1e9)
    mix = lambda f: per_sm * (sparse * f(SPARSE_STEP) + (1 - sparse) * f(DENSE_STEP))
    return {"memory": memory, "L2": l2, "shared": mix(shared), "tensor": mix(lambda s: tensor[s])}


def predict(card, rows, cols, density, tokens):
    t = terms(card, rows, cols, density, tokens)
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


def measured(path):
    print("layer, density, tokens: measured / predicted (binding term)")
    with open(path) as file:
        for row in csv.DictReader(file):
            card = next((c for c in CARDS if c in row["card"]), None)
            if not card:
                raise SystemExit(f"no figures for {row['card']}; add them to CARDS")
            seconds, binding, _ = predict(card, int(row["rows"]), int(row["cols"]),
                                          float(row["density"]), int(row["tokens"]))
            ratio = float(row["ms"]) / 1e3 / seconds
            print(f"{row['layer']}, {row['density']}, {row['tokens']}: {ratio:.2f} ({binding})")


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
    print("| card | tokens | memory | L2 | shared | tensor |\n|---|---|---|---|---|---|")
    for card in CARDS:
        for tokens in (1, 16, 64, 512, 4096):
            t = terms(card, 14336, 4096, 0.55, tokens)
            print(f"| {card} | {tokens} | " + " | ".join(f"{v * 1e6:.1f}" for v in t.values()) + " |")


if __name__ == "__main__":
    main()
