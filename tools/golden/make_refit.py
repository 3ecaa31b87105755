"""Writes tests/golden/refit.safetensors: least squares under a mask, each row solved by itself in
float64 (NumPy's lstsq on the kept columns, the ridge as extra equations).

Usage: python tools/golden/make_refit.py tests/golden/refit.safetensors
"""
import sys

import numpy as np
from safetensors.numpy import save_file

ROWS, COLS, TOKENS, DEAD, RIDGE = 270, 44, 96, 7, 3.0

rng = np.random.default_rng(0)
mix = np.eye(COLS) + 0.3 * rng.standard_normal((COLS, COLS))
x = (rng.standard_normal((TOKENS, COLS)) @ mix * (0.2 + rng.random(COLS))).astype(np.float32)
z = (x + 0.2 * rng.standard_normal((TOKENS, COLS))).astype(np.float32)
z[:, DEAD] = 0
w = rng.standard_normal((ROWS, COLS)).astype(np.float32)
mask = rng.random((ROWS, COLS)) < 0.55
mask[0], mask[1] = True, False


def solve(row):
    kept = np.flatnonzero(mask[row])
    out = np.zeros(COLS)
    if not len(kept):
        return out
    target = x.astype(np.float64) @ w[row]
    equations = np.concatenate([z[:, kept].astype(np.float64), np.sqrt(RIDGE) * np.eye(len(kept))])
    values = np.concatenate([target, np.sqrt(RIDGE) * w[row, kept]])
    out[kept] = np.linalg.lstsq(equations, values, rcond=None)[0]
    return out


v = np.stack([solve(row) for row in range(ROWS)]).astype(np.float32)
save_file({"x": x, "z": z, "w": w, "mask": mask.astype(np.uint8), "v": v}, sys.argv[1])
