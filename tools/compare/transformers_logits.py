#!/usr/bin/env python3
"""Logits of a real GGUF model against transformers, in fp32 on the dequantized weights.

    python tools/compare/transformers_logits.py MODEL.gguf TEXT [TOKENS]

Run from the root of a built tree. The GGUF is dequantized by the gguf package and given to
transformers under a configuration written out below, so that nothing of tessera's own reading is on
both sides. Prints the relative error of the logits, how often the likeliest token agrees, and both
losses; exits with 1 when the error is above 1e-4.

Needs torch, transformers, gguf, llama_cpp (for the tokens): a tool for developers.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS = {"llama": {"ffn_norm": "post_attention_layernorm"},
         "gemma3": {"ffn_norm": "pre_feedforward_layernorm",
                    "post_attention_norm": "post_attention_layernorm",
                    "post_ffw_norm": "post_feedforward_layernorm"}}
ENDS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight"}


def configuration(reader):
    arch = reader.fields["general.architecture"].contents()

    def get(key, default=None):
        field = reader.fields.get(f"{arch}.{key}")
        return field.contents() if field else default

    heads, width = get("attention.head_count"), get("embedding_length")
    common = dict(hidden_size=width, num_hidden_layers=get("block_count"),
                  intermediate_size=get("feed_forward_length"), num_attention_heads=heads,
                  num_key_value_heads=get("attention.head_count_kv"),
                  head_dim=get("attention.key_length", width // heads),
                  rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
                  max_position_embeddings=get("context_length"), tie_word_embeddings=True,
                  vocab_size=int(next(t.shape[1] for t in reader.tensors
                                      if t.name == "token_embd.weight")))
    theta = get("rope.freq_base")
    if arch == "llama":
        return arch, LlamaConfig(**common, rope_parameters=dict(rope_type="default",
                                                                rope_theta=theta))
    return arch, Gemma3TextConfig(
        **common, sliding_window=get("attention.sliding_window"),
        query_pre_attn_scalar=common["head_dim"],
        rope_parameters={"full_attention": dict(rope_type="default", rope_theta=theta),
                         "sliding_attention": dict(rope_type="default", rope_theta=1e4)})


def hf_name(name, arch):
    if name in ENDS:
        return ENDS[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{ {**BLOCK, **NORMS[arch]}[part] }.{suffix}"


def weights(reader, arch, config):
    for t in reader.tensors:
        w = torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type)))
        name = hf_name(t.name, arch)
        w = w.reshape(tuple(int(n) for n in reversed(t.shape)))
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            w = w.reshape(-1, config.head_dim // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        if arch == "gemma3" and name.endswith("norm.weight"):
            w = w - 1
        yield name, w


def reference(path, ids):
    reader = gguf.GGUFReader(path)
    arch, config = configuration(reader)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                             attn_implementation="eager").eval()
    state = dict(weights(reader, arch, config))
    missing, extra = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not extra, (missing, extra)
    model.tie_weights()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()


def ours(path, ids, folder):
    program = folder / "logits"
    libraries = subprocess.check_output(
        "pkg-config --libs jansson libpcre2-8 libutf8proc libzip libzstd zlib",
        shell=True, text=True).split()
    subprocess.check_call(["cc", "-O1", "-std=gnu17", "-D_GNU_SOURCE", "-Isrc",
                           "tools/compare/logits.c", "-o", program, "build/libtessera.a",
                           *libraries, "-lm", "-lpthread"])
    ids.astype(np.int32).tofile(folder / "ids")
    subprocess.check_call([program, path, folder / "ids", folder / "out"])
    return np.fromfile(folder / "out", dtype=np.float32)


def loss(logits, ids):
    return torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]),
                                             torch.from_numpy(ids[1:])).item()


def main():
    path, text = sys.argv[1], Path(sys.argv[2]).read_bytes()
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 600
    torch.set_num_threads(1)
    vocabulary = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    ids = np.array(vocabulary.tokenize(text[:count * 8])[:count], dtype=np.int64)
    want = reference(path, ids)
    with tempfile.TemporaryDirectory() as folder:
        have = ours(path, ids, Path(folder)).reshape(want.shape)
    error = float(np.linalg.norm(have - want) / np.linalg.norm(want))
    agree = float((have.argmax(-1) == want.argmax(-1)).mean())
    print(f"{Path(path).name}: {len(ids)} tokens, relative error {error:.2e}, largest "
          f"{np.abs(have - want).max():.2e}, same top token {agree:.4f}, loss "
          f"{loss(have, ids):.6f} against {loss(want, ids):.6f}")
    sys.exit(error > 1e-4)


main()
