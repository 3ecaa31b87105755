#!/usr/bin/env python3
"""Appends the table of a finished demo to a ledger.

usage: demo_ledger.py [FOLDER] [--csv results/demo.csv]

FOLDER holds the demo's results.jsonl (docs/RECORD.md).
"""
import argparse
import csv
import json
import os
import time

ROW_KEYS = ("name", "density", "window", "predictions", "perplexity", "perplexity_stderr", "kl",
            "top1_agreement")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tessera-demo")
    parser.add_argument("--csv", default="results/demo.csv")
    arguments = parser.parse_args()
    with open(os.path.join(arguments.folder, "results.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    about = next(line for line in lines if line["type"] == "about")
    rows = []
    for line in (line for line in lines if line["type"] == "row"):
        row = {"date": time.strftime("%Y-%m-%d"), "commit": about["commit"],
               "machine": about["machine"]}
        for key in ROW_KEYS:
            value = line.get(key, "")
            row[key] = round(value, 6 if key == "density" else 4) if isinstance(value, float) else value
        dense = "mask" not in line and "run" not in line
        calibrated = not dense and not line["name"].startswith("magnitude")
        row["calibration_tokens"] = about["calibration_tokens"] if calibrated else ""
        row["learning_tokens"] = line.get("learning_tokens", "")
        row["seed"] = about["seed"] if "run" in line else ""
        rows.append(row)
    new = not os.path.exists(arguments.csv)
    with open(arguments.csv, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
