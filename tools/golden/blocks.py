"""Random blocks of every ggml type that tessera reads, with the values the gguf package gives them.

Writes tests/golden/io/blocks.safetensors. Needs: numpy, gguf, safetensors.
Bytes are uniform; only the fp16 scales are drawn so that they are finite and of ordinary size.
"""
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

T = gguf.GGMLQuantizationType
# where each type keeps its fp16 scales within a block
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
rng = np.random.default_rng(20)
tensors = {}
for kind, places in SCALES.items():
    length, size = gguf.GGML_QUANT_SIZES[kind]
    count = 8 if length == 32 else 3
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in places:
        scale = rng.normal(0, 0.02, count).astype(np.float16)
        scale[0] = np.float16(6e-8) * (1 + place)  # a subnormal one
        blocks[:, place:place + 2] = scale.view(np.uint8).reshape(count, 2)
    name = kind.name.lower()
    tensors[name + ".blocks"] = blocks
    tensors[name + ".values"] = gguf.dequantize(blocks, kind).astype(np.float32).reshape(-1)

# ggml's reference quantizer of q8_0, ties included
x = rng.normal(0, 1, 256).astype(np.float32)
x[:32] = 0
x[32:64] = np.arange(32) * 0.5 - 8
x[64] = 127 * 64.0
tensors["encode.input"] = x
tensors["encode.q8_0"] = gguf.quantize(x, T.Q8_0).reshape(-1)
root = pathlib.Path(__file__).resolve().parents[2]
save_file(tensors, root / "tests/golden/io/blocks.safetensors")
