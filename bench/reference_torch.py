#!/usr/bin/env python3
"""One joint learning step as a plain PyTorch program: what tessera's learning speed is held against.

usage: reference_torch.py [--steps 3] [--tokens 1024] [--window 512] [--threads 2] [--json]

The model has SmolLM2-135M's shapes with random weights (the speed does not depend on them). A step
does what `tessera learn --mode joint` does: soft tile and 2:4 masks by Gumbel-softmax over fp32
logits, W * M in every linear of the blocks, next-token cross-entropy, gradients to the logits,
clipping by the global norm, AdamW. Needs torch and transformers.
"""
import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

CANDIDATES = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]],
    dtype=torch.float32,
)


def gumbel(shape):
    return -torch.log(-torch.log(torch.rand(shape).clamp_(1e-7, 1 - 1e-7)))


class JointLinear(nn.Module):
    """y = x (W * M)^T with M = T + (1 - T) * M24; W is frozen, the logits of T and M24 learn."""

    def __init__(self, linear, tile=128):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        rows, cols = self.weight.shape
        self.tile = tile
        self.groups = nn.Parameter(0.014 * torch.randn(rows, cols // 4, 6))
        self.tiles = nn.Parameter(0.014 * torch.randn(-(-rows // tile), -(-cols // tile)))
        self.kappa, self.tau = 100.0, 2.0

    def mask(self):
        rows, cols = self.weight.shape
        soft = F.softmax((self.kappa * self.groups + gumbel(self.groups.shape)) / self.tau, -1)
        m24 = (soft @ CANDIDATES).reshape(rows, cols)
        noise = gumbel(self.tiles.shape) - gumbel(self.tiles.shape)
        t = torch.sigmoid((self.kappa * self.tiles + noise) / self.tau)
        self.density = t.mean()
        t = t.repeat_interleave(self.tile, 0)[:rows].repeat_interleave(self.tile, 1)[:, :cols]
        return t + (1 - t) * m24

    def forward(self, x):
        return F.linear(x, self.weight * self.mask())


def build_model():
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rope_theta=100000.0, tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, JointLinear(child))
    return model


def step_seconds(model, learned, optimizer, tokens, window):
    ids = torch.randint(0, 49152, (tokens // window, window))
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    masked = [m for m in model.modules() if isinstance(m, JointLinear)]
    density = 0.5 + 0.5 * torch.stack([m.density for m in masked]).mean()
    (loss + 7 * (density - 0.55).abs()).backward()
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = build_model()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    seconds = [
        step_seconds(model, learned, optimizer, arguments.tokens, arguments.window)
        for _ in range(arguments.steps + 1)
    ][1:]  # the first one warms up
    median = arguments.tokens / sorted(seconds)[len(seconds) // 2]
    if arguments.json:
        print(json.dumps({"tokens_per_s": round(median, 2), "torch": torch.__version__}))
    else:
        print(f"median of {len(seconds)} steps: {median:.1f} tokens/s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
