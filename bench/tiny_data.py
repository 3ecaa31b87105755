#!/usr/bin/env python3
"""The folder that bench/tiny.plan is run over: a tiny model and stories, most to learn from.

usage: tiny_data.py FOLDER MODEL STORIES [--learn 257]

MODEL is a Hugging Face directory such as stories260K, STORIES a text whose stories are parted by
<|endoftext|>, such as exllamav2's calibration text tiny.utf8 (317 of TinyStories). The first
--learn stories become learn.jsonl, the others heldout.txt. Then:

  bench/recipe.py FOLDER bench/tiny.plan --csv results/tiny.csv --model stories260K --tile 16 --threads 1
"""
import argparse
import json
import os


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("stories")
    parser.add_argument("--learn", type=int, default=257)
    a = parser.parse_args()
    with open(a.stories, encoding="utf-8") as file:
        stories = [story.strip() for story in file.read().split("<|endoftext|>")]
    if len(stories) <= a.learn:
        parser.error(f"{a.stories} has {len(stories)} stories: none is left to measure on")
    os.makedirs(a.folder, exist_ok=True)
    link = os.path.join(a.folder, "model")
    if not os.path.lexists(link):
        os.symlink(os.path.realpath(a.model), link)
    with open(os.path.join(a.folder, "learn.jsonl"), "w", encoding="utf-8") as file:
        for story in stories[:a.learn]:
            file.write(json.dumps({"text": story}, ensure_ascii=False) + "\n")
    with open(os.path.join(a.folder, "heldout.txt"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(stories[a.learn:]) + "\n")


if __name__ == "__main__":
    main()
