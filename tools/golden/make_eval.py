#!/usr/bin/env python3
"""Golden figures for eval and generate: perplexity, KL and greedy text of stories260K, computed by
transformers in fp64.

usage: python3 -P make_eval.py SHARED_DATA > tests/golden/eval_stories260k.json

The masked model drops the last two of every four inputs of down_proj in block 0 (code 1100
everywhere), so that the test can make the same mask without a file.
"""
import json
import os
import sys

import sentencepiece
import torch
from transformers import AutoModelForCausalLM

WINDOW, WINDOWS = 96, 6
PROMPT = "Once upon a time, there was a little girl"
GREEDY_TOKENS = 120
MASKED = "model.layers.0.mlp.down_proj.weight"


def log_probabilities(model, windows):
    """(windows, WINDOW - 1, vocab)"""
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    return torch.log_softmax(logits, -1)


def nll(log_p, windows):
    return -log_p.gather(-1, windows[:, 1:, None]).squeeze(-1)


def stderr(per_window):
    return (per_window.std(unbiased=True) / len(per_window) ** 0.5).item()


def main():
    data = sys.argv[1]
    folder = os.path.join(data, "models/stories260K")
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.eval()
    tokenizer = sentencepiece.SentencePieceProcessor(os.path.join(folder, "tokenizer.model"))
    with open(os.path.join(data, "calib/tiny.utf8"), encoding="utf-8") as file:
        text = file.read()
    ids = [tokenizer.bos_id()] + tokenizer.encode(text)
    windows = torch.tensor(ids[: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)
    dense = log_probabilities(model, windows)

    prompt = [tokenizer.bos_id()] + tokenizer.encode(PROMPT)
    greedy = model.generate(
        torch.tensor([prompt]), max_new_tokens=GREEDY_TOKENS, do_sample=False,
        eos_token_id=tokenizer.eos_id(), pad_token_id=0)[0].tolist()[len(prompt):]

    weight = dict(model.named_parameters())[MASKED]
    with torch.no_grad():
        weight[:, 2::4] = 0
        weight[:, 3::4] = 0
    masked = log_probabilities(model, windows)
    kl = (dense.exp() * (dense - masked)).sum(-1)
    agree = (dense.argmax(-1) == masked.argmax(-1)).double()
    result = {
        "text": "calib/tiny.utf8",
        "window": WINDOW,
        "windows": WINDOWS,
        "first_ids": ids[:24],
        "nll": nll(dense, windows).mean().item(),
        "nll_stderr": stderr(nll(dense, windows).mean(-1)),
        "perplexity": nll(dense, windows).mean().exp().item(),
        "masked": {
            "name": MASKED,
            "nll": nll(masked, windows).mean().item(),
            "kl": kl.mean().item(),
            "kl_stderr": stderr(kl.mean(-1)),
            "agreement": agree.mean().item(),
            "agreement_stderr": stderr(agree.mean(-1)),
        },
        "prompt": PROMPT,
        "greedy_ids": greedy,
        "greedy_text": tokenizer.decode(prompt[1:] + greedy)[len(PROMPT):],
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
