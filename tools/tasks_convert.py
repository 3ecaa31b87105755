#!/usr/bin/env python3
"""Zero-shot tasks from the sets' own files to the JSONL that `tessera eval --tasks` reads.

usage: tasks_convert.py TASK OUT_DIR FILE...

Writes OUT_DIR/TASK.jsonl (for mmlu also mmlu_dev.jsonl). The form of a file is recognised from its
fields; docs/TASKS.md lists where each set is published and what its items become. FILE may be .gz or
.bz2. What scoring needs is never changed: an item that cannot be carried over exactly is an error.

  piqa           valid.jsonl valid-labels.lst                    (or items with query/choices/gold)
  arc_easy       ARC-Easy-Test.jsonl                             (or query/choices/gold)
  arc_challenge  ARC-Challenge-Test.jsonl                        (or query/choices/gold)
  openbookqa     test.jsonl                                      (or query/choices/gold)
  hellaswag      hellaswag_val.jsonl                             (or blocks of six lines of text)
  winogrande     dev.jsonl                                       (or context_options/continuation)
  boolq          dev.jsonl, or SuperGLUE's val.jsonl             (or query/choices/gold)
  race           the .txt files of test/high, or one JSONL
  mmlu           the .csv files of test/ and dev/
"""
import argparse
import bz2
import csv
import gzip
import io
import json
import os
import re
import sys

LETTERS = "ABCDEFGHIJKLMNOP"


class Unfit(Exception):
    """An item that is not in a known form."""


def read(path):
    opener = gzip.open if path.endswith(".gz") else bz2.open if path.endswith(".bz2") else open
    with opener(path, "rb") as file:
        return file.read().decode("utf-8")


def lines_of(path):
    """(number, text) of the lines that are not blank. Only newlines end a line: texts may hold
    other separators."""
    return [(n, line) for n, line in enumerate(read(path).split("\n"), 1) if line.strip()]


def objects_of(path):
    for number, line in lines_of(path):
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as wrong:
            raise Unfit(f"{path}, line {number}: {wrong}")


def index_of(values, value, what):
    if value not in values:
        raise Unfit(f"{what}: {value!r} is none of {values}")
    return values.index(value)


def gold_of(item, count):
    gold = item["gold"]
    if not isinstance(gold, int) or not 0 <= gold < count:
        raise Unfit(f"gold is {gold!r}")
    return gold


def between(text, start, end):
    if not text.startswith(start) or not text.endswith(end):
        raise Unfit(f"{text[:40]!r}... does not stand between {start!r} and {end!r}")
    return text[len(start):len(text) - len(end)]


# --- each task: items of a file to our fields ---

def piqa(paths):
    labels = [p for p in paths if p.endswith((".lst", ".lst.gz"))]
    items = [p for p in paths if p not in labels]
    if len(items) != 1 or len(labels) > 1:
        raise Unfit("piqa takes one file of items and at most one .lst of labels")
    golds = [line.strip() for _, line in lines_of(labels[0])] if labels else None
    for n, (where, item) in enumerate(objects_of(items[0])):
        if "query" in item:
            yield where, {"goal": between(item["query"], "Question: ", "\n"),
                          "sol1": item["choices"][0], "sol2": item["choices"][1],
                          "label": gold_of(item, 2)}
            continue
        if golds is None and "label" not in item:
            raise Unfit("the labels are missing: give valid-labels.lst too")
        if golds is not None and n >= len(golds):
            raise Unfit(f"{labels[0]} has only {len(golds)} labels")
        label = golds[n] if golds is not None else str(item["label"])
        yield where, {"goal": item["goal"], "sol1": item["sol1"], "sol2": item["sol2"],
                      "label": index_of(["0", "1"], label, "label")}
    if golds is not None and n + 1 != len(golds):
        raise Unfit(f"{labels[0]} has {len(golds)} labels for {n + 1} items")


def labelled(question_key):
    """ARC and OpenBookQA."""
    def convert(paths):
        for path in paths:
            for where, item in objects_of(path):
                if "query" in item:
                    texts = item["choices"]
                    labels = list(LETTERS[:len(texts)])
                    yield where, {question_key: item["query"],
                                  "choices": {"text": texts, "label": labels},
                                  "answerKey": labels[gold_of(item, len(texts))]}
                    continue
                question = item["question"]
                texts = [choice["text"] for choice in question["choices"]]
                labels = [choice["label"] for choice in question["choices"]]
                index_of(labels, item["answerKey"], "answerKey")
                yield where, {question_key: question["stem"],
                              "choices": {"text": texts, "label": labels},
                              "answerKey": item["answerKey"]}
    return convert


def split_context(text):
    """ "Activity: sentences. the start of one" -> its three parts. The start of a sentence, which
    the task writes with a capital letter, is what follows the last full stop, if it begins with a
    small letter and has no end of its own."""
    activity, colon, context = text.partition(": ")
    if not colon:
        raise Unfit(f"no activity before a colon in {text[:40]!r}")
    head, stop, tail = context.rpartition(". ")
    if stop and tail[:1].islower() and not tail.endswith((".", "!", "?")):
        return activity, head + ".", tail
    return activity, context, ""


def hellaswag_text(path):
    """Six lines an item: context, index of the right ending, four endings."""
    lines = read(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) % 6:
        raise Unfit(f"{path}: {len(lines)} lines are no multiple of six")
    for at in range(0, len(lines), 6):
        where = f"{path}, line {at + 1}"
        activity, ctx_a, ctx_b = split_context(lines[at])
        yield where, {"activity_label": activity, "ctx_a": ctx_a, "ctx_b": ctx_b,
                      "endings": lines[at + 2:at + 6],
                      "label": index_of(list("0123"), lines[at + 1].strip(), "label")}


def hellaswag(paths):
    for path in paths:
        if ".txt" in os.path.basename(path):
            yield from hellaswag_text(path)
            continue
        for where, item in objects_of(path):
            yield where, {key: item[key] for key in ("activity_label", "ctx_a", "ctx_b", "endings")
                          } | {"label": index_of(list("0123"), str(item["label"]), "label")}


def winogrande(paths):
    for path in paths:
        for where, item in objects_of(path):
            if "context_options" not in item:
                yield where, {"sentence": item["sentence"], "option1": item["option1"],
                              "option2": item["option2"],
                              "answer": str(index_of(["1", "2"], item["answer"], "answer") + 1)}
                continue
            first, second = item["context_options"]
            common = len(os.path.commonprefix([first, second]))
            common = first.rfind(" ", 0, common) + 1  # whole words
            if "_" in first[:common]:
                raise Unfit("a _ before the option")
            yield where, {"sentence": first[:common] + "_ " + item["continuation"],
                          "option1": first[common:], "option2": second[common:],
                          "answer": str(gold_of(item, 2) + 1)}


def boolq(paths):
    for path in paths:
        for where, item in objects_of(path):
            if "query" in item:
                passage, mark, question = between(item["query"], "Passage: ", "?").rpartition(
                    "\nQuestion: ")
                if not mark or item["choices"] != ["no", "yes"]:
                    raise Unfit("not a passage and a question with the choices no and yes")
                yield where, {"passage": passage, "question": question, "label": gold_of(item, 2)}
                continue
            label = item["answer"] if "answer" in item else item["label"]
            if label not in (False, True):
                raise Unfit(f"the answer is {label!r}")
            yield where, {"passage": item["passage"], "question": item["question"],
                          "label": int(label)}


def race_article(item):
    """The set's own form has lists side by side; copies on hubs have a list of problems, some as
    Python's text of it."""
    if "problems" in item:
        problems = item["problems"]
        if isinstance(problems, str):
            import ast
            problems = ast.literal_eval(problems)
    else:
        problems = [{"question": q, "options": o, "answer": a} for q, o, a in
                    zip(item["questions"], item["options"], item["answers"], strict=True)]
    for problem in problems:
        index_of(list("ABCD"), problem["answer"], "answer")
    return {"article": item["article"],
            "problems": [{key: p[key] for key in ("question", "options", "answer")}
                         for p in problems]}


def race(paths):
    for path in sorted(paths):
        if ".jsonl" in os.path.basename(path):
            for where, item in objects_of(path):
                yield where, race_article(item)
        else:
            yield path, race_article(json.loads(read(path)))


def mmlu(paths):
    for path in sorted(paths):
        subject = re.sub(r"_(test|dev|val)\.csv(\.gz|\.bz2)?$", "", os.path.basename(path))
        for n, row in enumerate(csv.reader(io.StringIO(read(path), newline="")), 1):
            if len(row) != 6:
                raise Unfit(f"{path}, row {n}: {len(row)} fields instead of 6")
            yield f"{path}, row {n}", {"subject": subject, "question": row[0], "choices": row[1:5],
                                       "answer": index_of(list("ABCD"), row[5].strip(), "answer")}


TASKS = {"piqa": piqa, "arc_easy": labelled("question"), "arc_challenge": labelled("question"),
         "openbookqa": labelled("question_stem"), "hellaswag": hellaswag, "winogrande": winogrande,
         "boolq": boolq, "race": race, "mmlu": mmlu}


def write(path, items):
    """All of the items, or no file."""
    count, where = 0, None
    try:
        with open(path + ".partial", "w", encoding="utf-8") as out:
            for where, item in items:
                out.write(json.dumps(item, ensure_ascii=False) + "\n")
                count += 1
    except (Unfit, KeyError, TypeError, ValueError, IndexError) as wrong:
        os.remove(path + ".partial")
        after = f" (the last good item: {where})" if where else ""
        what = f"there is no field {wrong}" if isinstance(wrong, KeyError) else wrong
        sys.exit(f"tasks_convert: {os.path.basename(path)}: {what}{after}")
    os.replace(path + ".partial", path)
    print(f"{path}: {count} items")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("out_dir")
    parser.add_argument("files", nargs="+")
    a = parser.parse_args()
    os.makedirs(a.out_dir, exist_ok=True)
    files = {a.task: a.files}
    if a.task == "mmlu":
        dev = [f for f in a.files if "_dev.csv" in os.path.basename(f)]
        files = {"mmlu": [f for f in a.files if f not in dev], "mmlu_dev": dev}
    for name, paths in files.items():
        if paths:
            write(os.path.join(a.out_dir, name + ".jsonl"), TASKS[a.task](paths))


if __name__ == "__main__":
    main()
