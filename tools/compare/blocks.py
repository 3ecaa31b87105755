#!/usr/bin/env python3
"""GGUF files that run from their own blocks, against their expansion and against llama.cpp.

    python tools/compare/blocks.py MODEL.gguf TEXT [TOKENS]

Run from the root of a built tree. For MODEL and its exports as q8_0 and q4_0 the logits of one text
are taken three times: by tessera with the blocks expanded to fp32, by tessera token by token from
the blocks as they are, and by llama.cpp token by token. Both of the latter round activations to
eight bits. Prints KL(expanded || each) in nats a token and how often the likeliest token is the
same; exits with 1 when decoding strays from the expansion by more than 0.02, or by more than three
times what llama.cpp does.

Needs llama_cpp and numpy: a tool for developers.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

KL_MOST, TIMES_MOST = 0.02, 3


def build(folder):
    program = folder / "logits"
    libraries = subprocess.check_output(
        "pkg-config --libs jansson libpcre2-8 libutf8proc libzip libzstd zlib",
        shell=True, text=True).split()
    subprocess.check_call(["cc", "-O1", "-std=gnu17", "-D_GNU_SOURCE", "-Isrc",
                           "tools/compare/logits.c", "-o", program, "build/libtessera.a",
                           *libraries, "-lm", "-lpthread"])
    return program


def ours(program, path, ids, folder, *how):
    np.array(ids, np.int32).tofile(folder / "ids")
    subprocess.check_call([program, path, folder / "ids", folder / "out", *how])
    return np.fromfile(folder / "out", np.float32).reshape(len(ids), -1)


def theirs(path, ids):
    # plain buffers: repacked ones do not survive a step on some machines with AMX (docs/BENCH.md)
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = max(256, len(ids))
    context = llama_cpp.llama_init_from_model(model, settings)
    rows = []
    for token in ids:
        one = (llama_cpp.llama_token * 1)(token)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1)):
            raise SystemExit("llama_decode failed")
        rows.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(context),
                                          (vocabulary,)).copy())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(reference, logits):
    p, q = log_softmax(reference), log_softmax(logits)
    same = (reference.argmax(-1) == logits.argmax(-1)).mean()
    return (np.exp(p) * (p - q)).sum(-1).mean(), same


def main():
    path, text = sys.argv[1], Path(sys.argv[2]).read_bytes()
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 256
    silence = llama_cpp.llama_log_callback(lambda level, words, data: None)
    llama_cpp.llama_log_set(silence, None)
    ids = llama_cpp.Llama(path, vocab_only=True, verbose=False).tokenize(text[:count * 8])[:count]
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build(folder)
        for kind in (None, "q8_0", "q4_0"):
            file = path
            if kind:
                file = folder / f"{kind}.gguf"
                subprocess.check_call(["./tessera", "export", path, "--to", "gguf", "--type", kind,
                                       "--out", file, "--quiet"], stdout=subprocess.DEVNULL)
            expanded = ours(program, file, ids, folder)
            decoded, same = divergence(expanded, ours(program, file, ids, folder, "decode"))
            peer, peer_same = divergence(expanded, theirs(file, ids))
            failed |= decoded > KL_MOST or decoded > TIMES_MOST * peer
            print(f"{kind or Path(path).name}: KL {decoded:.5f} from blocks, {peer:.5f} in llama.cpp;"
                  f" same top token {same:.1%}, {peer_same:.1%}; {len(ids)} tokens")
    return failed


if __name__ == "__main__":
    sys.exit(main())
