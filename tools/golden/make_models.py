#!/usr/bin/env python3
"""Tiny random models of every family, and what transformers computes with them.

Writes tests/golden/models/NAME/{config.json, model*.safetensors, expected.safetensors} and
NAME.gguf beside them. expected.safetensors holds ids (2, 13), logits (2, 13, vocab) and, for every
prunable linear, the gradient of the summed next-token loss (fp32, eager attention).
Weights are drawn wide enough that every feature (bias, norm, window, cap) moves the logits.

    python tools/golden/make_models.py tests/golden/models

Needs torch, transformers 5, safetensors, gguf: a tool for developers, no test runs it.
"""
import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.gemma3 import modeling_gemma3
from transformers import (Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)

COMMON = dict(vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
              num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
              bos_token_id=1, eos_token_id=2, attn_implementation="eager")
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=16)

MODELS = {
    # name: (configuration, dtype on disk, shards)
    "llama": (LlamaConfig(**COMMON, head_dim=12, attention_bias=True, mlp_bias=True,
                          tie_word_embeddings=False, rope_parameters=LLAMA3), torch.float32, 1),
    "mistral": (MistralConfig(**COMMON, sliding_window=5, tie_word_embeddings=False,
                              rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
                torch.float16, 1),
    "qwen2": (Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=4, max_window_layers=1,
                          tie_word_embeddings=True,
                          rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=4.0)),
              torch.bfloat16, 1),
    "qwen3": (Qwen3Config(**COMMON, head_dim=16, attention_bias=True, use_sliding_window=True,
                          sliding_window=6, layer_types=["sliding_attention", "full_attention"],
                          tie_word_embeddings=False,
                          rope_parameters=dict(rope_type="default", rope_theta=1e6)),
              torch.bfloat16, 2),
    "gemma3": (Gemma3TextConfig(**{**COMMON, "num_hidden_layers": 3}, head_dim=16,
                                query_pre_attn_scalar=24, sliding_window=4,
                                layer_types=["sliding_attention", "sliding_attention",
                                             "full_attention"],
                                final_logit_softcapping=8.0, attn_logit_softcapping=5.0,
                                rope_parameters={
                                    "full_attention": dict(rope_type="linear", factor=8.0,
                                                           rope_theta=1e6),
                                    "sliding_attention": dict(rope_type="default",
                                                              rope_theta=1e4)}),
               torch.float32, 1),
}

# transformers reads Gemma 3's attn_logit_softcapping but does not pass it on; its attention
# function knows what to do with it.
eager = modeling_gemma3.eager_attention_forward
modeling_gemma3.eager_attention_forward = lambda module, *args, **more: eager(
    module, *args, softcap=module.attn_logit_softcapping, **more)


def randomize(model, plus_one):
    generator = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1 and name.endswith("norm.weight"):
            p.data = noise * 0.3 + (0.0 if plus_one else 1.0)
        elif p.dim() == 1:
            p.data = noise * 0.5
        else:
            p.data = noise * (1.0 if "embed" in name else 1.5 / p.shape[1] ** 0.5)


def prunable(model):
    return {n: p for n, p in model.named_parameters()
            if n.endswith("_proj.weight")}


def expected(model, ids):
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(),
                                             reduction="sum")
    loss.backward()
    out = {"ids": ids.to(torch.int32), "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    out.update({f"grad.{n}": p.grad.clone() for n, p in prunable(model).items()})
    return {k: v.contiguous() for k, v in out.items()}


def save(folder, model, config, dtype, shards):
    folder.mkdir(parents=True)
    text = config.to_dict()
    text["architectures"] = [type(model).__name__]
    for key in ("transformers_version", "attn_implementation", "_attn_implementation", "dtype"):
        text.pop(key, None)
    text = {k: v for k, v in text.items() if not k.startswith(("id2", "label2"))}
    (folder / "config.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in model.named_parameters()}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {"metadata": {}, "weight_map": {}}
    for i in range(shards):
        part = names[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# --- GGUF: written by the gguf package, as llama.cpp's converter lays models out ---

ARCH = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
        "gemma3": gguf.MODEL_ARCH.GEMMA3}


def interleave(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def quantize(w, kind):
    if w.ndim == 1 or kind == "f32":
        return w.astype(np.float32), None
    if kind == "f16":
        return w.astype(np.float16), None
    qtype = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.quantize(w.astype(np.float32), qtype), qtype


def save_gguf(path, name, model, config):
    """Writes the file and puts the values it stands for into `model`."""
    writer = gguf.GGUFWriter(str(path), name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if rope.get("full_attention", rope)["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.get("full_attention", rope)["factor"])
    if rope.get("rope_type") == "llama3":
        model_freq = model.model.rotary_emb.inv_freq.numpy()
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model_freq).astype(np.float32))
    names = gguf.get_tensor_name_map(ARCH[name], config.num_hidden_layers)
    for i, (hf, p) in enumerate(model.named_parameters()):
        w = p.detach().numpy().astype(np.float32)
        if name == "gemma3" and hf.endswith("norm.weight"):
            w = w + 1
        heads = {"q_proj": config.num_attention_heads,
                 "k_proj": config.num_key_value_heads}.get(hf.split(".")[-2], 0)
        if name == "llama" and heads:
            w = interleave(w, heads)
        data, qtype = quantize(w, ("q8_0", "f16", "q8_0", "f32")[i % 4])
        base, suffix = hf.rsplit(".", 1)
        writer.add_tensor(names.get_name(base) + "." + suffix, data, raw_dtype=qtype)
        back = gguf.quants.dequantize(data, qtype) if qtype else data.astype(np.float32)
        if name == "llama" and heads:
            back = back.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        if name == "gemma3" and hf.endswith("norm.weight"):
            back = back - 1
        p.data = torch.from_numpy(np.ascontiguousarray(back))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(root, name, config, dtype, shards):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    randomize(model, plus_one=name == "gemma3")
    for p in model.parameters():
        p.data = p.data.to(dtype).to(torch.float32)
    model.tie_weights()
    ids = torch.randint(0, config.vocab_size, (2, 13), generator=torch.Generator().manual_seed(3))
    save(root / name, model, config, dtype, shards)
    save_file(expected(model, ids), root / name / "expected.safetensors")
    print(name, sum(f.stat().st_size for f in (root / name).iterdir()), "bytes")
    if name not in ARCH:
        return
    if name == "qwen2":  # a GGUF has no keys for its window, nor for the scale of q
        weights = model.state_dict()
        config = Qwen2Config(**COMMON, tie_word_embeddings=True,
                             rope_parameters=config.rope_parameters)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        model.load_state_dict(weights)
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.head_dim ** -0.5
    with torch.no_grad():
        save_gguf(root / f"{name}.gguf", name, model, config)
        model.tie_weights()
        logits = model(input_ids=ids, use_cache=False).logits.float()
    save_file({"ids": ids.to(torch.int32), "logits": logits.contiguous()},
              root / f"{name}.gguf.expected.safetensors")
    print(f"{name}.gguf", (root / f"{name}.gguf").stat().st_size, "bytes")


def main():
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    torch.set_num_threads(1)
    for name, (config, dtype, shards) in MODELS.items():
        make(root, name, config, dtype, shards)


main()
