#!/usr/bin/env python3
"""What a step of decoding should cost on a GPU: bytes and launches, on paper. Prints the tables of
docs/GPU.md. Products are those of gpu_model.py; nothing in here was fitted to a measurement.

Usage: gpu_step_model.py
"""
from gpu_model import CARDS, LAUNCH, terms

# layers, hidden, intermediate, heads, key heads, head size, vocabulary
MODELS = {"LLaMA-2 7B": (32, 4096, 11008, 32, 32, 128, 32000),
          "LLaMA-3.1 8B": (32, 4096, 14336, 32, 8, 128, 128256)}
GRAPH = 1.2e-6  # from one kernel of a graph to the next: assumed; a launch by itself takes LAUNCH
PASSES = 35     # over the logits to draw a token: masses, 32 halvings, ties


def products(model):
    """(rows, columns) of a block's four products: qkv, o, gate with up, down."""
    _, hidden, inner, heads, kv, size, _ = MODELS[model]
    return ((heads + 2 * kv) * size, hidden), (hidden, heads * size), (2 * inner, hidden), (hidden,
                                                                                          inner)


def step(card, model, density, batch, context, graph):
    """Seconds of products, head, attention, rows, drawing and of starting kernels."""
    c = CARDS[card]
    layers, hidden, inner, heads, kv, size, vocab = MODELS[model]
    linears = layers * sum(max(terms(card, r, k, density, batch).values())
                           for r, k in products(model))
    head = max(terms(card, vocab, hidden, 1, batch).values())
    # keys and values are read once for each key head: all its query heads meet them
    cache = layers * 2 * kv * size * 2 * context * batch
    # per token: the stream read and written twice, norms, qkv, q as fp32, activations
    rows = layers * batch * (4 * 4 * hidden + 6 * 2 * hidden + 2 * 2 * inner +
                             (heads + 2 * kv) * size * 8)
    # one multiprocessor a text reads logits and masses again and again, 64 bytes a cycle
    drawing = PASSES * vocab * 8 / (64 * c["ghz"] * 1e9)
    kernels = layers * 8 + 4
    return {"products": linears, "head": head, "attention": cache / c["memory"],
            "rows": rows / c["l2"], "drawing": drawing,
            "starts": kernels * (GRAPH if graph else LAUNCH)}


def total(*arguments):
    return sum(step(*arguments).values())


def main():
    print("| card | model | batch | context | products | head | attention | rows | drawing | "
          "starts, graph | starts, launches |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for card in CARDS:
        for model in MODELS:
            for batch, context in ((1, 256), (16, 256), (16, 1152)):
                s = step(card, model, 0.55, batch, context, True)
                launches = step(card, model, 0.55, batch, context, False)["starts"]
                print(f"| {card} | {model} | {batch} | {context} | " +
                      " | ".join(f"{1e3 * t:.2f}" for t in s.values()) +
                      f" | {1e3 * launches:.2f} |")
    print()
    print("| card | model | batch | context | 0.75 | 0.65 | 0.55 | 0.5 |")
    print("|---|---|---|---|---|---|---|---|")
    for card in CARDS:
        for model in MODELS:
            for batch, context in ((1, 256), (16, 256), (16, 1152)):
                dense = total(card, model, 1, batch, context, True)
                print(f"| {card} | {model} | {batch} | {context} | " + " | ".join(
                    f"{dense / total(card, model, d, batch, context, True):.2f}"
                    for d in (0.75, 0.65, 0.55, 0.5)) + " |")


if __name__ == "__main__":
    main()
