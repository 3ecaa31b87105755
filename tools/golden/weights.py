"""Small model files as the outside packages write them: a GGUF file and a sharded directory.

Writes tests/golden/io/small.gguf and tests/golden/io/sharded/. Needs: numpy, gguf, safetensors, torch.
"""
import json
import pathlib

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

out = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/io"
T = gguf.GGMLQuantizationType
ramp = np.arange(64, dtype=np.float32).reshape(2, 32)

w = gguf.GGUFWriter(out / "small.gguf", "llama")
w.add_uint32("llama.block_count", 2)
w.add_int8("small.i8", -3)
w.add_uint64("small.u64", 2**64 - 1)
w.add_float64("small.f64", 0.1)
w.add_bool("small.flag", True)
w.add_string("small.text", "grüße")
w.add_array("small.words", ["<s>", "", "▁the"])
w.add_array("small.numbers", [1, -2, 3])
w.add_array("small.reals", [0.5, -1.5])
w.add_custom_alignment(64)
w.add_tensor("f32.weight", ramp)
w.add_tensor("f16.weight", ramp.astype(np.float16))
w.add_tensor("q8_0.weight", gguf.quantize(ramp, T.Q8_0), raw_dtype=T.Q8_0)
w.add_tensor("iq4_xs.weight", np.zeros((1, 136), np.uint8), raw_dtype=T.IQ4_XS)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

folder = out / "sharded"
folder.mkdir(exist_ok=True)
shards = {
    "model-00001-of-00002.safetensors": {"a.weight": torch.from_numpy(ramp),
                                         "a.bias": torch.ones(3, dtype=torch.float16)},
    "model-00002-of-00002.safetensors": {"b.weight": torch.from_numpy(ramp).bfloat16()},
}
for name, tensors in shards.items():
    save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(0o644)
index = {"metadata": {"total_size": 390},
         "weight_map": {t: name for name, tensors in shards.items() for t in tensors}}
(folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
