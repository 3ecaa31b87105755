#!/usr/bin/env python3
"""What users would pick instead: PyTorch's dense and 2:4 (semi-structured) linear layers on a card.

2:4 runs through cuSPARSELt, whose best algorithm is searched for each shape as its users would, and
through CUTLASS, the two backends that PyTorch has. Layers, batches and the cold weights are those of
gpu_check, so that rows of the two ledgers stand side by side (gpu_table.py); a pure 2:4 layer is our
density 0.5. Writes CSV: milliseconds, and the bytes that a layer's weights take on the card.

Usage: gpu_peers.py OUT [SECONDS of timing, default 60]
       gpu_peers.py --list          what would be timed; needs neither PyTorch nor a card
Exit status: 77 without PyTorch or without a card.
"""
import csv
import os
import re
import statistics
import sys
import time

BACKENDS = ["dense", "cusparselt", "cutlass"]
ROUNDS = 5


def what_is_timed():
    """Layers (name, rows, cols) and batches, from the list that gpu_time.c is compiled with."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu_layers.h")) as file:
        text = file.read()
    layers = [(name, int(rows), int(cols)) for name, rows, cols in
              re.findall(r'L\("([^"]+)", (\d+), (\d+)\)', text)]
    return layers, [int(tokens) for tokens in re.findall(r"B\((\d+)\)", text)]


LAYERS, BATCHES = what_is_timed()


def give_up(why):
    print(f"gpu_peers: {why}; nothing was measured")
    raise SystemExit(77)


def median_ms(torch, products):
    """Milliseconds a product takes, going round layers that together exceed the cache."""
    for product in products:
        product()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(ROUNDS):
        start.record()
        for _ in range(4):
            for product in products:
                product()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / (4 * len(products)))
    return statistics.median(times)


def make_layers(torch, backend, rows, cols, copies):
    """Weights, and the bytes that one of them takes."""
    w = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.05
    if backend == "dense":
        return [w.clone() for _ in range(copies)], w.numel() * w.element_size()
    sparse = torch.sparse
    keep = torch.tensor([1, 1, 0, 0], device="cuda", dtype=w.dtype).repeat(rows, cols // 4)
    w *= keep
    if backend == "cusparselt":
        layers = [torch._cslt_compress(w) for _ in range(copies)]
        return layers, layers[0].numel() * layers[0].element_size()
    sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = True
    layers = [sparse.to_sparse_semi_structured(w) for _ in range(copies)]
    parts = (layers[0].packed, layers[0].meta)
    return layers, sum(p.numel() * p.element_size() for p in parts if p is not None)


def products_of(torch, backend, layers, x):
    if backend != "cusparselt":
        linear = torch.nn.functional.linear
        return [lambda w=w: linear(x, w) for w in layers]
    # cuSPARSELt computes W X^T; tokens in multiples of eight.
    x = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % 8)).t()
    best = torch._cslt_sparse_mm_search(layers[0], x)
    return [lambda w=w: torch._cslt_sparse_mm(w, x, alg_id=best) for w in layers]


def why_not(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def time_layer(torch, name, rows, cols, backend, deadline, write):
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(32, 2 + 4 * cache // (rows * cols * 9 // 8))
    refusals = (RuntimeError, AttributeError, NotImplementedError, TypeError)
    try:
        layers, size = make_layers(torch, backend, rows, cols, copies)
    except refusals as error:
        write(name, rows, cols, backend, "", "", "", why_not(error))
        return
    for tokens in BATCHES:
        if time.monotonic() > deadline:
            return
        x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
        try:
            ms = median_ms(torch, products_of(torch, backend, layers, x))
            write(name, rows, cols, backend, tokens, size, f"{ms:.5f}", "")
        except refusals as error:
            write(name, rows, cols, backend, tokens, size, "", why_not(error))


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    if sys.argv[1] == "--list":
        for name, rows, cols in LAYERS:
            print(f"{name}, {rows} x {cols}: {', '.join(BACKENDS)} at batches "
                  f"{', '.join(map(str, BATCHES))}")
        return
    try:
        import torch
    except ImportError:
        give_up("PyTorch is not installed")
    if not torch.cuda.is_available():
        give_up("PyTorch sees no card")
    deadline = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    card = torch.cuda.get_device_name(0)
    with open(sys.argv[1], "w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow("date card torch layer rows cols backend tokens bytes ms refused".split())

        def write(*row):
            out.writerow([time.strftime("%Y-%m-%d"), card, torch.__version__, *row])
            file.flush()

        for layer in LAYERS:
            for backend in BACKENDS:
                time_layer(torch, *layer, backend, deadline, write)


if __name__ == "__main__":
    main()
