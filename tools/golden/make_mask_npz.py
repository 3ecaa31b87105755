"""Writes tests/golden/mask.npz in the form in which PATCH publishes masks, with NumPy itself, and
the plain truth beside it as mask_npz.txt: one line of 0 and 1 per row.

Usage: python tools/golden/make_mask_npz.py tests/golden
"""
import json
import sys

import numpy as np

rng = np.random.default_rng(0)


def hybrid(rows, cols, tile):
    mask = np.zeros((rows, cols), bool)
    for r in range(rows):
        for c in range(0, cols, 4):
            width = min(4, cols - c)
            mask[r, c + rng.permutation(width)[: min(2, width)]] = True
    for r in range(0, rows, tile):
        for c in range(0, cols, tile):
            if rng.random() < 0.4:
                mask[r : r + tile, c : c + tile] = True
    return mask


masks = {"model.layers.0.self_attn.q_proj.weight": hybrid(10, 23, 8),
         "model.layers.0.mlp.down_proj.weight": hybrid(9, 40, 8)}
arrays = {}
for name, mask in masks.items():
    arrays[name] = np.packbits(mask.reshape(-1))
    arrays[name + ".__shape__"] = np.array(mask.shape, dtype=np.int64)
arrays["__meta__"] = np.array(json.dumps({"base_model": "some/model", "pattern": "hybrid"}))
np.savez_compressed(sys.argv[1] + "/mask.npz", **arrays)
with open(sys.argv[1] + "/mask_npz.txt", "w") as out:
    for mask in masks.values():
        out.writelines("".join("01"[int(b)] for b in row) + "\n" for row in mask)
