#!/usr/bin/env python3
"""Checks tools/tasks_convert.py on one made-up item of every form it knows. Quiet when all is well."""
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONVERT = os.path.join(ROOT, "tools", "tasks_convert.py")
ARC = {"id": "1", "question": {"stem": "Q?", "choices": [{"text": "x", "label": "1"},
                                                        {"text": "y", "label": "2"}]},
       "answerKey": "2"}
LABELLED = {"text": ["x", "y"], "label": ["1", "2"]}
QUERY = {"query": "Q?", "choices": ["x", "y"], "gold": 1}
LETTERED = {"text": ["x", "y"], "label": ["A", "B"]}
PROBLEM = {"question": "Q?", "options": ["a", "b", "c", "d"], "answer": "C"}
SWAG = {"activity_label": "Dig", "ctx_a": "A.", "ctx_b": "he", "endings": list("abcd"), "label": 2}


def lines(*items):
    return "".join(json.dumps(item) + "\n" for item in items)


# task, files, the items that must come out (of the first output)
GOOD = [
    ("piqa", {"valid.jsonl": lines({"goal": "g", "sol1": "a", "sol2": "b"}),
              "valid-labels.lst": "1\n"}, [{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}]),
    ("piqa", {"p.jsonl": lines({"query": "Question: g\n", "choices": ["a", "b"], "gold": 0})},
     [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}]),
    ("arc_easy", {"a.jsonl": lines(ARC)},
     [{"question": "Q?", "choices": LABELLED, "answerKey": "2"}]),
    ("arc_challenge", {"a.jsonl": lines(QUERY)},
     [{"question": "Q?", "choices": LETTERED, "answerKey": "B"}]),
    ("openbookqa", {"o.jsonl": lines(ARC)},
     [{"question_stem": "Q?", "choices": LABELLED, "answerKey": "2"}]),
    ("hellaswag", {"h.jsonl": lines(dict(SWAG, ind=1, ctx="A. he", label="2"))}, [SWAG]),
    ("hellaswag", {"h.txt": "Dig: A. he\n2\na\nb\nc\nd\n"
                            "Dig: It. Is\x85over.\n0\na\nb\nc\nd\n"},
     [SWAG, dict(SWAG, ctx_a="It. Is\x85over.", ctx_b="", label=0)]),
    ("winogrande", {"w.jsonl": lines({"sentence": "A _ b.", "option1": "x", "option2": "y",
                                      "answer": "2", "qID": "1"})},
     [{"sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "2"}]),
    ("winogrande", {"w.jsonl": lines({"context_options": ["See the cat", "See the car"],
                                      "continuation": "run.", "gold": 0})},
     [{"sentence": "See the _ run.", "option1": "cat", "option2": "car", "answer": "1"}]),
    ("boolq", {"b.jsonl": lines({"question": "q", "title": "t", "answer": True, "passage": "p"},
                                {"question": "q", "passage": "p", "idx": 0, "label": False})},
     [{"passage": "p", "question": "q", "label": 1}, {"passage": "p", "question": "q", "label": 0}]),
    ("boolq", {"b.jsonl": lines({"query": "Passage: p\nQuestion: q?", "choices": ["no", "yes"],
                                 "gold": 1})}, [{"passage": "p", "question": "q", "label": 1}]),
    ("race", {"1.txt": json.dumps({"article": "a", "questions": ["Q?"], "answers": ["C"],
                                   "options": [list("abcd")], "id": "1"})},
     [{"article": "a", "problems": [PROBLEM]}]),
    ("race", {"r.jsonl": lines({"article": "a", "problems": str([PROBLEM])})},
     [{"article": "a", "problems": [PROBLEM]}]),
    ("mmlu", {"anatomy_test.csv": 'Q?,a,"b, b",c,d,C\n', "anatomy_dev.csv": "P?,a,b,c,d,A\n"},
     [{"subject": "anatomy", "question": "Q?", "choices": ["a", "b, b", "c", "d"], "answer": 2}]),
]
# task, files, a word of the message
BAD = [
    ("piqa", {"valid.jsonl": lines({"goal": "g", "sol1": "a", "sol2": "b"})}, "labels"),
    ("piqa", {"valid.jsonl": lines({"goal": "g", "sol1": "a", "sol2": "b"}),
              "valid-labels.lst": "1\n0\n"}, "2 labels"),
    ("piqa", {"p.jsonl": lines({"query": "g", "choices": ["a", "b"], "gold": 0})}, "stand between"),
    ("arc_easy", {"a.jsonl": lines(ARC, dict(ARC, answerKey="9"))}, "answerKey"),
    ("hellaswag", {"h.txt": "Dig: A. he\n2\na\nb\nc\n"}, "multiple of six"),
    ("winogrande", {"w.jsonl": lines({"sentence": "A"})}, "option1"),
    ("boolq", {"b.jsonl": lines({"query": "Passage: p?", "choices": ["no", "yes"], "gold": 1})},
     "passage"),
    ("race", {"1.txt": json.dumps({"article": "a", "questions": ["Q?"], "answers": ["E"],
                                   "options": [list("abcd")]})}, "answer"),
    ("mmlu", {"anatomy_test.csv": "Q?,a,b,c,C\n"}, "5 fields"),
    ("boolq", {"b.jsonl": "{\n"}, "line 1"),
]


def convert(folder, task, files):
    paths = []
    for name, text in files.items():
        paths.append(os.path.join(folder, name))
        with open(paths[-1], "w", encoding="utf-8", newline="") as file:
            file.write(text)
    return subprocess.run([sys.executable, CONVERT, task, os.path.join(folder, "out"), *paths],
                          capture_output=True, text=True)


def main():
    for task, files, expected in GOOD:
        with tempfile.TemporaryDirectory() as folder:
            run = convert(folder, task, files)
            assert run.returncode == 0, (task, run.stderr)
            with open(os.path.join(folder, "out", task + ".jsonl"), encoding="utf-8") as file:
                found = [json.loads(line) for line in file.read().split("\n") if line]
            assert found == expected, (task, found, expected)
            if task == "mmlu":
                assert os.path.exists(os.path.join(folder, "out", "mmlu_dev.jsonl"))
    for task, files, word in BAD:
        with tempfile.TemporaryDirectory() as folder:
            run = convert(folder, task, files)
            assert run.returncode == 1 and word in run.stderr, (task, word, run.stderr)
            assert not os.listdir(os.path.join(folder, "out")), task


main()
