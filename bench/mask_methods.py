#!/usr/bin/env python3
"""ProxSparse and MaskPro, the other ways to learn a 2:4 mask at small budgets, beside tessera's.

usage: mask_methods.py FOLDER PLAN [--csv results/mask_methods.csv] [--work DIR] [--window N]
       mask_methods.py --check

FOLDER is one of bench/recipe.py with model/ as a directory of Hugging Face's form. A line of PLAN:

  name | method | tokens | seeds | key=value ...

Methods and their keys:
  proxsparse  lr, shrink, frozen, batch   Liu et al., ICML 2025, arXiv 2502.00258
  maskpro     lr, logits, batch           Sun et al., 2025, arXiv 2506.12876, from --prior's mask
  maskllm     (options of tessera learn)  tessera's own, from the same prior

PyTorch runs the first two on the same windows; `tessera eval` measures all. Weights stay frozen:
ProxSparse moves a copy whose two largest of four say what the original keeps. --check holds the
proximal operator against a search and the policy gradient against enumeration, and runs nothing.
Needs torch and transformers; rows that the ledger has are not run again.
"""
import argparse
import csv
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import time

import numpy
import torch

from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))
FIELDS = ("date commit machine model name method seed tokens options seconds density predictions "
          "perplexity").split()
CANDIDATES = list(itertools.combinations(range(4), 2))

# --- ProxSparse: argmin_w 1/2 |w - y|^2 + lam * sum over triples of |w_a w_b w_c| ---


def penalty(w):
    """The 2:4 regularizer of groups (n, 4): 0 when at most two of four are not zero."""
    a = w.abs()
    return sum(a[:, i] * a[:, j] * a[:, k] for i, j, k in itertools.combinations(range(4), 3))


def objective(w, y, lam):
    return 0.5 * ((w - y) ** 2).sum(1) + lam * penalty(w)


def descend(w, y, lam, sweeps):
    """Exact minimization over one coordinate after the other; w, y >= 0 (n, 4)."""
    for _ in range(sweeps):
        for i in range(4):
            b, c, d = (w[:, j] for j in range(4) if j != i)
            w[:, i] = (y[:, i] - lam * (b * c + b * d + c * d)).clamp(min=0)
    return w


def proximal(y, lam, sweeps=30):
    """The minimizer for groups y (n, 4), lam (n): the best of descents that start from supports of
    two, three and four of the largest entries. Descent leaves a zero where it is worth it."""
    order = y.abs().argsort(dim=1, descending=True)
    top = y.abs().gather(1, order)
    best, value = None, None
    for support in (2, 3, 4):
        start = top.clone()
        start[:, support:] = 0
        target = top.clone()
        target[:, support:] = 0
        w = start if support == 2 else descend(start, target, lam, sweeps)
        here = objective(w, top, lam)
        if best is None:
            best, value = w, here
            continue
        better = here < value
        best = torch.where(better[:, None], w, best)
        value = torch.where(better, here, value)
    out = torch.zeros_like(y).scatter(1, order, best)
    return out * y.sign()


# --- MaskPro: two of four without replacement, from a softmax of four logits ---


def log_probability(logits, mask):
    """log of the probability that two draws without replacement give `mask` (n, 4)."""
    p = torch.softmax(logits, dim=1)
    pair = p[mask].reshape(-1, 2)
    a, b = pair[:, 0], pair[:, 1]
    return torch.log(a * b / (1 - a).clamp(min=1e-12) + a * b / (1 - b).clamp(min=1e-12) + 1e-30)


def score(logits, mask):
    """The gradient of log_probability by the logits."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(log_probability(logits, mask).sum(), logits)[0]


def draw(logits, generator):
    """Two of four without replacement: the largest two of Gumbel-perturbed logits."""
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    return top_two(logits - torch.log(-torch.log(u)).to(logits.dtype))


def top_two(values):
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.scatter(1, values.topk(2, dim=1).indices, True)


# --- checks ---


def search(y, lam):
    """The least objective of one group by a grid of 9 steps a side, polished."""
    top = float(y.abs().max())
    side = torch.linspace(0, top, 9, dtype=y.dtype)
    grid = torch.cartesian_prod(side, side, side, side)
    many = y.abs().expand_as(grid)
    value = objective(grid, many, lam)
    starts = grid[value.argsort()[:60]].clone()
    for keep in itertools.product((0, 1), repeat=4):
        starts = torch.cat([starts, y.abs() * torch.tensor(keep, dtype=y.dtype)])
    ends = descend(starts, y.abs().expand_as(starts), torch.full((len(starts),), lam,
                                                                 dtype=y.dtype), 300)
    return float(objective(ends, y.abs().expand_as(ends), lam).min())


def check_proximal():
    torch.manual_seed(1)
    counts = [0] * 5
    for trial in range(150):
        y = torch.randn(1, 4, dtype=torch.float64)
        if trial % 3 == 0:  # nearly equal entries are the hard ones
            y = torch.sign(y) * (1 + 0.05 * torch.randn(1, 4, dtype=torch.float64))
        lam = torch.tensor([10 ** random.Random(trial).uniform(-2, 1)], dtype=torch.float64)
        w = proximal(y, lam, sweeps=300)
        counts[int((w != 0).sum())] += 1
        got, want = float(objective(w, y, lam)), search(y, float(lam))
        assert got <= want + 1e-7 * (1 + want), (y, lam, got, want)
    assert counts[2] > 20 and counts[3] > 5 and counts[4] > 20, counts
    print(f"proximal operator: 150 groups, {counts} with so many entries left")


def check_policy():
    """E[f(mask) grad log p(mask)] = grad E[f(mask)], and probabilities sum to one."""
    torch.manual_seed(2)
    for _ in range(20):
        logits = torch.randn(1, 4, dtype=torch.float64).requires_grad_()
        value = torch.randn(6, dtype=torch.float64)
        masks = [torch.tensor([[i in pair for i in range(4)]]) for pair in CANDIDATES]
        p = torch.stack([log_probability(logits, m).exp()[0] for m in masks])
        assert abs(float(p.detach().sum()) - 1) < 1e-9
        whole = torch.autograd.grad((p * value).sum(), logits)[0]
        estimate = sum(p[k].detach() * value[k] * score(logits, masks[k]) for k in range(6))
        assert torch.allclose(whole, estimate, atol=1e-9)
        constant = sum(p[k].detach() * score(logits, masks[k]) for k in range(6))
        assert constant.abs().max() < 1e-9  # so a baseline adds no bias
    generator, count = torch.Generator().manual_seed(3), torch.zeros(6)
    logits = torch.tensor([[0.3, -0.2, 1.0, 0.1]])
    drawn = draw(logits.expand(60000, 4), generator)
    for k, pair in enumerate(CANDIDATES):
        mask = torch.tensor([[i in pair for i in range(4)]])
        count[k] = (drawn == mask).all(1).float().mean()
        assert abs(float(count[k]) - float(log_probability(logits, mask).exp())) < 0.01
    print("policy gradient: 20 groups by enumeration, 60000 draws")


# --- runs ---


def groups_of(weight):
    return weight.reshape(-1, 4)


class Runner:
    def __init__(self, a):
        from transformers import AutoModelForCausalLM
        self.a, self.program = a, a.tessera
        self.path = os.path.join(a.folder, "model")
        self.model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        for p in self.model.parameters():
            p.requires_grad_(False)
        self.linears = {name: p for name, p in self.model.named_parameters()
                        if p.dim() == 2 and ".layers." in name}
        self.original = {name: p.detach().clone() for name, p in self.linears.items()}
        self.prior = os.path.join(a.work, "prior.mask")
        self.windows = self.read_windows()

    def tessera(self, *words):
        output = os.path.join(self.a.work, "out.json")
        subprocess.run([self.program, *words, "--json", output, "--force", "--quiet", "--threads",
                        "1"], check=True, stdout=subprocess.DEVNULL)
        with open(output) as file:
            return json.load(file)

    def read_windows(self):
        with open(os.path.join(self.a.folder, "learn.jsonl"), encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        text = os.path.join(self.a.work, "learn.txt")
        with open(text, "w", encoding="utf-8") as file:
            file.write("\n".join(t.replace("\n", " ") for t in texts) + "\n")
        ids = subprocess.run([self.program, "tokenize", self.path, text, "--lines"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split()
        ids = torch.tensor([int(i) for i in ids])
        return ids[:len(ids) // self.a.window * self.a.window].reshape(-1, self.a.window)

    def steps(self, tokens, batch, seed):
        """Windows of each step, drawn without replacement until all were seen."""
        order, count = [], tokens // self.a.window
        shuffle = random.Random(seed)
        while len(order) < count:
            order += shuffle.sample(range(len(self.windows)), len(self.windows))
        order = order[:count // batch * batch]
        return [self.windows[order[i:i + batch]] for i in range(0, len(order), batch)]

    def loss(self, ids):
        return self.model(input_ids=ids, labels=ids).loss

    def put(self, masks):
        for name, p in self.linears.items():
            p.data = self.original[name] * masks[name].reshape(p.shape)

    def restore(self):
        for name, p in self.linears.items():
            p.data = self.original[name].clone()
            p.requires_grad_(False)

    def shrink(self, strength):
        """The proximal operator on all matrices, as one: most of the time is PyTorch's calls."""
        sizes = [p.numel() // 4 for p in self.linears.values()]
        lam = [strength / self.original[name].square().mean().sqrt().expand(size)
               for name, size in zip(self.linears, sizes)]
        y = torch.cat([groups_of(p.data) for p in self.linears.values()])
        for p, w in zip(self.linears.values(), proximal(y, torch.cat(lam)).split(sizes)):
            p.data = w.reshape(p.shape)

    def proxsparse(self, tokens, seed, o):
        """AdamW on a copy of the weights, the pull to the originals in its loss, and after each
        step the proximal operator with lam = shrink / (mean square of the matrix) ** 1/2, risen
        to over the run; `frozen` weighs the pull."""
        for p in self.linears.values():
            p.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.linears.values(), lr=o["lr"], weight_decay=0)
        batches = self.steps(tokens, int(o["batch"]), seed)
        for step, ids in enumerate(batches):
            done = (step + 1) / len(batches)
            for group in optimizer.param_groups:
                group["lr"] = o["lr"] * min(1, 10 * done)
            loss = self.loss(ids)
            for name, p in self.linears.items():
                w0 = self.original[name]
                far = w0 / (w0 + 1e-3 * w0.sign()) * (p - w0)
                loss = loss + o["frozen"] * (far ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                self.shrink(o["shrink"] * done)
        masks = {name: top_two(groups_of(p.data.abs())) for name, p in self.linears.items()}
        self.restore()
        return masks

    def maskpro(self, tokens, seed, o):
        """Logits of `logits` where the prior keeps; the loss of a drawn mask less that of the
        prior's on the same windows, less their moving average, times the score."""
        prior = self.read_mask(self.prior)
        logits = {n: m.float() * o["logits"] for n, m in prior.items()}
        generator, delta = torch.Generator().manual_seed(seed), 0.0
        with torch.no_grad():
            for ids in self.steps(tokens, int(o["batch"]), seed):
                drawn = {n: draw(l, generator) for n, l in logits.items()}
                self.put(prior)
                before = float(self.loss(ids))
                self.put(drawn)
                gain = float(self.loss(ids)) - before
                delta = 0.99 * delta + 0.01 * gain
                for n in logits:
                    with torch.enable_grad():
                        g = score(logits[n], drawn[n])
                    logits[n] -= o["lr"] * (gain - delta) * g
        self.restore()
        return {n: top_two(l) for n, l in logits.items()}

    def read_mask(self, path):
        out = os.path.join(self.a.work, "mask.npz")
        self.tessera("export", self.path, "--mask", path, "--to", "mask-npz", "--out", out)
        file = numpy.load(out)
        masks = {}
        for name, p in self.linears.items():
            bits = numpy.unpackbits(file[name])[:p.numel()]
            masks[name] = torch.tensor(bits.astype(bool)).reshape(-1, 4)
        return masks

    def write_mask(self, masks, path):
        arrays = {}
        for name, m in masks.items():
            arrays[name] = numpy.packbits(m.reshape(-1).numpy())
            arrays[name + ".__shape__"] = numpy.array(self.linears[name].shape, dtype=numpy.int64)
        numpy.savez(path, **arrays)

    def make(self, method, tokens, seed, words):
        path = os.path.join(self.a.work, "made.npz")
        if method == "prior":
            return self.prior
        if method == "maskllm":
            run = os.path.join(self.a.work, "run")
            shutil.rmtree(run, ignore_errors=True)
            self.tessera("learn", self.path, "--mode", "maskllm", "--data",
                         os.path.join(self.a.folder, "learn.jsonl"), "--tokens", str(tokens),
                         "--seed", str(seed), "--prior", self.prior, "--out", run, *words)
            return os.path.join(run, "mask.safetensors")
        o = {key: float(value) for key, _, value in (word.partition("=") for word in words)}
        self.write_mask(getattr(self, method)(tokens, seed, o), path)
        return path

    def prepare(self):
        if not os.path.exists(self.prior):
            self.tessera("prune", self.path, "--method", "sparsegpt", "--pattern", "2:4", "--calib",
                         os.path.join(self.a.folder, "learn.jsonl"), "--calib-tokens", "12288",
                         "--tile", "16", "--out", self.prior)

    def row(self, name, method, tokens, seed, options):
        start = time.time()
        mask = self.make(method, tokens, seed, shlex.split(options))
        seconds = time.time() - start
        result = self.tessera("eval", self.path, "--mask", mask, "--ppl",
                              os.path.join(self.a.folder, "heldout.txt"), "--window",
                              str(self.a.window))
        return {"date": time.strftime("%Y-%m-%d"), "commit": commit(self.program),
                "machine": machine(), "model": self.a.model, "name": name, "method": method,
                "seed": seed, "tokens": tokens, "options": options, "seconds": round(seconds, 1),
                "density": round(result["density"], 6), "predictions": result["predictions"],
                "perplexity": round(result["perplexity"], 3)}


def read_plan(text):
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, method, tokens, seeds, options = (part.strip() for part in line.split("|"))
        first, _, last = seeds.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            yield name, method, int(tokens), seed, options


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("plan", nargs="?")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--csv", default="results/mask_methods.csv")
    parser.add_argument("--work", default="mask-methods-work")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--model", default="stories260K-tiny", help="its name in the ledger")
    parser.add_argument("--tessera", default=os.path.join(os.path.dirname(HERE), "tessera"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.check:
        check_proximal()
        check_policy()
        return
    os.makedirs(a.work, exist_ok=True)
    done = set()
    if os.path.exists(a.csv):
        with open(a.csv, newline="") as file:
            done = {(r["model"], r["name"], r["method"], int(r["tokens"]), int(r["seed"]),
                     r["options"]) for r in csv.DictReader(file)}
    runner = Runner(a)
    runner.prepare()
    with open(a.plan) as file:
        plan = list(read_plan(file.read()))
    for key in plan:
        if (a.model, *key) in done:
            continue
        row = runner.row(*key)
        new = not os.path.exists(a.csv)
        with open(a.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(f"{row['name']:24} {row['method']:10} seed {row['seed']} {row['tokens']:7} tokens "
              f"{row['seconds']:6.0f} s {row['perplexity']:9.2f}  {row['options']}", flush=True)


if __name__ == "__main__":
    main()
