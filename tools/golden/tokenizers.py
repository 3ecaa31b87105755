#!/usr/bin/env python3
"""Makes tests/golden/tokenizer_*: small tokenizers of every kind, and what they give for hostile texts.

The ids come from tokenizers, sentencepiece and llama.cpp. Usage: tokenizers.py TEXT OUTDIR, where
TEXT is anything of some 100 KB to train on. Needs tokenizers, sentencepiece, gguf, llama_cpp."""
import ctypes
import io
import json
import sys
from pathlib import Path

sys.path.pop(0)  # this file's folder, which would hide the package of the same name
import gguf  # noqa: E402
import llama_cpp  # noqa: E402
import sentencepiece  # noqa: E402
from sentencepiece import sentencepiece_model_pb2 as pb  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

TEXTS = ["", " ", "  ", "\n", "\n\n", "a", "Hello world", " Hello  world ", "The, of and. the\tin\r\n\r\n x", ".\n\n3", "1 22 333 4444",
         "\u0663\u0664 \u00bd \u2168 \u00b2", "don't DON'T we'Ve '\u017f 's", "e\u0301 \u00e9 a\u0316\u0301 a\u0301\u0316 \u212b",
         "\u6211\u60f3 \u3042\u30a2 \U00020000", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd\ufe0f",
         "\u05d0\u05b8\u0644\u0627 \u202e rtl", "\u1100\u1161\u11a8 \uac01", "\u0120the\u010a \u2581 \u2581\u2581a", "a\x00b\x01\x7f\x80\xad",
         "\ufffe\U0010ffff\ue000\ufeff", "\t \u00a0\u1680\u180e\u2003\u2028\u2029\u202f\u3000 \x85\x0b\x0c|", "<s>the</s> of<s>", "x<s> \n y",
         "<0x41><0x0A><unk>", "[tag]a [tag] [tag]  b[TAG]", "and land and  sand and", "  [mark]  [mark]\n\nc", "aaaaaaaaaaaaaaaaaaaaaaaa",
         "--------================", "inininthethethe of of of", "(c) \u00a9 \ufb01ne \uff11\uff12 \u2126", "  two  spaces   three    four",
         "Wikipedia: the free encyclopedia, that anyone can edit; see https://en.wikipedia.org?x=1&y=%20."]


def flags(texts, encode, decode):
    """[{ids, text} per text]"""
    out = []
    for text in texts:
        ids = encode(text)
        out.append([ids, decode(ids)] if decode else [ids])
    return out


def from_tokenizers(t):
    result = {}
    for name, plain in (("ids", False), ("plain", True)):
        t.encode_special_tokens = plain
        result[name] = flags(TEXTS, lambda s: t.encode(s).ids, lambda ids: t.decode(ids, skip_special_tokens=True))
    return result


def train(lines, size, alphabet=(), specials=("<unk>", "<s>", "</s>"), limit=70, **options):
    parts = {k: options.pop(k) for k in list(options) if k in ("normalizer", "pre_tokenizer", "decoder")}
    t = Tokenizer(models.BPE(**options))
    for key, value in parts.items():
        setattr(t, key, value)
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, special_tokens=list(specials), show_progress=False,
                                                     limit_alphabet=limit, initial_alphabet=list(alphabet)))
    return t


def byte_level(lines):
    t = train(lines, 440, alphabet=pre_tokenizers.ByteLevel.alphabet(), limit=256, normalizer=normalizers.NFC(),
              pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False)]),
              decoder=decoders.ByteLevel())
    t.add_tokens([AddedToken("[tag]", lstrip=True, rstrip=True, normalized=False), AddedToken("[mark]", rstrip=True, normalized=False),
                  AddedToken("and", single_word=True, normalized=False), AddedToken("\u00e9 a", normalized=True)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return t


def llama_style(lines):
    t = train(lines, 500, specials=["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)], unk_token="<unk>", fuse_unk=True,
              byte_fallback=True, normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
              decoder=decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(content=" ", left=1, right=0)]))
    d = json.loads(t.to_str())
    d["added_tokens"] = d["added_tokens"][:3]
    d["post_processor"] = json.loads(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]).__getstate__())
    return Tokenizer.from_str(json.dumps(d))


def metaspace(lines):
    t = train(lines, 300, unk_token="<unk>", fuse_unk=False, ignore_merges=True, normalizer=normalizers.NFKC(),
              pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"),
                                                     pre_tokenizers.Split(Regex(r"[^\S\n]|[.,;:]"), "merged_with_previous")]),
              decoder=decoders.Metaspace())
    d = json.loads(t.to_str())
    d["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in d["model"]["merges"]]  # the older form
    return Tokenizer.from_str(json.dumps(d))


def sp_model(lines, **options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, model_type="bpe", minloglevel=2,
                                             num_threads=1, character_coverage=0.99, **options)
    return out.getvalue()


def from_sentencepiece(data):
    sp = sentencepiece.SentencePieceProcessor(model_proto=data)
    return {"plain": flags(TEXTS, lambda s: sp.encode(s), lambda ids: sp.decode(ids))}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level, text, user):
    pass


def from_llama_cpp(path):
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)

    def encode(text, special):
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, special)
        return list(ids[:count])
    return {"ids": flags(TEXTS, lambda s: encode(s, True), None), "plain": flags(TEXTS, lambda s: encode(s, False), None)}


def write_gguf_bpe(path, t):
    d = json.loads(t.to_str())
    tokens = sorted(d["model"]["vocab"], key=d["model"]["vocab"].get)
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([3 if s in ("<unk>", "<s>", "</s>") else 1 for s in tokens])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in d["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def write_gguf_spm(path, data):
    model = pb.ModelProto.FromString(data)
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([p.piece for p in model.pieces])
    w.add_token_scores([p.score for p in model.pieces])
    w.add_token_types([p.type for p in model.pieces])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def main():
    lines = [line for line in Path(sys.argv[1]).read_bytes()[:200000].decode("utf-8", "ignore").splitlines() if line.strip()]
    out = Path(sys.argv[2])
    expected = {"texts": TEXTS}
    for name, make in (("byte_level", byte_level), ("llama_style", llama_style), ("metaspace", metaspace)):
        t = make(lines)
        file = out / f"tokenizer_{name}.json"
        file.write_text(t.to_str(pretty=False) + "\n")
        expected[file.name] = from_tokenizers(t)
    rules = out / "rules.tsv"
    rules.write_text("FB01\t66 69\t# fi\nA9\t28 63 29\nFF11\t31\nFF12\t32\n2003\t20\n3000\t20\n61 316\t62\nAD\t\n")
    variants = {
        "rules": dict(vocab_size=330, normalization_rule_tsv=str(rules)),
        "fallback": dict(vocab_size=520, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                         user_defined_symbols=["[tag]", "of", "\n"]),
    }
    for name, options in variants.items():
        data = sp_model(lines, **options)
        file = out / f"tokenizer_{name}.model"
        file.write_bytes(data)
        expected[file.name] = from_sentencepiece(data)
    rules.unlink()
    write_gguf_bpe(out / "tokenizer_bpe.gguf", byte_level(lines))
    write_gguf_spm(out / "tokenizer_spm.gguf", (out / "tokenizer_fallback.model").read_bytes())
    for name in ("tokenizer_bpe.gguf", "tokenizer_spm.gguf"):
        expected[name] = from_llama_cpp(out / name)
    with open(out / "tokenizer_expected.json", "w") as f:
        f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in expected.items()) + "\n}\n")


main()
