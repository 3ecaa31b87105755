#!/usr/bin/env python3
"""The demo: prunes, learns, packs and measures a real model, and writes a report.

usage: demo.py [--folder tessera-demo] [--minutes 10] [--heldout TOKENS] [--fresh]

Every step leaves a file; a step whose file is there is not run again, so after Ctrl-C, a kill or a
power cut the same command goes on where it was. --minutes is the learning time, shared by the three
learned rows; the number of tokens that fits is fixed at the first start and kept in plan.json.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TESSERA = os.path.join(os.path.dirname(HERE), "tessera")
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "bench"))
from provenance import commit, machine  # noqa: E402

CALIBRATION_TOKENS = 12288
WINDOW = 512
SPARSITY = 0.45
SEED = 1
PROMPT = "The three most important facts about the Moon are"
SAMPLE_TOKENS = 48


class Row:
    """A row of the table: how its mask is made, and what it is called."""

    def __init__(self, key, name, note, prune=None, mode=None, sparsity=None):
        self.key, self.name, self.note = key, name, note
        self.prune, self.mode, self.sparsity = prune, mode, sparsity


ROWS = [
    Row("dense", "dense", "the original model"),
    Row("magnitude", "magnitude 2:4", "keeps the two largest weights of four",
        prune=["--method", "magnitude", "--pattern", "2:4"]),
    Row("wanda", "Wanda 2:4", "weight times activation norm",
        prune=["--method", "wanda", "--pattern", "2:4"]),
    Row("sparsegpt", "SparseGPT 2:4", "second-order, mask only: weights not updated",
        prune=["--method", "sparsegpt", "--pattern", "2:4"]),
    Row("greedy", "greedy hybrid", "tiles chosen by SparseGPT's loss per weight",
        prune=["--pattern", "hybrid", "--sparsity", str(SPARSITY)]),
    Row("maskllm", "learned maskllm 2:4", "2:4 masks learned, no dense tiles",
        mode="maskllm", sparsity=0.5),
    Row("tile", "learned tile", "tiles learned over SparseGPT's 2:4 mask",
        mode="tile", sparsity=SPARSITY),
    Row("joint", "learned joint", "tiles and 2:4 masks learned together",
        mode="joint", sparsity=SPARSITY),
]


class Demo:
    def __init__(self, folder, minutes, heldout_tokens):
        self.folder, self.minutes = folder, minutes
        self.heldout_tokens = heldout_tokens
        self.started = time.monotonic()
        self.plan = {}

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # --- running things ---

    def tessera(self, *arguments, output=None):
        """Runs the program. With `output`, its JSON goes there whole, or not at all."""
        command = [TESSERA, *arguments]
        if output:
            command += ["--json", output + ".partial", "--force"]
        status = subprocess.run(command, stdout=subprocess.DEVNULL if output else None).returncode
        if status == 130:
            raise KeyboardInterrupt
        if status:
            sys.exit(f"demo: '{' '.join(command)}' ended with status {status}")
        if output:
            os.replace(output + ".partial", output)
            with open(output) as file:
                return json.load(file)
        return None

    def measured(self, output, *arguments):
        """The JSON that a command leaves in `output`; run only if it is not there."""
        output = self.path(output)
        if os.path.exists(output):
            with open(output) as file:
                return json.load(file)
        return self.tessera(*arguments, output=output)

    def say(self, text):
        minutes = (time.monotonic() - self.started) / 60
        print(f"[{minutes:5.1f} min] {text}", flush=True)

    # --- the steps ---

    def fetch(self):
        status = subprocess.run([sys.executable, os.path.join(HERE, "demo_data.py"), self.folder])
        if status.returncode:
            sys.exit(status.returncode)

    def make_plan(self):
        """Fixes the token budget from the speed of this machine, once."""
        path = self.path("plan.json")
        if os.path.exists(path):
            with open(path) as file:
                self.plan = json.load(file)
            return
        self.say("measuring how fast this machine learns ...")
        seconds = self.minutes * 60 / sum(1 for row in ROWS if row.mode)
        budget = self.tessera(
            "learn", self.path("model.gguf"), "--mode", "joint", "--sparsity", str(SPARSITY),
            "--data", self.path("learn.jsonl"), "--budget", f"{seconds:.0f}s", "--prior",
            self.path("sparsegpt.mask"), "--dry-run", "--quiet",
            output=self.path("budget.json"))["budget"]
        self.plan = {
            "learning_tokens_per_s": budget["tokens_per_second"],
            "learning_tokens": budget["tokens"],
            "heldout_tokens": self.heldout_tokens,
            "calibration_tokens": CALIBRATION_TOKENS,
            "window": WINDOW,
            "seed": SEED,
        }
        with open(path + ".partial", "w") as file:
            json.dump(self.plan, file, indent=2)
        os.replace(path + ".partial", path)

    def announce(self):
        """What will be done and how long it takes here, from the measured rate: a learning step
        costs about 0.75 GFLOP a token, a forward pass 0.27."""
        rate, plan = self.plan["learning_tokens_per_s"], self.plan
        forward = rate * 0.75 / 0.27
        learn = 3 * plan["learning_tokens"] / rate
        prune = 5 * plan["calibration_tokens"] / forward
        evaluate = len(ROWS) * 1.3 * plan["heldout_tokens"] / forward
        rest = 90
        print(
            f"""
The demo learns which 128 x 128 tiles of SmolLM2-135M's weights can be 2:4 sparse:
  prune    three one-shot pruners, {plan['calibration_tokens']:,} tokens of Wikipedia{prune / 60:17.0f} min
  learn    three masks, {plan['learning_tokens']:,} tokens each, at {rate:.0f} tokens/s{learn / 60:19.0f} min
  measure  {len(ROWS)} models on held-out articles, then pack, generate{(evaluate + rest) / 60:12.0f} min
About {(learn + prune + evaluate + rest) / 60:.0f} minutes on this machine. Ctrl-C is safe: make demo goes on from there.
""",
            flush=True,
        )

    def make_mask(self, row):
        """Path of the row's mask; None for the dense row."""
        if row.prune:
            return self.prune(row)
        if row.mode:
            return self.learn(row)
        return None

    def prune(self, row):
        mask = self.path(f"{row.key}.mask")
        if os.path.exists(mask):
            return mask
        self.say(f"{row.name}: {row.note}")
        source = (
            ["--from", self.path("sparsegpt.mask")]
            if row.key == "greedy"
            else ["--calib", self.path("learn.jsonl"), "--calib-tokens",
                  str(CALIBRATION_TOKENS)]
        )
        self.tessera("prune", self.path("model.gguf"), *row.prune, *source, "--out", mask)
        return mask

    def learn(self, row):
        run = self.path(row.key)
        mask = os.path.join(run, "mask.safetensors")
        if os.path.exists(mask):
            return mask
        self.say(f"{row.name}: {row.note}")
        self.tessera(
            "learn", self.path("model.gguf"), "--mode", row.mode, "--sparsity", str(row.sparsity),
            "--data", self.path("learn.jsonl"), "--tokens", str(self.plan["learning_tokens"]),
            "--seed", str(SEED), "--prior", self.path("sparsegpt.mask"), "--out", run, "--resume")
        return mask

    def measure(self, row, mask):
        """Perplexity, KL to the dense model and a sampled text."""
        with_mask = ["--mask", mask] if mask else []
        result = self.measured(
            f"{row.key}.eval.json", "eval", self.path("model.gguf"), *with_mask, "--ppl",
            self.path("heldout.txt"), "--window", str(WINDOW), "--tokens",
            str(self.plan["heldout_tokens"]), "--kl-to", self.path("model.gguf"), "--kl-cache",
            self.path("dense.states"))
        sample = self.measured(
            f"{row.key}.text.json", "generate", self.path("model.gguf"), *with_mask, "--prompt",
            PROMPT, "--tokens", str(SAMPLE_TOKENS), "--temperature", "0", "--quiet")
        return result, sample

    def pack_and_bench(self):
        """The dense and the hybrid model as bf16 directories: size, memory and speed."""
        for name, mask in (("dense", None), ("joint", self.path("joint", "mask.safetensors"))):
            packed = self.path(f"{name}-bf16")
            if os.path.isdir(packed):
                continue
            self.say(f"writing the {name} model as a bf16 directory")
            if mask:
                self.tessera("pack", self.path("model.gguf"), "--mask", mask, "--out", packed)
            else:
                self.tessera("export", self.path("model.gguf"), "--to", "hf", "--out", packed)
        self.say("decode speed, dense against hybrid")
        return self.measured("bench.json", "bench", self.path("dense-bf16"), self.path("joint-bf16"),
                             "--decode", "1,8", "--prefill", "128,512")

    def write_results(self, results, bench):
        """results.jsonl, which the report reads (docs/RECORD.md)."""
        plan = self.plan
        lines = [{
            "type": "about",
            "title": "SmolLM2-135M-Instruct, hybrid",
            "model": "SmolLM2-135M-Instruct (Q4_1 weights, dequantized)",
            "text": f"{plan['heldout_tokens']:,} tokens of held-out Wikipedia articles",
            "window": plan["window"],
            "learning_tokens": plan["learning_tokens"],
            "calibration_tokens": plan["calibration_tokens"],
            "seed": plan["seed"],
            "machine": machine(),
            "commit": commit(TESSERA),
        }]
        for row, evaluated, sample in results:
            line = {"type": "row", "name": row.name, "note": row.note}
            for key in ("density", "perplexity", "perplexity_stderr", "kl", "top1_agreement",
                        "predictions", "window"):
                if evaluated.get(key) is not None:
                    line[key] = evaluated[key]
            if row.mode:
                line["run"] = row.key
                line["learning_tokens"] = plan["learning_tokens"]
            elif row.prune:
                line["mask"] = f"{row.key}.mask"
            if row.key in ("dense", "joint"):
                line["disk_bytes"] = folder_bytes(self.path(f"{row.key}-bf16"))
            lines.append(line)
            lines.append({"type": "text", "name": row.name, "prompt": PROMPT,
                          "text": sample["text"]})
        lines += [{"type": "speed", **speed} for speed in bench["rows"]]
        path = self.path("results.jsonl")
        with open(path + ".partial", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        os.replace(path + ".partial", path)

    def run(self):
        os.makedirs(self.folder, exist_ok=True)
        self.fetch()
        self.make_plan()
        self.announce()
        results = []
        for row in ROWS:
            mask = self.make_mask(row)
            result, sample = self.measure(row, mask)
            self.say(f"{row.name}: density {result['density']:.4f}, "
                     f"perplexity {result['perplexity']:.1f}")
            results.append((row, result, sample))
        bench = self.pack_and_bench()
        self.write_results(results, bench)
        report = self.path("report.html")
        print(flush=True)
        self.tessera("report", self.folder, "--out", report, "--force", "--quiet")
        print_sizes(self.path("dense-bf16"), self.path("joint-bf16"), bench["rows"])
        print_samples(results)
        self.say(f"done. The report, with pictures: {report}")


def print_sizes(dense, hybrid, speeds):
    """Disk and speed of the dense bf16 model against the hybrid one."""
    def megabytes(folder):
        return folder_bytes(folder) / 1e6

    print(f"\non disk, bf16:  dense {megabytes(dense):.0f} MB, hybrid {megabytes(hybrid):.0f} MB "
          f"({megabytes(hybrid) / megabytes(dense):.2f}x; embeddings stay dense)")
    for phase in sorted({(row["phase"], row["batch"]) for row in speeds}):
        dense_row, hybrid_row = (
            next((r for r in speeds if (r["phase"], r["batch"]) == phase and r["form"] == form), None)
            for form in ("dense", "hybrid"))
        if dense_row and hybrid_row:
            what = "prompt of" if phase[0] == "prefill" else "decode, batch"
            print(f"{what} {phase[1]:<5}  dense {dense_row['tokens_per_s']:8.1f} tokens/s, hybrid "
                  f"{hybrid_row['tokens_per_s']:8.1f} ({hybrid_row['speedup']:.2f}x, bytes allow "
                  f"{hybrid_row['roofline']:.2f}x)")


def print_samples(results):
    print(f'\n"{PROMPT} ..."')
    for row, _, sample in results:
        text = " ".join(sample["text"].split())
        print(f"  {row.name:20} {text[:120]}")
    print()


def folder_bytes(folder):
    return sum(
        os.path.getsize(os.path.join(base, name))
        for base, _, names in os.walk(folder)
        for name in names
    )


KEPT = {"model.gguf", "articles.xml.bz2", "learn.jsonl", "heldout.txt"}


def forget(folder):
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if name not in KEPT:
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", default="tessera-demo")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--heldout", type=int, default=12288)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results, keep downloads")
    arguments = parser.parse_args()
    if arguments.fresh:
        forget(arguments.folder)
    demo = Demo(arguments.folder, arguments.minutes, arguments.heldout)
    try:
        demo.run()
    except KeyboardInterrupt:
        print("\ndemo: interrupted; 'make demo' goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
