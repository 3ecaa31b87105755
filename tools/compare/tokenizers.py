#!/usr/bin/env python3
"""Compares tessera's tokenizers with tokenizers, sentencepiece and llama.cpp on hostile texts.

    python tools/compare/tokenizers.py [--texts N] [--seed K] [--gguf FILE ...] [--record FILE.csv]

Run from the root of a built tree. Needs tokenizers, transformers, sentencepiece, llama_cpp; reads the
shared data (TSR_SHARED, default ../shared). The tokenizers that are written from GGUF files are read
by transformers and compared, too. Prints a line per tokenizer; exits with 1 when an id differs that is
not a known difference of Unicode versions.
"""
import argparse
import ctypes
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

sys.path.pop(0)  # this file's folder, which would hide the package of the same name
import sentencepiece  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

SHARED = Path(os.environ.get("TSR_SHARED", "../shared")) / "data"
NO_BOS, NO_SPECIAL = 1, 2

# ---- texts ----

SPACES = ["\t", "\n", "\r", "\r\n", " ", "  ", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e", "\u2000",
          "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\u2581"]
BITS = ["'s", "'S", "'\u017f", "'LL", "'ll", "'Re", "n't", "\u2019s", "don't", "I'VE", "...", "!?", "://", "\"", "(", "\u00bd",
        "\u00b2", "\u2168", "\u0663", "\u09ea", "\uff11", "123456", "1", "22", "\u0301", "e\u0301", "\u00e9", "\u0301\u0316",
        "\u0316\u0301", "\u1e9b\u0323", "\u212b", "\ufb01", "\u0130", "\u0131", "\u1100\u1161\u11a8", "\uac01", "\u0e33",
        "\u0958", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\ufe0f",
        "\u05d0\u05b8", "\u0644\u0627", "\u202e", "\u6211\u60f3", "\u3042\u30a2", "\U00020000", "\U0001d400", "\ue000",
        "\ufffd", "\ufffe", "\U0010ffff", "\x00", "\x01", "\x7f", "\x80", "\xad", "\u0378", "\U000e0001", "<0x41>", "<unk>",
        "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<start_of_turn>", "<|eot_id|>", "<h1>",
        "[multimodal]", "<unused7>", "<|end|>", "<|user|>", "\u0120", "\u010a", "_", "a_b", "Hello", "World", "the", "of",
        "ing", "tion", "\u00fcber", "na\u00efve", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u1ebftr", "\u0915\u094d\u0937"]


def random_character(rng):
    while True:
        ranges = [(0, 0x7f), (0x80, 0x24f), (0x250, 0x7ff), (0x800, 0x1fff), (0x2000, 0x2fff), (0x3000, 0xd7ff),
                  (0xe000, 0xffff), (0x10000, 0x1ffff), (0x20000, 0x10ffff)]
        return chr(rng.randint(*rng.choice(ranges)))


def make_texts(count, seed):
    rng = random.Random(seed)
    texts = ["", " ", "\n", "a", "\u2581", " \u2581 ", "\x00"]
    for name in sorted((SHARED / "tokenizers/ggml-vocab").glob("*phi-3.gguf.inp")):
        texts += name.read_text().split("\n__ggml_vocab_test__\n")
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 24)):
            kind = rng.random()
            if kind < 0.25:
                parts.append(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 17]))
            elif kind < 0.6:
                parts.append(rng.choice(BITS))
            elif kind < 0.75:
                parts.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCXYZ") for _ in range(rng.randint(1, 9))))
            elif kind < 0.8:
                parts.append(rng.choice("a=-.#*0 \n") * rng.randint(2, 70))
            else:
                parts.append(random_character(rng))
        texts.append("".join(parts))
    for name in ("calib/wiki.utf8", "calib/c4.utf8", "wikitext2/wiki.test.raw"):
        path = SHARED / name
        if path.exists():
            text = path.read_bytes()[:40000].decode("utf-8", "ignore")
            texts += [text[i:i + 2000] for i in range(0, 20000, 2000)] + [text]
    return texts


def is_new(text):
    """True when a character's properties differ between the Unicode versions in use: it is unassigned
    here, or came with Unicode 14 and a compatibility mapping."""
    return any(unicodedata.category(c) == "Cn" or "\U00010780" <= c <= "\U000107bf" for c in text)


# ---- ours ----

def build(folder):
    program = folder / "tokenize"
    libraries = subprocess.check_output("pkg-config --libs jansson libpcre2-8 libutf8proc libzip libzstd zlib", shell=True,
                                        text=True).split()
    subprocess.check_call(["cc", "-O1", "-std=gnu17", "-D_GNU_SOURCE", "-Isrc", "tools/compare/tokenize.c", "-o", program,
                           "build/libtessera.a", *libraries, "-lm", "-lpthread"])
    return program


def ours(program, model, flags, texts):
    packed = b"".join(len(t).to_bytes(4, "little") + t for t in (t.encode() for t in texts))
    out = subprocess.run([program, model, str(flags)], input=packed, stdout=subprocess.PIPE, check=True).stdout.decode()
    result = []
    for line in out.splitlines():
        ids, text = line.split("/")
        result.append(([int(i) for i in ids.split()], bytes.fromhex(text)))
    assert len(result) == len(texts)
    return result


class Table:
    def __init__(self):
        self.failed = False
        self.rows = []

    def write(self, path):
        with open(path, "w") as out:
            out.write("tokenizer,texts,ids_differ,decodings_differ,differ_by_unicode_version\n")
            out.writelines(",".join(map(str, row)) + "\n" for row in self.rows)

    def report(self, name, texts, mine, theirs):
        """theirs: one (ids, text or None) per text."""
        ids = decoded = new = 0
        shown = 0
        for text, (a, a_text), (b, b_text) in zip(texts, mine, theirs):
            if a != b:
                if is_new(text):
                    new += 1
                    continue
                ids += 1
                if shown < 3:
                    shown += 1
                    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                    print(f"  {text[:300]!r}\n  at {at}: ours {a[at:at + 8]}, theirs {b[at:at + 8]}")
            elif b_text is not None and a_text != b_text:
                decoded += 1
                if shown < 3:
                    shown += 1
                    print(f"  decode {a[:40]}\n  ours   {a_text[:200]!r}\n  theirs {b_text[:200]!r}")
        self.failed |= bool(ids or decoded)
        self.rows.append((name, len(texts), ids, decoded, new))
        print(f"{name:44} {len(texts):6} texts  {ids:4} ids differ  {decoded:4} decodings differ  "
              f"{new:4} differ by unassigned characters", flush=True)


# ---- tokenizers ----

def compare_json(table, program, folder, name, tokenizer, texts, decode=True):
    path = folder / f"{name}.json"
    tokenizer.save(str(path))
    for plain in (False, True):
        tokenizer.encode_special_tokens = plain
        theirs = []
        for text in texts:
            ids = tokenizer.encode(text).ids
            theirs.append((ids, tokenizer.decode(ids, skip_special_tokens=True).encode() if decode else None))
        flags = NO_SPECIAL if plain else 0
        table.report(name + (" plain" if plain else ""), texts, ours(program, path, flags, texts), theirs)


QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(vocab, merges, pattern, normalizer=None, digits=False):
    merges = [tuple(line.split(" ")) for line in merges.read_text().splitlines() if line and not line.startswith("#version")]
    t = Tokenizer(models.BPE(vocab=json.loads(vocab.read_text()), merges=merges))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps)
    t.decoder = decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.add_tokens([AddedToken("<h1>", lstrip=True, rstrip=True, normalized=False), AddedToken("[multimodal]", rstrip=True),
                  AddedToken("the", single_word=True), AddedToken("\u00e9\u00e9")])
    return t


def training_text():
    return (SHARED / "calib/wiki.utf8").read_bytes()[:300000].decode("utf-8", "ignore").splitlines()


def trained(byte_fallback, unk, fuse, ignore_merges=False, alphabet=(), **parts):
    t = Tokenizer(models.BPE(unk_token="<unk>" if unk else None, fuse_unk=fuse, byte_fallback=byte_fallback,
                             ignore_merges=ignore_merges))
    for key, value in parts.items():
        setattr(t, key, value)
    specials = ["<unk>", "<s>", "</s>"] + ([f"<0x{i:02X}>" for i in range(256)] if byte_fallback else [])
    t.train_from_iterator(training_text(), trainers.BpeTrainer(vocab_size=3000, special_tokens=specials, show_progress=False,
                                                               limit_alphabet=120, initial_alphabet=list(alphabet)))
    if byte_fallback:  # the byte tokens are not special in real files
        d = json.loads(t.to_str())
        d["added_tokens"] = d["added_tokens"][:3]
        t = Tokenizer.from_str(json.dumps(d))
    return t


def all_json(table, program, folder, texts):
    data = SHARED / "tokenizers"
    qwen = data / "qwen2.5_vocab.json", data / "qwen2.5_merges.txt"
    gpt2 = data / "gpt2_vocab.json", data / "gpt2_merges.txt"
    compare_json(table, program, folder, "qwen2.5", byte_level(*qwen, QWEN, normalizers.NFC()), texts)
    compare_json(table, program, folder, "qwen2.5-llama3-pattern", byte_level(*qwen, LLAMA3), texts)
    compare_json(table, program, folder, "gpt2", byte_level(*gpt2, None), texts)
    compare_json(table, program, folder, "gpt2-digits-nfkc", byte_level(*gpt2, None, normalizers.NFKC(), True), texts)
    gemma = Tokenizer.from_str(gzip.decompress((data / "gemma3_tokenizer.json.gz").read_bytes()).decode())
    compare_json(table, program, folder, "gemma3", gemma, texts)
    metaspace = {s: pre_tokenizers.Metaspace(prepend_scheme=s) for s in ("always", "first", "never")}
    for scheme, pre in metaspace.items():
        compare_json(table, program, folder, f"metaspace-{scheme}",
                     trained(True, True, True, pre_tokenizer=pre, decoder=decoders.Sequence(
                         [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])), texts)
    whole = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    legacy = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    compare_json(table, program, folder, "metaspace-decoder", trained(False, True, True, pre_tokenizer=metaspace["always"],
                                                                     decoder=decoders.Metaspace()), texts)
    compare_json(table, program, folder, "metaspace-whole", trained(False, True, False, pre_tokenizer=whole,
                                                                   decoder=decoders.Metaspace()), texts)
    compare_json(table, program, folder, "no-unknown", trained(False, False, False, normalizer=legacy,
                                                               pre_tokenizer=pre_tokenizers.Split("\u2581", "merged_with_next")), texts)
    strip = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                               decoders.Strip(content=" ", left=1, right=0)])
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+|[.,]"), behavior, invert),
                                           pre_tokenizers.Digits(individual_digits=invert)])
            compare_json(table, program, folder, f"split-{behavior}-{invert}",
                         trained(True, True, True, ignore_merges=invert, pre_tokenizer=pre, decoder=strip), texts)
    norm = normalizers.Sequence([normalizers.Strip(), normalizers.NFD(), normalizers.Lowercase(),
                                 normalizers.Replace(Regex(r" {2,}|\p{M}"), "x"), normalizers.NFKD()])
    t = trained(False, True, True, normalizer=norm, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
                decoder=decoders.ByteLevel(), alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.add_tokens([AddedToken("World", normalized=True), AddedToken("Na\u00efve", normalized=True, single_word=True)])
    # A normalized added token decodes to its normalized text there, to its own text here.
    compare_json(table, program, folder, "normalized-added", t, texts, decode=False)


# ---- sentencepiece ----

def compare_model(table, program, name, path, texts):
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    # A Python string with U+0000 is cut by sentencepiece's own binding; bytes are not.
    theirs = [(ids, sp.decode(ids).encode()) for ids in (sp.encode(t) for t in texts)]
    table.report(name, texts, ours(program, path, NO_BOS | NO_SPECIAL, texts), theirs)


def all_models(table, program, folder, texts):
    compare_model(table, program, "llama2 tokenizer.model", SHARED / "tokenizers/llama2_tokenizer.model", texts)
    compare_model(table, program, "stories260K tokenizer.model", SHARED / "models/stories260K/tokenizer.model", texts)
    base = dict(model_type="bpe", vocab_size=2000, character_coverage=0.995, minloglevel=2, num_threads=1)
    variants = {
        "nmt_nfkc": dict(normalization_rule_name="nmt_nfkc"),
        "nmt_nfkc_cf": dict(normalization_rule_name="nmt_nfkc_cf", add_dummy_prefix=False),
        "identity no fallback": dict(normalization_rule_name="identity", remove_extra_whitespaces=False),
        "user symbols": dict(user_defined_symbols=["<h1>", "the", "  ", "\u2581of", "\u00bd"], byte_fallback=True,
                             normalization_rule_name="nmt_nfkc"),
        "split digits": dict(byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
                             remove_extra_whitespaces=False, normalization_rule_name="identity"),
    }
    for name, options in variants.items():
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(training_text()), model_writer=out, **base, **options)
        path = folder / "sp.model"
        path.write_bytes(out.getvalue())
        compare_model(table, program, f"sentencepiece {name}", path, texts)


# ---- llama.cpp ----

class LlamaCpp:
    def __init__(self, path):
        import llama_cpp
        self.api = llama_cpp
        self.api.llama_log_set(quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text, special):
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 16))()
        count = self.api.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, special)
        assert count >= 0
        return list(ids[:count])


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level, text, user):
    pass


def compare_export(table, program, folder, path, texts):
    from transformers import AutoTokenizer
    directory = folder / path.stem
    directory.mkdir()
    subprocess.check_call([program, path, "export", directory])
    t = AutoTokenizer.from_pretrained(directory)
    if "phi-3" in path.name:  # white space behind its special tokens: llama.cpp's is ASCII's
        texts = [text for text in texts if not any(c.isspace() and c > "\x7f" for c in text)]
    encoded = [t.encode(text) for text in texts]
    theirs = [(ids, t.decode(ids, skip_special_tokens=True).encode()) for ids in encoded]
    table.report(f"{path.stem} in transformers", texts, ours(program, directory, 0, texts), theirs)
    table.report(f"{path.stem} before and after", texts, ours(program, path, 0, texts),
                 [(ids, None) for ids in encoded])


def all_gguf(table, program, folder, texts, extra):
    paths = sorted((SHARED / "tokenizers/ggml-vocab").glob("*.gguf")) + [Path(p) for p in extra]
    for path in paths:
        theirs = LlamaCpp(path)
        for special in (True, False):
            mine = ours(program, path, 0 if special else NO_SPECIAL, texts)
            table.report(path.stem + ("" if special else " plain"), texts, mine,
                         [(theirs.encode(t, special), None) for t in texts])
        compare_export(table, program, folder, path, texts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gguf", nargs="*", default=[])
    parser.add_argument("--only", choices=["json", "model", "gguf"])
    parser.add_argument("--record")
    args = parser.parse_args()
    texts = make_texts(args.texts, args.seed)
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        program = build(folder)
        if args.only in (None, "json"):
            all_json(table, program, folder, texts)
        if args.only in (None, "model"):
            all_models(table, program, folder, texts)
        if args.only in (None, "gguf"):
            all_gguf(table, program, folder, texts, args.gguf)
    if args.record:
        table.write(args.record)
    return 1 if table.failed else 0


sys.exit(main())
