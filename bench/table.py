#!/usr/bin/env python3
"""The long table of quality: methods x sparsities x seeds on one model, row by row, restartable.

usage: table.py [FOLDER] [--rows PATTERN,..] [--tokens 20480] [--seeds 1] [--sparsities 0.25,0.35,0.45]

FOLDER holds model.gguf, learn.jsonl and heldout.txt (tools/demo_data.py puts them there); --model,
--learn and --text name others. Each row leaves FOLDER/table/rows/KEY.json when it is done and is
not made again: stop it at any time, call it again with more rows, seeds or sparsities. What all
rows share (model, texts, budgets) is fixed at the first start. At the end, and after each row, the
ledger (results/quality_table.csv), docs/RESULTS.md and two pictures are written anew from the rows.

  --list           print the keys of all rows and whether they are done; run nothing
  --rows           keys to make, with * and ?; default: all but the extended ones
  --text NAME=FILE perplexity is measured on these (repeatable); KL to the dense model on the first
  --tasks-dir DIR  zero-shot tasks whose files are there (docs/TASKS.md), --limit items of each

Extended rows, made only when --rows names them: tiles of other sizes (tile45-t32), the density held
in every block (tile45-block), SparseGPT with its weight update (sparsegpt-2:4-updated).
"""
import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time

import table_write
from provenance import commit, machine

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TESSERA = os.environ.get("TSR_PROGRAM") or os.path.join(ROOT, "tessera")
TASKS = ["piqa", "arc_easy", "arc_challenge", "openbookqa", "hellaswag", "winogrande", "boolq",
         "race", "mmlu"]
TILE_SIZES = [4, 16, 32, 64, 256]
ATTENTION = "*self_attn*"


# --- what rows there are ---

class Row:
    """One model to measure. `make(table)` gives its mask (None: dense) and what is to be recorded of
    its making; "model" in there stands for another model than the table's."""

    def __init__(self, key, name, make, sparsity=None, seed=None, learned=False, extended=False):
        self.key, self.name, self.make = key, name, make
        self.sparsity, self.seed, self.learned, self.extended = sparsity, seed, learned, extended


def percent(sparsity):
    return f"{100 * sparsity:g}"


def pruned(method, pattern, sparsity=None, skip=None):
    def make(table):
        return table.prune(method, pattern, sparsity, skip)
    return make


def learned(mode, sparsity, seed, over=None, tile=128, per_block=False):
    def make(table):
        return table.learn(mode, sparsity, seed, over, tile, per_block)
    return make


def refitted(base):
    """The mask of another row, its kept weights fitted to the dense model's activations."""
    def make(table):
        return table.refit(base)
    return make


def recovered(base):
    """The same, then fine-tuned on the mask from as many tokens as a learned mask takes."""
    def make(table):
        return table.recover(base)
    return make


def all_rows(sparsities, seeds):
    rows = [Row("dense", "dense", lambda table: (None, {}))]
    for method, title in (("magnitude", "magnitude"), ("wanda", "Wanda"),
                          ("sparsegpt", "SparseGPT")):
        for pattern in ("2:4", "6:8"):
            rows.append(Row(f"{method}-{pattern}", f"{title} {pattern}", pruned(method, pattern),
                            0.5 if pattern == "2:4" else 0.25))
        for s in sparsities:
            rows.append(Row(f"{method}-unstructured{percent(s)}", f"{title} unstructured",
                            pruned(method, "unstructured", s), s))
    rows.append(Row("sparsegpt-2:4-ffn", "SparseGPT 2:4, MLP only",
                    pruned("sparsegpt", "2:4", skip=ATTENTION)))
    rows.append(Row("sparsegpt-2:4-updated", "SparseGPT 2:4, weights updated",
                    lambda table: table.update_weights(), 0.5, extended=True))
    for s in sparsities:
        rows.append(Row(f"greedy{percent(s)}", "greedy hybrid", pruned("greedy", "hybrid", s), s))
    for seed in seeds:
        rows.append(Row(f"maskllm-s{seed}", "maskllm 2:4", learned("maskllm", 0.5, seed), 0.5, seed,
                        True))
    for mode in ("tile", "joint"):
        for s in sparsities:
            for seed in seeds:
                rows.append(Row(f"{mode}{percent(s)}-s{seed}", f"{mode}", learned(mode, s, seed), s,
                                seed, True))
    for s in sparsities:
        for seed in seeds:
            rows.append(Row(f"tile-maskllm{percent(s)}-s{seed}", "tile over maskllm",
                            learned("tile", s, seed, over=f"maskllm-s{seed}"), s, seed, True))
    rows += changed_weights(rows, sparsities[-1], seeds[0])
    for mode in ("tile", "joint"):
        for s in sparsities:
            for tile in TILE_SIZES:
                rows.append(Row(f"{mode}{percent(s)}-t{tile}-s{seeds[0]}",
                                f"{mode}, tiles of {tile}",
                                learned(mode, s, seeds[0], tile=tile), s, seeds[0], True, True))
            rows.append(Row(f"{mode}{percent(s)}-block-s{seeds[0]}", f"{mode}, per block",
                            learned(mode, s, seeds[0], per_block=True), s, seeds[0], True, True))
    return rows


def changed_weights(rows, sparsity, seed):
    """Masks at the last sparsity and at 2:4, whose kept weights were changed afterwards."""
    refit = [f"{method}-2:4" for method in ("magnitude", "wanda", "sparsegpt")] + [
        f"greedy{percent(sparsity)}", f"maskllm-s{seed}", f"tile{percent(sparsity)}-s{seed}",
        f"joint{percent(sparsity)}-s{seed}"]
    recover = [f"greedy{percent(sparsity)}", f"joint{percent(sparsity)}-s{seed}"]
    by_key = {row.key: row for row in rows}
    return [Row(f"{key}-{word}", f"{by_key[key].name}, {word}", change(by_key[key]),
                by_key[key].sparsity, by_key[key].seed, by_key[key].learned)
            for keys, word, change in ((refit, "refit", refitted), (recover, "recovered", recovered))
            for key in keys]


# --- making and measuring ---

class Table:
    def __init__(self, arguments):
        self.a = arguments
        self.work = arguments.work
        self.rows_dir = os.path.join(self.work, "rows")
        os.makedirs(self.rows_dir, exist_ok=True)

    def path(self, *names):
        return os.path.join(self.work, *names)

    def tessera(self, *arguments):
        """Runs the program; its JSON."""
        output = self.path("output.json")
        command = [TESSERA, *arguments, "--json", output, "--force"]
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if status == 130:
            raise KeyboardInterrupt
        if status:
            sys.exit(f"table: '{' '.join(command)}' ended with status {status}")
        with open(output) as file:
            return json.load(file)

    def calibration(self):
        return ["--calib", self.a.learn, "--calib-tokens", str(self.a.calib_tokens)]

    def mask(self, key, *arguments):
        """Path of a one-shot mask, and the seconds it took to make (kept beside it)."""
        mask, clock = self.path(f"{key}.mask"), self.path(f"{key}.seconds")
        if not (os.path.exists(mask) and os.path.exists(clock)):
            started = time.monotonic()
            self.tessera("prune", self.a.model, *arguments, "--out", mask)
            with open(clock, "w") as file:
                file.write(f"{time.monotonic() - started:.1f}\n")
        with open(clock) as file:
            return mask, float(file.read())

    def prior(self, tile=128):
        """SparseGPT's 2:4 mask with tile scores: what greedy, tile and joint start from."""
        key = "sparsegpt-2:4" + ("" if tile == 128 else f"-t{tile}")
        return self.mask(key, "--method", "sparsegpt", "--pattern", "2:4", "--tile", str(tile),
                         *self.calibration())

    def prune(self, method, pattern, sparsity, skip):
        if method == "greedy":
            prior, seconds = self.prior()
            mask, more = self.mask(f"greedy{percent(sparsity)}", "--from", prior, "--pattern",
                                   "hybrid", "--sparsity", str(sparsity))
            return mask, {"seconds_to_make": seconds + more}
        if (method, pattern, skip) == ("sparsegpt", "2:4", None):
            mask, seconds = self.prior()
            return mask, {"seconds_to_make": seconds}
        key = f"{method}-{pattern}{percent(sparsity) if sparsity else ''}{'-ffn' if skip else ''}"
        mask, seconds = self.mask(
            key, "--method", method, "--pattern", pattern,
            *(["--sparsity", str(sparsity)] if sparsity else []),
            *(["--skip", skip] if skip else []),
            *([] if method == "magnitude" else self.calibration()))
        return mask, {"seconds_to_make": seconds}

    def update_weights(self):
        out = self.path("sparsegpt-2:4-updated")
        mask, seconds = self.mask("updated", "--method", "sparsegpt", "--pattern", "2:4",
                                  *self.calibration(), "--update-weights", out)
        return mask, {"seconds_to_make": seconds, "model": out, "weights": "update"}

    def learn(self, mode, sparsity, seed, over, tile, per_block):
        prior, prior_seconds = self.prior(tile)
        priors = [prior]
        key = f"{mode}{percent(sparsity)}" + ("-over" if over else "") + (
            f"-t{tile}" if tile != 128 else "") + ("-block" if per_block else "") + f"-s{seed}"
        record = {"learning_tokens": self.a.tokens, "tile": tile}
        if over:
            frozen, made = self.learn("maskllm", 0.5, seed, None, 128, False)
            priors, prior_seconds = [frozen, prior], made["seconds_to_make"]
            record["learning_tokens"] += made["learning_tokens"]
        run = self.path("runs", key)
        os.makedirs(os.path.dirname(run), exist_ok=True)
        mask = os.path.join(run, "mask.safetensors")
        if not os.path.exists(mask):
            self.tessera(
                "learn", self.a.model, "--mode", mode, "--sparsity", str(sparsity), "--data",
                self.a.learn, "--tokens", str(self.a.tokens), "--seed", str(seed), "--tile",
                str(tile), "--window", str(self.a.window), "--batch", str(self.a.batch),
                *(["--per-block"] if per_block else []),
                *(x for p in priors for x in ("--prior", p)), "--out", run, "--resume")
        with open(os.path.join(run, "record.jsonl")) as file:
            final = [line for line in map(json.loads, file) if line["type"] == "final"][-1]
        with open(os.path.join(run, "config.json")) as file:
            record["learning_precision"] = json.load(file)["identity"]["settings"]["precision"]
        record["steps"] = final["steps"]
        record["seconds_to_make"] = prior_seconds + final["seconds"]
        return mask, record

    def changed(self, command, base, mask, made, *arguments):
        """The model that `command` writes from the mask of row `base`, its JSON and seconds."""
        out = self.path("models", f"{base.key}-{command}")
        clock = out + ".json"
        if not (os.path.exists(out) and os.path.exists(clock)):
            os.makedirs(self.path("models"), exist_ok=True)
            started = time.monotonic()
            found = self.tessera(command, *arguments, "--mask", mask, "--out", out)
            found["seconds"] = time.monotonic() - started
            write_json(clock, found)
        with open(clock) as file:
            found = json.load(file)
        return dict(made, model=out, weights=command,
                    seconds_to_make=made["seconds_to_make"] + found["seconds"])

    def refit(self, base):
        mask, made = base.make(self)
        return mask, self.changed("refit", base, mask, made, self.a.model, *self.calibration())

    def recover(self, base):
        """A learned mask as it is; a one-shot mask after refit (docs/LEARNING.md, Recovery)."""
        mask, made = base.make(self) if base.learned else self.refit(base)
        tokens = made.get("learning_tokens", 0) + self.a.tokens
        made = dict(made, learning_tokens=tokens)
        return mask, self.changed(
            "recover", base, mask, made, made.get("model", self.a.model), "--data", self.a.learn,
            "--tokens", str(self.a.tokens), "--window", str(self.a.window // 2), "--batch",
            str(self.a.batch), "--distill", "1", "--teacher", self.a.model, "--resume")

    def evaluate(self, model, mask):
        """Perplexity on each text, KL on the first, and the tasks."""
        model = [model] + (["--mask", mask] if mask else [])
        out = {}
        for n, (name, file) in enumerate(self.a.texts):
            kl = ["--kl-to", self.a.model, "--kl-cache", self.path("dense.states")] if n == 0 else []
            found = self.tessera("eval", *model, "--ppl", file, "--window", str(self.a.window),
                                 "--tokens", str(self.a.text_tokens), "--precision",
                                 self.a.precision, *kl)
            out[f"perplexity_{name}"] = found["perplexity"]
            out[f"perplexity_stderr_{name}"] = found["perplexity_stderr"]
            out[f"predictions_{name}"] = found["predictions"]
            for key in ("kl", "kl_stderr", "top1_agreement") if n == 0 else ():
                out[key] = found[key]
            out.update({key: found[key] for key in ("density", "isa", "precision")})
        if self.a.tasks:
            found = self.tessera("eval", *model, "--tasks", ",".join(self.a.tasks), "--tasks-dir",
                                 self.a.tasks_dir, "--limit", str(self.a.limit), "--precision",
                                 self.a.precision)
            out["mean_acc"], out["mean_acc_stderr"] = found["mean_acc"], found["mean_acc_stderr"]
            for task in self.a.tasks:
                figures = found["results"][task]
                out[f"acc_{task}"] = figures["acc,none"]
                out[f"acc_stderr_{task}"] = figures["acc_stderr,none"]
                if "acc_norm,none" in figures:
                    out[f"acc_norm_{task}"] = figures["acc_norm,none"]
        return out

    def run(self, row):
        mask, record = row.make(self)
        model = record.pop("model", self.a.model)
        record = dict(key=row.key, name=row.name, sparsity=row.sparsity, seed=row.seed,
                      learned=row.learned, date=time.strftime("%Y-%m-%d"), commit=commit(TESSERA),
                      machine=machine(), **record)
        if row.learned:
            record["run"] = os.path.relpath(os.path.dirname(mask), self.work)
        elif mask:
            record["mask"] = os.path.relpath(mask, self.work)
        record.update(self.evaluate(model, mask))
        if mask:
            record["tiles"] = table_write.tile_densities(mask)
        write_json(os.path.join(self.rows_dir, row.key + ".json"), record)
        return record

    def done(self):
        found = {}
        for name in os.listdir(self.rows_dir):
            if name.endswith(".json"):
                with open(os.path.join(self.rows_dir, name)) as file:
                    found[name[:-5]] = json.load(file)
        return found


def write_json(path, value):
    with open(path + ".partial", "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(path + ".partial", path)


# --- the command ---

def write_all(table, rows):
    """The ledger, the document and the records from all rows that are done, `rows` being those that
    are known, in their order."""
    done = table.done()
    keys = [row.key for row in rows]
    order = [k for k in keys if k in done] + sorted(k for k in done if k not in keys)
    if not order:
        return
    missing = [row.key for row in rows if not row.extended and row.key not in done]
    table_write.write_ledger(table.a.csv, done, order)
    table_write.write_document(table.a.document, table.a, done, order, missing)
    table_write.write_records(table.path("results.jsonl"), table.a, done, order)


def fix_plan(a):
    """What all rows share is fixed by the first call."""
    plan = {"model": os.path.abspath(a.model), "model_bytes": os.path.getsize(a.model)
            if os.path.isfile(a.model) else None, "learn": os.path.abspath(a.learn),
            "texts": [[name, os.path.abspath(file)] for name, file in a.texts],
            "text_tokens": a.text_tokens, "tokens": a.tokens, "calib_tokens": a.calib_tokens,
            "window": a.window, "batch": a.batch, "tasks": a.tasks, "limit": a.limit,
            "precision": a.precision}
    path = os.path.join(a.work, "plan.json")
    if not os.path.exists(path):
        os.makedirs(a.work, exist_ok=True)
        write_json(path, plan)
        return
    with open(path) as file:
        kept = json.load(file)
    changed = [key for key in plan if plan[key] != kept.get(key)]
    if changed:
        key = changed[0]
        sys.exit(f"table: {a.work} was begun with {key} = {kept.get(key)}, now it is {plan[key]}: "
                 "rows would not be comparable; give another --work")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--model")
    parser.add_argument("--name", help="of the model, in the document")
    parser.add_argument("--learn")
    parser.add_argument("--note", help="a sentence for the document, e.g. what else ran meanwhile")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--text-tokens", type=int, default=12288)
    parser.add_argument("--tasks-dir")
    parser.add_argument("--tasks", help="default: those whose files are in --tasks-dir")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--rows", default="")
    parser.add_argument("--sparsities", default="0.25,0.35,0.45")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--calib-tokens", type=int, default=12288)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2, help="windows of a learning step")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"],
                        help="of evaluation")
    parser.add_argument("--work")
    parser.add_argument("--csv", default=os.path.join(ROOT, "results", "quality_table.csv"))
    parser.add_argument("--document", default=os.path.join(ROOT, "docs", "RESULTS.md"))
    parser.add_argument("--list", action="store_true")
    a = parser.parse_args()
    a.name = a.name or (os.path.basename(a.model.rstrip("/")) if a.model else
                        "SmolLM2-135M-Instruct (Q4_1 weights, dequantized)")
    a.model = a.model or os.path.join(a.folder, "model.gguf")
    a.learn = a.learn or os.path.join(a.folder, "learn.jsonl")
    a.work = a.work or os.path.join(a.folder, "table")
    a.texts = [tuple(text.split("=", 1)) for text in a.text] or [
        ("heldout", os.path.join(a.folder, "heldout.txt"))]
    a.sparsities = [float(s) for s in a.sparsities.split(",")]
    a.seeds = [int(s) for s in a.seeds.split(",")]
    a.tasks = a.tasks.split(",") if a.tasks else [
        t for t in TASKS if a.tasks_dir and os.path.exists(os.path.join(a.tasks_dir, t + ".jsonl"))]
    if any(len(text) != 2 for text in a.texts):
        parser.error("--text takes NAME=FILE")
    if a.tasks and not a.tasks_dir:
        parser.error("--tasks needs --tasks-dir")
    return a


def chosen(rows, patterns):
    if not patterns:
        return [row for row in rows if not row.extended]
    names = patterns.split(",")
    unknown = [n for n in names if not any(fnmatch.fnmatchcase(r.key, n) for r in rows)]
    if unknown:
        sys.exit(f"table: no row is called {unknown[0]}; --list shows them")
    return [row for row in rows if any(fnmatch.fnmatchcase(row.key, n) for n in names)]


def main():
    a = parse()
    rows = all_rows(a.sparsities, a.seeds)
    if a.list:
        kept = os.path.join(a.work, "rows")
        for row in rows:
            done = os.path.exists(os.path.join(kept, row.key + ".json"))
            print(f"{'done' if done else '    '} {row.key:32} {row.name}"
                  f"{' (extended)' if row.extended else ''}")
        return
    fix_plan(a)
    table = Table(a)
    wanted = chosen(rows, a.rows)
    started = time.monotonic()
    try:
        for n, row in enumerate(wanted, 1):
            if os.path.exists(os.path.join(table.rows_dir, row.key + ".json")):
                continue
            print(f"[{(time.monotonic() - started) / 60:6.1f} min] row {n} of {len(wanted)}: "
                  f"{row.key}", flush=True)
            record = table.run(row)
            print(" " * 13 + f"density {record['density']:.4f}, " + ", ".join(
                f"{name} {record[f'perplexity_{name}']:.2f}" for name, _ in a.texts) + (
                f", mean acc {100 * record['mean_acc']:.1f} %" if a.tasks else ""), flush=True)
            write_all(table, rows)
    except KeyboardInterrupt:
        sys.exit("table: interrupted; the same command goes on from here")
    write_all(table, rows)
    report = table.path("report.html")
    if table.done():
        subprocess.run([TESSERA, "report", a.work, "--out", report, "--force", "--quiet"],
                       stdout=subprocess.DEVNULL, check=True)
        print(f"{a.csv}\n{a.document}\n{report}")


if __name__ == "__main__":
    main()
