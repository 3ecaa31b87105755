#!/usr/bin/env python3
"""A folder for bench/recipe.py from a small model of stories and a file of them.

usage: stories.py MODEL TEXT FOLDER [--heldout N]

MODEL is a directory such as stories260K. TEXT (UTF-8) holds stories with <|endoftext|> between
them, as exllamav2's calibration text tiny.utf8 does (317 of TinyStories); the last N are held out,
one a paragraph, and the others go into learn.jsonl, one a line. Then, for instance:

  bench/recipe.py FOLDER bench/tiny.plan --csv results/tiny.csv --model stories260K --tile 16 --threads 1
"""
import argparse
import json
import os


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("folder")
    parser.add_argument("--heldout", type=int, default=60)
    a = parser.parse_args()
    with open(a.text, encoding="utf-8") as file:
        stories = [story.strip() for story in file.read().split("<|endoftext|>")]
    stories = [story for story in stories if story]
    if not 0 < a.heldout < len(stories):
        parser.error(f"--heldout {a.heldout}: {a.text} has {len(stories)} stories")
    os.makedirs(a.folder, exist_ok=True)
    link = os.path.join(a.folder, "model")
    if not os.path.lexists(link):
        os.symlink(os.path.realpath(a.model), link)
    with open(os.path.join(a.folder, "learn.jsonl"), "w", encoding="utf-8") as file:
        for story in stories[:-a.heldout]:
            file.write(json.dumps({"text": story}, ensure_ascii=False) + "\n")
    with open(os.path.join(a.folder, "heldout.txt"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(stories[-a.heldout:]) + "\n")


if __name__ == "__main__":
    main()
