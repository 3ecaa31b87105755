"""Golden values of soft masks of other patterns than 2:4, from PyTorch's autograd in fp64.

Writes tests/golden/pattern.json: for some n:m, logits, weights, the gradient of W * M, soft tiles;
and what Gumbel-softmax over all C(m, n) candidates makes of them, with uniforms from a Philox
generator written here anew (Salmon et al. 2011) and the counters of src/kernel/pattern_ops.h.
Usage: python tools/golden/make_pattern.py
"""
import itertools
import json
import os

import torch

torch.manual_seed(11)
torch.set_default_dtype(torch.float64)
KEY, TENSOR, DRAW, KAPPA, TAU, DECAY = (11, 12), 5, 77, 60.0, 1.5, 0.7


def philox(key, counter):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def six(words):
    bits = [w >> 11 for w in words]
    bits += [(words[2 * i] & 0x7FF) << 10 | (words[2 * i + 1] & 0x3FF) for i in range(2)]
    return [(b + 0.5) / 2 ** 21 for b in bits]


def uniforms(elements, count):
    out = torch.zeros(elements, count)
    for e in range(elements):
        for block in range(0, count, 6):
            words = philox(KEY, (e + block // 6 * elements, 0, TENSOR, DRAW))
            for i, u in enumerate(six(words)[:count - block]):
                out[e, block + i] = u
    return out


def f32(t):
    return t.to(torch.float32).to(torch.float64)


def flat(t):
    return [float(f"{x:.9g}") for x in t.detach().reshape(-1)]


def case(keep, of, rows, groups, tile_rows, tile_groups):
    table = torch.tensor([[float(c in chosen) for c in range(of)]
                          for chosen in itertools.combinations(range(of), keep)])
    count, cols = len(table), groups * of
    p = f32(torch.randn(rows, groups, count) * 0.05).requires_grad_()
    w, g = f32(torch.randn(rows, cols)), f32(torch.randn(rows, cols))
    tiles = f32(torch.rand(-(-rows // tile_rows), -(-groups // tile_groups))).requires_grad_()
    u = uniforms(rows * groups, count).reshape(rows, groups, count)
    y = torch.softmax((KAPPA * p - torch.log(-torch.log(u))) / TAU, dim=-1)
    soft = (y @ table).reshape(rows, cols)
    t = tiles.repeat_interleave(tile_rows, 0)[:rows]
    t = t.repeat_interleave(tile_groups * of, 1)[:, :cols]
    out = w * (t + (1 - t) * soft)
    ((g * out).sum() + DECAY / 2 * (out ** 2).sum()).backward()
    return {"keep": keep, "of": of, "rows": rows, "cols": cols, "tile_rows": tile_rows,
            "tile_cols": tile_groups * of, "logits": flat(p), "w": flat(w), "g": flat(g),
            "tiles": flat(tiles), "out": flat(out), "dlogits": flat(p.grad),
            "dtiles": flat(tiles.grad)}


def main():
    cases = [case(1, 4, 5, 3, 2, 2), case(2, 4, 4, 3, 4, 1), case(4, 8, 3, 2, 2, 1),
             case(3, 5, 3, 3, 3, 4)]
    path = os.path.join(os.path.dirname(__file__), "../../tests/golden/pattern.json")
    with open(path, "w") as file:
        json.dump({"key": KEY, "tensor": TENSOR, "draw": DRAW, "kappa": KAPPA, "tau": TAU,
                   "decay": DECAY, "cases": cases}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
