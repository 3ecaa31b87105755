"""Small .npz files as NumPy writes them: one like the published PATCH masks (compressed, packed
bits, __meta__), and single arrays that must be refused. Writes tests/golden/io/*.npz, *.npy."""
import json
import pathlib

import numpy as np

out = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/io"
rng = np.random.default_rng(4)
mask = rng.random((6, 20)) < 0.55
np.savez_compressed(out / "mask.npz", **{
    "model.layers.0.self_attn.q_proj.weight": np.packbits(mask.reshape(-1)),
    "model.layers.0.self_attn.q_proj.weight.__shape__": np.array(mask.shape),
    "__meta__": np.array(json.dumps({"sparsity": 0.45, "pattern": "PATCH", "note": "é"})),
})
np.savez(out / "plain.npz", f4=np.arange(6, dtype="<f4").reshape(2, 3), b1=mask[0],
         s=np.array([b"ab", b"cde"]), empty=np.zeros((0, 3)), u=np.array(["x", "long"]))
np.save(out / "big_endian.npy", np.arange(3, dtype=">i4"))
np.save(out / "fortran.npy", np.asfortranarray(np.ones((2, 3))))
np.save(out / "object.npy", np.array([{"a": 1}], dtype=object))
np.save(out / "complex.npy", np.ones(2, dtype=np.complex64))
np.save(out / "record.npy", np.zeros(2, dtype=[("a", "<i4"), ("b", "<f4")]))
np.save(out / "text.npy", np.array([["a"], ["b\u20ac"]]))
