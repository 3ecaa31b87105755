"""Golden values of the learner's formulas, from PyTorch's autograd in fp64.

Writes tests/golden/learn.json: Gumbel-softmax masks under given uniforms, the hybrid mask, every
loss term, and their gradients for tile and 2:4 logits; and some steps of torch.optim.AdamW on the
six logits of a group, of which tessera keeps five differences.
Usage: python tools/golden/make_learn.py
"""
import json
import os

import torch

torch.manual_seed(7)
torch.set_default_dtype(torch.float64)

CANDIDATES = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]],
    dtype=torch.float64)


def f32(t):
    """Rounds to fp32: what the C side starts from."""
    return t.to(torch.float32).to(torch.float64)


def gumbel(u):
    return -torch.log(-torch.log(u))


def relax(p, u, kappa, tau):
    return torch.softmax((kappa * p + gumbel(u)) / tau, dim=-1)


def flat(t):
    return [float(f"{x:.10g}") for x in t.detach().reshape(-1)]


def masks(p24, u24, r24, ptile, utile, rtile, rows, cols, tile):
    """The hybrid mask (rows, cols) and T (tile rows, tile cols)."""
    m24 = (relax(p24, u24, *r24) @ CANDIDATES).reshape(rows, cols)
    pair = torch.stack([ptile, torch.zeros_like(ptile)], dim=-1)
    t = relax(pair, utile, *rtile)[..., 0]
    spread = t.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:rows, :cols]
    return spread + (1 - spread) * m24, t


def mask_case(rows, cols, tile, r24, rtile):
    groups = cols // 4
    tr, tc = -(-rows // tile), -(-cols // tile)
    p24 = f32(torch.randn(rows, groups, 6) * 0.02).requires_grad_()
    u24 = f32(torch.rand(rows, groups, 6).clamp(1e-4, 1 - 1e-4))
    ptile = f32(torch.randn(tr, tc) * 0.02).requires_grad_()
    utile = f32(torch.rand(tr, tc, 2).clamp(1e-4, 1 - 1e-4))
    w = f32(torch.randn(rows, cols))
    g = f32(torch.randn(rows, cols))
    rho = 0.55
    m, t = masks(p24, u24, r24, ptile, utile, rtile, rows, cols, tile)
    area = torch.ones(rows, cols)
    spread = t.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:rows, :cols]
    density = (0.5 + 0.5 * spread * area).mean()
    terms = {
        "lm": (g * (w * m)).sum(),
        "density": (density - rho).abs(),
        "paper": ((m * w) ** 2).sum() / (w ** 2).sum(),
        "reference": (m * w).norm() / w.norm(),
        "maskllm": ((m * w) ** 2).sum(),
    }
    case = dict(rows=rows, cols=cols, tile=tile, kappa24=r24[0], tau24=r24[1], kappa_tile=rtile[0],
                tau_tile=rtile[1], rho=rho, p24=flat(p24), u24=flat(u24), ptile=flat(ptile),
                utile=flat(utile), w=flat(w), g=flat(g), mask=flat(m), t=flat(t),
                expected_density=float(density.detach()))
    for name, value in terms.items():
        g24, gt = torch.autograd.grad(value, [p24, ptile], retain_graph=True, allow_unused=True)
        case[name] = dict(value=float(value), p24=flat(g24) if g24 is not None else None,
                          ptile=flat(gt))
    return case


def adamw_case(decay, eps):
    """Six logits whose gradients sum to zero, as softmax gradients do."""
    n, steps = 5, 4
    p = f32(torch.randn(n, 6) * 0.02).requires_grad_()
    start = flat(p)
    optimizer = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.95), eps=eps, weight_decay=decay)
    gradients = []
    for _ in range(steps):
        g = torch.randn(n, 6) * 1e-3
        g = f32(g - g.mean(dim=1, keepdim=True))
        p.grad = g.clone()
        gradients.append(flat(g))
        optimizer.step()
    return dict(groups=n, steps=steps, lr=1e-3, beta1=0.9, beta2=0.95, eps=eps, decay=decay,
                start=start, gradients=gradients, end=flat(p))


def main():
    out = dict(masks=[mask_case(6, 16, 4, (100.0, 4.0), (25.0, 2.0)),
                      mask_case(10, 24, 8, (300.0, 1.0), (100.0, 0.5))],
               adamw=[adamw_case(0.0, 1e-8), adamw_case(0.1, 1e-5)])
    path = os.path.join(os.path.dirname(__file__), "..", "..", "tests", "golden", "learn.json")
    with open(path, "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
