"""Golden values of the losses that a teacher gives, from PyTorch's autograd in fp64.

Writes tests/golden/distill.json: logits of a model and its teacher, and of each kind of divergence
the loss (1 - weight) * nll + weight * kl of the rows, summed, its parts and its gradient; states of
both, their relative squared distance a row, and its gradient.
Usage: python tools/golden/make_distill.py
"""
import json
import os

import torch
import torch.nn.functional as F

torch.manual_seed(21)
torch.set_default_dtype(torch.float64)
ROWS, VOCAB, WIDTH, SCALE, SHARE = 3, 21, 10, 0.5, 0.25
TARGETS = torch.tensor([4, 0, 20])


def f32(t):
    return t.to(torch.float32).to(torch.float64)


def flat(t):
    return [float(f"{x:.9g}") for x in t.detach().reshape(-1)]


def bucketed(logits, chosen):
    """Log probabilities of the chosen tokens, and last of all others together."""
    log = F.log_softmax(logits, dim=-1)
    others = torch.ones_like(log, dtype=torch.bool).scatter(1, chosen, False)
    rest = log.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log.gather(1, chosen), rest], dim=-1)


def divergence(kind, k, model, teacher):
    if kind == "top-k":
        chosen = teacher.topk(k, dim=-1).indices
        p, q = bucketed(teacher, chosen), bucketed(model, chosen)
    else:
        p, q = F.log_softmax(teacher, dim=-1), F.log_softmax(model, dim=-1)
    if kind == "reverse":
        p, q = q, p
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def case(kind, k, weight):
    model, teacher = f32(torch.randn(ROWS, VOCAB) * 2).requires_grad_(), f32(torch.randn(ROWS, VOCAB) * 2)
    nll = F.cross_entropy(model, TARGETS, reduction="none")
    kl = divergence(kind, k, model, teacher)
    (SCALE * ((1 - weight) * nll + weight * kl).sum()).backward()
    return {"kind": kind, "k": k, "weight": weight, "logits": flat(model), "teacher": flat(teacher),
            "nll": flat(nll), "kl": flat(kl), "gradient": flat(model.grad)}


def states():
    here, there = f32(torch.randn(ROWS, WIDTH)).requires_grad_(), f32(torch.randn(ROWS, WIDTH) * 3)
    distance = SHARE * (here - there).square().sum(-1) / there.square().sum(-1)
    (SCALE * distance.sum()).backward()
    return {"here": flat(here), "there": flat(there), "distance": flat(distance),
            "gradient": flat(here.grad)}


def main():
    cases = [case("forward", 0, 0.3), case("reverse", 0, 0.3), case("reverse", 0, 1.0),
             case("top-k", 1, 1.0), case("top-k", 5, 0.6), case("top-k", 20, 1.0)]
    out = {"rows": ROWS, "vocab": VOCAB, "width": WIDTH, "scale": SCALE, "share": SHARE,
           "targets": TARGETS.tolist(), "cases": cases, "states": states()}
    path = os.path.join(os.path.dirname(__file__), "..", "..", "tests", "golden", "distill.json")
    with open(path, "w") as file:
        json.dump(out, file)
        file.write("\n")


main()
