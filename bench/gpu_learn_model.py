#!/usr/bin/env python3
"""What the kernels of learning should take, from bytes and operations: the tables of docs/GPU_LEARNING.md.

usage: gpu_learn_model.py

Bytes are those that a kernel must move, at 90 % of the card's bandwidth; operations are fp32 ones,
counted from the source, at 60 % of the rate of its lanes. The larger binds; 3 us for a launch come
on top. Attention on the tensor cores: products of 16 x 8 x 16 at 70 % of what mma.sync reaches, or
the bytes that ldmatrix brings for them from shared memory, 128 a clock, at 90 %.
"""
# bandwidth GB/s, multiprocessors, GHz, bf16 TFLOP/s dense
CARDS = {"A100": (2039, 108, 1.41, 312), "H100": (3350, 132, 1.755, 989)}
MMA_SHARE = {"A100": 1, "H100": 0.62}  # of that rate, by mma.sync (Hopper's full rate takes wgmma)
ROWS, COLS, TOKENS = 14336, 4096, 4096
WEIGHTS = ROWS * COLS
GROUPS = WEIGHTS / 4

# Operations of a group: ten Philox rounds of 8 integer operations, six uniforms, six exact and six
# fast logarithms, six exponentials, the softmax, and what each kernel adds.
NOISE = 80 + 18 + 6 * 20 + 6 * 4
SOFTMAX = 6 * 4 + 24
KERNELS = [
    # name, bytes a weight by part, operations a group
    ("mask_sample", {"logits": 5, "W": 2, "W * M": 2}, NOISE + SOFTMAX + 20),
    ("mask_backward", {"logits": 5, "W": 2, "dW": 4, "W * M": 2, "gradient": 5},
     NOISE + SOFTMAX + 70),
    ("mask_gradient_squares", {"gradient": 5}, 14),
    ("mask_adamw", {"gradient": 5, "logits": 10, "moments": 22, "codes": 0.25}, 6 * 22 + 30),
]


def times(card, bytes_, operations):
    gb, sms, ghz, _ = CARDS[card]
    return bytes_ / (0.9e9 * gb) * 1e6, operations / (0.6 * sms * 128 * ghz * 1e9) * 1e6


# Attention's kernels for heads of 128 (learn.h): products, and those of scores among them; groups
# of 16 owned rows, rows of a tile. A fragment of 16 x 16 is 512 bytes; of owned rows one is read
# for each row of products of scores, of the tile one for two groups of 8.
ATTENTION = {"forward": (2, 1, 2, 32), "backward, dq": (3, 2, 1, 32),
             "backward, dk dv": (4, 2, 1, 32)}


def attention_times(card, form, pairs):
    """us by the tensor cores and by shared memory; pairs: visible scores times head size"""
    _, sms, ghz, tflops = CARDS[card]
    products, of_scores, groups, tile = form
    each = 256 / groups  # a tile's bytes for one product, shared by the groups
    scores = each + 512 / (tile / 8)
    bytes_ = of_scores * scores + (products - of_scores) * each
    flops = 2 * products * pairs
    return (flops / (0.7e12 * tflops * MMA_SHARE[card]) * 1e6,
            pairs / 2048 * bytes_ / (0.9 * 128 * sms * ghz * 1e9) * 1e6)


def attention_row(name, form, pairs):
    cells = []
    for card in CARDS:
        cores, shared = attention_times(card, form, pairs)
        cells.append(f"{max(cores, shared) + 3:.0f} {'cores' if cores >= shared else 'shared'}"
                     f" ({cores:.0f} / {shared:.0f})")
    print(f"| attention {name}, bf16 | shared | " + " | ".join(cells) + " |")


def row(name, what, bytes_, operations):
    cells = []
    for card in CARDS:
        memory, lanes = times(card, bytes_, operations)
        cells.append(f"{max(memory, lanes) + 3:.0f} {'memory' if memory >= lanes else 'lanes'}"
                     f" ({memory:.0f} / {lanes:.0f})")
    print(f"| {name} | {what} | " + " | ".join(cells) + " |")


def main():
    print("| kernel | bytes | " + " | ".join(f"{c}, us (memory / lanes)" for c in CARDS) + " |")
    print("|---|---|" + "---|" * len(CARDS))
    for name, parts, operations in KERNELS:
        row(name, f"{sum(parts.values()):g} a weight", sum(parts.values()) * WEIGHTS,
            operations * GROUPS)
    row("rmsnorm", "8 an element", 8 * TOKENS * COLS, 6 * TOKENS * COLS)
    pairs = TOKENS * TOKENS / 2 * 32 * 128
    row("attention forward, fp32", "L2", 4 * TOKENS * (4096 * 2 + 2048), 2 * pairs * 1.3)
    row("attention backward, fp32", "L2", 4 * TOKENS * (4096 * 4 + 2048 * 2), 7 * pairs * 1.3)
    for name, form in ATTENTION.items():
        attention_row(name, form, pairs * 1.02)  # tiles on the diagonal are made whole
    print()
    print("| card | products of a step | masks of a step | attention | tokens a second, joint |")
    print("|---|---|---|---|---|")
    # LLaMA-3.1 8B: prunable weights, head, layers; a step of 4096 tokens
    prunable, head, layers = 6.98e9, 128256 * 4096, 32
    for card, (gb, sms, ghz, tflops) in CARDS.items():
        products = (2 * 3 * prunable + 2 * 2 * head) * TOKENS / (0.7e12 * tflops)
        masks = 0
        for _, parts, operations in KERNELS:
            masks += max(times(card, sum(parts.values()) * prunable, operations * prunable / 4)) / 1e6
        attention = layers * sum(max(attention_times(card, form, pairs * 1.02))
                                 for form in ATTENTION.values()) / 1e6
        total = products + masks + attention
        print(f"| {card} | {products:.2f} s | {masks:.2f} s | {attention:.2f} s | "
              f"{TOKENS / total:.0f} |")


if __name__ == "__main__":
    main()
