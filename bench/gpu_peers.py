#!/usr/bin/env python3
"""What users would pick instead: PyTorch's dense and 2:4 (semi-structured) linear layers on a card.

2:4 runs through cuSPARSELt and through CUTLASS, the two backends that PyTorch has. Layers, batches
and the cold weights are those of gpu_check, so that rows of the two ledgers stand side by side; a
pure 2:4 layer is our density 0.5. Writes CSV.

Usage: gpu_peers.py OUT [SECONDS of timing, default 60]
Exit status: 77 without PyTorch or without a card.
"""
import csv
import statistics
import sys
import time

LAYERS = [
    ("LLaMA-2 7B qo", 4096, 4096),
    ("LLaMA-2 7B gate/up", 11008, 4096),
    ("LLaMA-2 7B down", 4096, 11008),
    ("LLaMA-3.1 8B gate/up", 14336, 4096),
    ("LLaMA-3.1 8B down", 4096, 14336),
    ("Qwen2.5 0.5B gate/up", 4864, 896),
]
BATCHES = [1, 4, 16, 64, 96, 128, 512, 2048, 8192]
ROUNDS = 5


def give_up(why):
    print(f"gpu_peers: {why}; nothing was measured")
    raise SystemExit(77)


def median_ms(torch, layers, x):
    """Milliseconds a product takes, going round layers that together exceed the cache."""
    linear = torch.nn.functional.linear
    for w in layers:
        linear(x, w)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(ROUNDS):
        start.record()
        for _ in range(4):
            for w in layers:
                linear(x, w)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / (4 * len(layers)))
    return statistics.median(times)


def make_layers(torch, backend, rows, cols, copies):
    w = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.05
    if backend == "dense":
        return [w.clone() for _ in range(copies)]
    sparse = torch.sparse
    sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "cutlass"
    keep = torch.tensor([1, 1, 0, 0], device="cuda", dtype=w.dtype).repeat(rows, cols // 4)
    return [sparse.to_sparse_semi_structured(w * keep) for _ in range(copies)]


def time_layer(torch, name, rows, cols, backend, deadline, write):
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = min(32, 2 + 4 * cache // (rows * cols * 9 // 8))
    try:
        layers = make_layers(torch, backend, rows, cols, copies)
    except (RuntimeError, AttributeError, NotImplementedError) as why:
        write(name, rows, cols, backend, "", "", str(why).splitlines()[0][:80])
        return
    for tokens in BATCHES:
        if time.monotonic() > deadline:
            return
        x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
        try:
            write(name, rows, cols, backend, tokens, f"{median_ms(torch, layers, x):.5f}", "")
        except (RuntimeError, NotImplementedError) as why:
            write(name, rows, cols, backend, tokens, "", str(why).splitlines()[0][:80])


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    try:
        import torch
    except ImportError:
        give_up("PyTorch is not installed")
    if not torch.cuda.is_available():
        give_up("PyTorch sees no card")
    deadline = time.monotonic() + float(sys.argv[2] if len(sys.argv) > 2 else 60)
    card = torch.cuda.get_device_name(0)
    with open(sys.argv[1], "w", newline="") as file:
        out = csv.writer(file)
        out.writerow("date card torch layer rows cols backend tokens ms refused".split())

        def write(*row):
            out.writerow([time.strftime("%Y-%m-%d"), card, torch.__version__, *row])
            file.flush()

        for layer in LAYERS:
            for backend in ("dense", "cusparselt", "cutlass"):
                time_layer(torch, *layer, backend, deadline, write)


if __name__ == "__main__":
    main()
