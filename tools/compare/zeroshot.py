"""Zero-shot scores against an independent scorer: the same log-likelihoods, choice by choice?

Exports MODEL to a Hugging Face directory in fp32, lets `tessera eval --tasks` score the first items
of each task there is a file for in TASKS_DIR, and scores the same items in PyTorch: templates and
rules written down once more from lm-evaluation-harness's, one forward pass a choice, no batches,
nothing shared. Replaces the model's rows of these tasks in a CSV ledger; exits with 1 when token counts, greedy
flags or answers differ (an answer may, where two scores are nearer than rounding), or a score by
more than 1e-3 nats.

Needs: pip install torch transformers sentencepiece
Usage: python tools/compare/zeroshot.py MODEL TASKS_DIR [--tasks NAMES] [--limit 200]
"""
import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.pop(0)  # this folder has a tokenizers.py, which is not the package that is meant

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TOLERANCE = 1e-3
FIELDS = ["commit", "machine", "isa", "model", "task", "items", "choices", "largest_difference",
          "mean_difference", "tokens_differ", "greedy_differ", "answers_differ", "near_ties",
          "acc_tessera", "acc_torch", "acc_norm_tessera", "acc_norm_torch"]


# --- what a task asks: [(context, continuation)], texts of the choices, index of the right one ---

def joined(context, choices, gold):
    return [(context, " " + choice) for choice in choices], choices, gold


def piqa(d):
    return joined(f"Question: {d['goal']}\nAnswer:", [d["sol1"], d["sol2"]], d["label"])


def arc(d):
    return joined(f"Question: {d['question']}\nAnswer:", d["choices"]["text"],
                  d["choices"]["label"].index(d["answerKey"]))


def openbookqa(d):
    return joined(d["question_stem"], d["choices"]["text"],
                  d["choices"]["label"].index(d["answerKey"].lstrip()))


def hellaswag_clean(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(d):
    context = f"{d['activity_label']}: {d['ctx_a']} {d['ctx_b'].capitalize()}"
    return joined(hellaswag_clean(context), [hellaswag_clean(e) for e in d["endings"]],
                  int(d["label"]))


def winogrande(d):
    before, after = d["sentence"].split("_", 1)
    pairs = [(before + d[option], " " + after.strip()) for option in ("option1", "option2")]
    return pairs, [after.strip()] * 2, int(d["answer"]) - 1


def boolq(d):
    return joined(f"{d['passage']}\nQuestion: {d['question']}?\nAnswer:", ["no", "yes"], d["label"])


def race(d):
    text = f"Article: {d['article']}\n\n"
    *solved, last = d["problems"]
    for p in solved:
        answer = p["options"]["ABCD".index(p["answer"])]
        if p["question"].endswith("  _  ."):
            text += p["question"][:-5] + answer + "\n"
        else:
            text += f"Question: {p['question']}\nAnswer: {answer}\n"
    return joined(text + last["question"], last["options"], "ABCD".index(last["answer"]))


def mmlu(d):
    text = ("The following are multiple choice questions (with answers) about "
            f"{d['subject'].replace('_', ' ')}.\n\n{d['question'].strip()}\n")
    text += "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", d["choices"]))
    return joined(text + "Answer:", list("ABCD"), d["answer"])


TASKS = {"piqa": piqa, "arc_easy": arc, "arc_challenge": arc, "openbookqa": openbookqa,
         "hellaswag": hellaswag, "winogrande": winogrande, "boolq": boolq, "race": race,
         "mmlu": mmlu}
NORMALIZED = {"piqa", "arc_easy", "arc_challenge", "openbookqa", "hellaswag"}


# --- scoring ---

class SentencePiece:
    """A tokenizer.model as its own library reads it: transformers' conversion leaves out what the
    model says about runs of spaces."""

    def __init__(self, path):
        import sentencepiece

        self.pieces = sentencepiece.SentencePieceProcessor(
            model_file=os.path.join(path, "tokenizer.model"))
        with open(os.path.join(path, "tokenizer_config.json")) as file:
            self.adds_bos = json.load(file).get("add_bos_token", True)
        self.bos_token_id, self.eos_token_id = self.pieces.bos_id(), self.pieces.eos_id()
        self.bos_token = self.pieces.id_to_piece(self.bos_token_id)

    def encode(self, text, add_special_tokens=True):
        bos = [self.bos_token_id] if add_special_tokens and self.adds_bos else []
        return bos + self.pieces.encode(text)


def open_tokenizer(path):
    converted = os.path.exists(os.path.join(path, "tokenizer.json"))
    return AutoTokenizer.from_pretrained(path) if converted else SentencePiece(path)


class Scorer:
    def __init__(self, path):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = open_tokenizer(path)
        self.length = AutoConfig.from_pretrained(path).max_position_embeddings

    def encode(self, context, continuation):
        tokenizer = self.tokenizer
        if not context:
            prefix = tokenizer.bos_token_id
            prefix = tokenizer.eos_token_id if prefix is None else prefix
            ids = tokenizer.encode(continuation, add_special_tokens=False)
            return ([prefix], ids) if ids[0] != prefix else (ids[:1], ids[1:])
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        doubled = bool(tokenizer.bos_token) and context.startswith(tokenizer.bos_token)
        special = {"add_special_tokens": False} if doubled else {}
        whole = tokenizer.encode(context + continuation, **special)
        count = len(tokenizer.encode(context, **special))
        return whole[:count], whole[count:]

    @torch.no_grad()
    def score(self, context, continuation):
        """(tokens of the context, of the continuation, log-likelihood, greedy)"""
        before, after = self.encode(context, continuation)
        ids = torch.tensor((before + after)[-(self.length + 1):])
        logits = self.model(ids[None, :-1]).logits[0, -len(after):].double()
        targets = ids[-len(after):]
        scores = torch.log_softmax(logits, -1).gather(1, targets[:, None])
        greedy = bool((logits.argmax(-1) == targets).all())
        return len(ids) - len(after), len(after), float(scores.sum()), greedy


def best(scores):
    return max(range(len(scores)), key=lambda i: scores[i])  # the first of the highest


def compare(scorer, task, samples):
    row = {"task": task, "items": len(samples), "choices": 0, "tokens_differ": 0,
           "greedy_differ": 0, "answers_differ": 0, "near_ties": 0}
    differences, right = [], {"acc": 0, "acc_norm": 0}
    for sample in samples:
        pairs, choices, gold = TASKS[task](sample["doc"])
        own = [scorer.score(*pair) for pair in pairs]
        assert gold == int(sample["target"]), f"{task} {sample['doc_id']}: another target"
        for i, (context_tokens, tokens, value, greedy) in enumerate(own):
            arguments = sample["arguments"][f"gen_args_{i}"]
            assert (arguments["arg_0"], arguments["arg_1"]) == pairs[i], (pairs[i], arguments)
            row["tokens_differ"] += sample["tokens"][i] != [context_tokens, tokens]
            row["greedy_differ"] += sample["filtered_resps"][i][1] != str(greedy)
            differences.append(abs(value - sample["log_probabilities"][i]))
        values = [value for _, _, value, _ in own]
        per_character = [v / len(c) if c else float("-inf") for v, c in zip(values, choices)]
        metrics = {"acc": values} | ({"acc_norm": per_character} if task in NORMALIZED else {})
        for metric, by in metrics.items():
            correct = best(by) == gold
            right[metric] += correct
            top = sorted(by)[-2:]
            tie = top[1] - top[0] < 2e-4
            row["near_ties"] += tie
            row["answers_differ"] += correct != bool(sample[metric]) and not tie
    count = len(samples)
    row["choices"] = len(differences)
    row["largest_difference"] = f"{max(differences):.1e}"
    row["mean_difference"] = f"{sum(differences) / len(differences):.1e}"
    row["acc_torch"] = f"{right['acc'] / count:.4f}"
    row["acc_tessera"] = f"{sum(s['acc'] for s in samples) / count:.4f}"
    if task in NORMALIZED:
        row["acc_norm_torch"] = f"{right['acc_norm'] / count:.4f}"
        row["acc_norm_tessera"] = f"{sum(s['acc_norm'] for s in samples) / count:.4f}"
    return row


def tessera(*arguments):
    out = subprocess.run(["./tessera", *arguments], capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"tessera {' '.join(arguments)}: {out.stderr}")
    return out.stdout


def machine():
    with open("/proc/cpuinfo") as file:
        names = [line.split(": ")[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else ""


def write_ledger(path, rows):
    kept = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            new = {(r["model"], r["task"]) for r in rows}
            kept = [r for r in csv.DictReader(file) if (r["model"], r["task"]) not in new]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tasks_dir")
    parser.add_argument("--tasks", help="default: all whose files are there")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="the model's name in the ledger")
    parser.add_argument("--ledger", default="results/zeroshot_check.csv")
    a = parser.parse_args()

    torch.set_num_threads(a.threads)
    named = a.tasks.split(",") if a.tasks else TASKS
    tasks = [t for t in named if os.path.exists(os.path.join(a.tasks_dir, t + ".jsonl"))]
    commit = tessera("--version").split("(")[-1].rstrip(")\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exported, log = os.path.join(folder, "hf"), os.path.join(folder, "samples.jsonl")
        tessera("export", a.model, "--to", "hf", "--type", "f32", "--out", exported)
        result = json.loads(tessera(
            "eval", exported, "--tasks", ",".join(tasks), "--tasks-dir", a.tasks_dir, "--limit",
            str(a.limit), "--samples", log, "--json", "-", "-q"))
        with open(log, encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
        scorer = Scorer(exported)
        for task in tasks:
            own = [s for s in samples if s["task"] == task or
                   task == "mmlu" and s["task"].startswith("mmlu_")]
            row = compare(scorer, task, own)
            rows.append(dict(row, commit=commit, machine=machine(), isa=result["isa"],
                             model=a.name or os.path.basename(a.model.rstrip("/"))))
            print({key: rows[-1][key] for key in FIELDS if rows[-1].get(key) is not None},
                  flush=True)
    write_ledger(a.ledger, rows)
    good = all(not (r["tokens_differ"] or r["greedy_differ"] or r["answers_differ"])
               and float(r["largest_difference"]) < TOLERANCE for r in rows)
    sys.exit(not good)


main()
