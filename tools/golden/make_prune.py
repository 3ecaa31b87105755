"""Writes tests/golden/prune.safetensors: Wanda and SparseGPT on a small layer, computed by an
implementation of its own in float64 (PyTorch), after the papers' descriptions.

Usage: python tools/golden/make_prune.py tests/golden/prune.safetensors
"""
import sys

import torch
from safetensors.torch import save_file

ROWS, COLS, TOKENS, BLOCK = 24, 44, 96, 16
DAMPING, SPARSITY, DEAD = 0.01, 0.6, 7

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def layer():
    mix = torch.eye(COLS) + 0.4 * torch.randn(COLS, COLS)
    x = torch.randn(TOKENS, COLS) @ mix * torch.rand(COLS).add(0.2)
    x[:, DEAD] = 0
    w = torch.randn(ROWS, COLS)
    return w.float().double(), x.float().double()


def keep_largest(scores, keep):
    """0/1 mask of the `keep` largest entries of each row."""
    mask = torch.zeros_like(scores)
    return mask.scatter(1, scores.argsort(dim=1, descending=True)[:, :keep], 1.0)


def keep_groups(scores, keep, of):
    return torch.cat([keep_largest(scores[:, c : c + of], min(keep, scores[:, c : c + of].shape[1]))
                      for c in range(0, scores.shape[1], of)], dim=1)


def shares(total_per_part, parts):
    ends = [int(SPARSITY * total_per_part * (i + 1) + 0.5) for i in range(parts)]
    return [b - a for a, b in zip([0] + ends, ends)]


def wanda(w, x, pattern):
    scores = w.abs() * x.pow(2).mean(0).sqrt()
    if pattern == "unstructured":
        drops = shares(COLS, ROWS)
        return torch.stack([keep_largest(s[None], COLS - d)[0] for s, d in zip(scores, drops)])
    return keep_groups(scores, *pattern)


def inverse_factor(x):
    h = 2.0 / TOKENS * x.T @ x
    h[DEAD, DEAD] = 1
    h += DAMPING * h.diagonal().mean() * torch.eye(COLS)
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


def sparsegpt(w, x, pattern):
    """Column by column, each error handed to all later columns at once: no blocking of updates."""
    u = inverse_factor(x)
    d = u.diagonal()
    w = w.clone()
    w[:, DEAD] = 0
    mask = torch.ones_like(w)
    loss = torch.zeros_like(w)
    for j in range(COLS):
        if pattern == "unstructured" and j % BLOCK == 0:
            end = min(j + BLOCK, COLS)
            scores = (w[:, j:end] / d[j:end]).pow(2)
            drop = int(SPARSITY * ROWS * end + 0.5) - int(SPARSITY * ROWS * j + 0.5)
            flat = keep_largest(scores.reshape(1, -1), scores.numel() - drop)
            mask[:, j:end] = flat.reshape(scores.shape)
        elif pattern != "unstructured" and j % pattern[1] == 0:
            end = min(j + pattern[1], COLS)
            scores = (w[:, j:end] / d[j:end]).pow(2)
            mask[:, j:end] = keep_largest(scores, min(pattern[0], end - j))
        dropped = w[:, j] * (1 - mask[:, j])
        error = dropped / d[j]
        loss[:, j] = error**2
        w[:, j + 1 :] -= error[:, None] * u[j, None, j + 1 :]
        w[:, j] -= dropped
    return mask, w, loss


def tile_means(loss, rows, cols):
    return torch.tensor([[loss[r : r + rows, c : c + cols].mean() for c in range(0, COLS, cols)]
                         for r in range(0, ROWS, rows)])


def main():
    w, x = layer()
    out = {"w": w.float(), "x": x.float(), "factor": inverse_factor(x).float()}
    for name, pattern in (("2_4", (2, 4)), ("5_8", (5, 8)), ("unstructured", "unstructured")):
        out[f"wanda.{name}.mask"] = wanda(w, x, pattern).to(torch.uint8)
        mask, updated, loss = sparsegpt(w, x, pattern)
        out[f"sparsegpt.{name}.mask"] = mask.to(torch.uint8)
        out[f"sparsegpt.{name}.w"] = updated.float()
        if name == "2_4":
            out["sparsegpt.2_4.tiles"] = tile_means(loss, 10, 16).float()
            lost = (w.abs() * x.pow(2).mean(0).sqrt()) * (1 - wanda(w, x, pattern))
            out["wanda.2_4.tiles"] = tile_means(lost, 10, 16).float()
    save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1])


main()
