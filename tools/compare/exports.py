"""Exported models in other programs: the same losses and the same token ids as tessera's own?

Exports MODEL under MASK to a Hugging Face directory and to GGUF files of three types, loads them in
transformers and in llama.cpp (PyPI's llama-cpp-python), and holds the mean loss over a few windows
of TEXT and the ids of its tokens against tessera's. Replaces the model's rows in a CSV ledger, and
exits with 1 when zeros or ids differ, or transformers' loss by more than 1e-4: llama.cpp rounds
activations, by 8 bits for q8_0, so that its losses are recorded but not judged.

Needs: pip install torch transformers safetensors gguf llama-cpp-python sentencepiece protobuf
Usage: python tools/compare/exports.py MODEL MASK TEXT [--ledger results/exports.csv]
"""
import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile

sys.path.pop(0)  # this folder has a tokenizers.py, which is not the package that is meant

import numpy as np  # noqa: E402

GGUF_TYPES = ("f16", "bf16", "q8_0")
FIELDS = ["commit", "model", "density", "export", "type", "loader", "windows", "window",
          "nll_tessera", "nll_loader", "difference", "zeros", "zeros_expected", "ids_equal"]


def tessera(*arguments):
    out = subprocess.run(["./tessera", *arguments], capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"tessera {' '.join(arguments)}: {out.stderr}")
    return out.stdout


def losses(logits, ids):
    """Mean cross-entropy of the next tokens of one window, in nats."""
    logits = np.asarray(logits, np.float64)[:-1]
    top = logits.max(-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return (log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).mean()


def run_transformers(path, windows, text):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        nll = np.mean([losses(model(torch.tensor([w])).logits[0].numpy(), w) for w in windows])
    linears = [m for n, m in model.named_modules() if n.endswith("_proj")]
    zeros = sum(int((m.weight == 0).sum()) for m in linears)
    return nll, zeros, AutoTokenizer.from_pretrained(path)(text)["input_ids"]


def run_llama_cpp(path, windows, text):
    import llama_cpp
    from gguf import GGUFReader, dequantize

    model = llama_cpp.Llama(path, n_ctx=len(windows[0]) + 1, n_batch=len(windows[0]) + 1,
                            logits_all=True, verbose=False, n_threads=1)
    nll = []
    for window in windows:
        model.reset()
        model.eval(window)
        nll.append(losses(model.scores[: len(window)], np.array(window)))
    zeros = sum(int((dequantize(t.data, t.tensor_type) == 0).sum())
                for t in GGUFReader(path).tensors
                if t.name.startswith("blk.") and t.name.endswith(".weight")
                and "norm" not in t.name)
    ids = model.tokenize(text.encode(), add_bos=True, special=True)
    return float(np.mean(nll)), zeros, ids


def write_ledger(path, rows):
    kept = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            kept = [r for r in csv.DictReader(file) if r["model"] != rows[0]["model"]]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "mask", "text"):
        parser.add_argument(name)
    parser.add_argument("--ledger", default="results/exports.csv")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--windows", type=int, default=4)
    a = parser.parse_args()

    text = open(a.text, encoding="utf-8").read()[: 40 * a.window * a.windows]
    commit = tessera("--version").split("(")[-1].rstrip(")\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "text")
        open(plain, "w", encoding="utf-8").write(text)
        ids = [int(i) for i in tessera("tokenize", a.model, plain).split()]
        windows = [ids[i * a.window : (i + 1) * a.window] for i in range(a.windows)]
        assert len(windows[-1]) == a.window, "the text is too short"
        tokens = str(a.window * a.windows)

        for export, kind, run in [("hf", "bf16", run_transformers)] + [
                ("gguf", t, run_llama_cpp) for t in GGUF_TYPES]:
            path = os.path.join(folder, f"{export}-{kind}" + (".gguf" if export == "gguf" else ""))
            tessera("export", a.model, "--mask", a.mask, "--to", export, "--type", kind, "--out",
                    path)
            own = json.loads(tessera("eval", path, "--ppl", plain, "--window", str(a.window),
                                     "--tokens", tokens, "--json", "-", "-q"))
            found = json.loads(tessera("inspect", path, "--scan", "--json", "-", "-q"))
            expected = round(found["linear_parameters"] * (1 - found["nonzero"]))
            nll, zeros, other_ids = run(path, windows, text)
            rows.append(dict(commit=commit, model=os.path.basename(a.model),
                             density=f"{found['density']:.4f}", export=export, type=kind,
                             loader=run.__name__[4:], windows=a.windows, window=a.window,
                             nll_tessera=f"{own['nll']:.6f}", nll_loader=f"{nll:.6f}",
                             difference=f"{abs(own['nll'] - nll):.1e}", zeros=zeros,
                             zeros_expected=expected, ids_equal=list(other_ids) == ids))
            print(rows[-1], flush=True)
            assert math.isfinite(nll)
    write_ledger(a.ledger, rows)
    good = all(r["zeros"] == r["zeros_expected"] and r["ids_equal"] for r in rows)
    sys.exit(not (good and float(rows[0]["difference"]) < 1e-4))


main()
