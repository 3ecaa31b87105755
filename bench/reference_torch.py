#!/usr/bin/env python3
"""One joint learning step as a plain PyTorch program: what tessera's learning speed is held against.

usage: reference_torch.py [--steps 3] [--tokens 1024] [--window 512] [--threads 2] [--device cuda]
       [--compile] [--mode joint|tile] [--bf16] [--json]

The model has SmolLM2-135M's shapes with random weights (the speed does not depend on them). A step
does what `tessera learn --mode joint` does: soft tile and 2:4 masks by Gumbel-softmax over fp32
logits, W * M in every linear of the blocks, next-token cross-entropy, gradients to the logits,
clipping by the global norm, AdamW. Tile mode keeps a random 2:4 mask. On a GPU, --bf16 runs the
model under autocast and --compile through torch.compile. Needs torch and transformers.
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


def gumbel(like):
    uniform = torch.rand(like.shape, device=like.device).clamp_(1e-7, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


class JointLinear(nn.Module):
    """y = x (W * M)^T with M = T + (1 - T) * M24; W is frozen, the logits of T and M24 learn."""

    def __init__(self, linear, mode, tile=128):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        rows, cols = self.weight.shape
        self.tile = tile
        if mode == "joint":
            self.groups = nn.Parameter(0.014 * torch.randn(rows, cols // 4, 6))
        else:
            choice = torch.randint(0, 6, (rows, cols // 4))
            self.register_buffer("fixed", CANDIDATES[choice].reshape(rows, cols))
        self.register_buffer("candidates", CANDIDATES.clone())
        self.mode = mode
        self.tiles = nn.Parameter(0.014 * torch.randn(-(-rows // tile), -(-cols // tile)))
        self.kappa, self.tau = 100.0, 2.0

    def mask(self):
        rows, cols = self.weight.shape
        if self.mode == "joint":
            soft = F.softmax((self.kappa * self.groups + gumbel(self.groups)) / self.tau, -1)
            m24 = (soft @ self.candidates).reshape(rows, cols)
        else:
            m24 = self.fixed
        noise = gumbel(self.tiles) - gumbel(self.tiles)
        t = torch.sigmoid((self.kappa * self.tiles + noise) / self.tau)
        self.density = t.mean()
        t = t.repeat_interleave(self.tile, 0)[:rows].repeat_interleave(self.tile, 1)[:, :cols]
        return t + (1 - t) * m24

    def forward(self, x):
        return F.linear(x, self.weight * self.mask())


def build_model(mode):
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
                    setattr(parent, name, JointLinear(child, mode))
    return model


def now(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(model, learned, optimizer, arguments):
    device = arguments.device
    shape = (arguments.tokens // arguments.window, arguments.window)
    ids = torch.randint(0, 49152, shape, device=device)
    start = now(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=arguments.bf16):
        loss = model(input_ids=ids, labels=ids).loss
    masked = [m for m in model.modules() if isinstance(m, JointLinear)]
    density = 0.5 + 0.5 * torch.stack([m.density for m in masked]).mean()
    (loss + 7 * (density - 0.55).abs()).backward()
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return now(device) - start


def product_gflops():
    """The best rate of a step's fp32 products: what the program could reach at most."""
    best = 0
    for rows, cols in ((1536, 576), (576, 1536), (2048, 2048)):
        x, w = torch.randn(1024, cols), torch.randn(rows, cols)
        y = torch.empty(1024, rows)
        for _ in range(20):
            start = time.perf_counter()
            torch.mm(x, w.t(), out=y)
            best = max(best, 2e-9 * 1024 * rows * cols / (time.perf_counter() - start))
    return best


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--mode", default="joint", choices=["joint", "tile"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = build_model(arguments.mode).to(arguments.device)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    step = torch.compile(model) if arguments.compile else model
    seconds = [
        step_seconds(step, learned, optimizer, arguments) for _ in range(arguments.steps + 1)
    ][1:]  # the first one warms up
    median = arguments.tokens / sorted(seconds)[len(seconds) // 2]
    if arguments.json:
        report = {"tokens_per_s": round(median, 2), "torch": torch.__version__}
        if arguments.device == "cpu":
            report["product_gflops"] = round(product_gflops(), 1)
        print(json.dumps(report))
    else:
        print(f"median of {len(seconds)} steps: {median:.1f} tokens/s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
