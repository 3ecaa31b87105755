#!/usr/bin/env python3
"""Another inference program, measured by `tessera bench --peers` (docs/BENCH.md has the protocol).

usage: peers.py llama.cpp|pytorch

Says who it is in a line of JSON, then answers each line of its input with one: it loads a model,
decodes a batch, or reads a prompt, and says how many tokens took how many seconds. An answer with
"error" is a sentence for the user. It ends when its input does.
"""
import json
import os
import sys
import time
import warnings

PROMPT_STEP = 7919  # ids of a prompt, as tessera's own


class Failure(Exception):
    """A sentence for the user."""


def prompt(count, vocabulary):
    return [index * PROMPT_STEP % vocabulary for index in range(count)]


def repeat(seconds, tokens, run):
    """Runs until `seconds` are over, once at least. Tokens and seconds in all."""
    count, start = 0, time.perf_counter()
    while True:
        run()
        count += 1
        took = time.perf_counter() - start
        if took >= seconds:
            return {"tokens": count * tokens, "seconds": took}


class LlamaCpp:
    """llama.cpp through the low-level half of llama-cpp-python: batches need it."""

    name = "llama.cpp"
    UBATCH = 512

    def __init__(self):
        try:
            import llama_cpp
        except ImportError as error:
            raise Failure(f"the Python package llama-cpp-python is missing ({error}); "
                          f"{sys.executable} -m pip install llama-cpp-python") from error
        self.api = llama_cpp
        self.version = llama_cpp.__version__
        self.model = None
        # Kept: the library calls it as long as it lives.
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, None)
        llama_cpp.llama_backend_init()

    def load(self, path, dtype, threads, batch, length):
        self.threads = threads
        note = "" if self.survives(path) else ", plain buffers"
        self.open(path, extra_buffers=not note)
        text = self.api.ctypes.create_string_buffer(128)
        self.api.llama_model_desc(self.model, text, len(text))
        return {"dtype": text.value.decode().split()[-1].lower() + note}

    def open(self, path, extra_buffers):
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = extra_buffers
        self.model = self.api.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise Failure(f"it cannot load {path}")
        self.vocabulary = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def survives(self, path):
        """Whether a step with repacked weights comes back: on some machines with AMX it does not,
        and then llama.cpp's plain buffers are measured instead, which the reply says."""
        child = os.fork()
        if child == 0:
            try:
                self.open(path, extra_buffers=True)
                self.prefill(8, 0)
            except Failure:
                pass  # the parent meets it again, and reports it
            os._exit(0)
        return os.WIFEXITED(os.waitpid(child, 0)[1])

    def context(self, sequences, positions, chunk):
        parameters = self.api.llama_context_default_params()
        parameters.n_ctx = sequences * max(positions, 256)  # it rounds up to 256 for each
        parameters.n_batch = max(chunk, 32)
        parameters.n_ubatch = min(parameters.n_batch, self.UBATCH)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self.threads
        context = self.api.llama_init_from_model(self.model, parameters)
        if not context:
            raise Failure(f"it cannot make a context of {sequences} sequences")
        return context

    def batch(self, tokens):
        """A batch of (id, position, sequence, whether logits are wanted)."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        return batch

    def decode_batch(self, context, batch):
        if self.api.llama_decode(context, batch):
            raise Failure("llama_decode failed")
        self.api.llama_synchronize(context)

    def prompt_batch(self, count):
        ids = prompt(count, self.vocabulary)
        return self.batch([(ids[i], i, 0, i == count - 1) for i in range(count)])

    def decode(self, batch, context, most, seconds):
        session = self.context(batch, most, max(batch, most))
        memory = self.api.llama_get_memory(session)
        ids = prompt(batch, self.vocabulary)
        filled = self.prompt_batch(most)
        step = self.batch([(ids[i], context, i, True) for i in range(batch)])
        self.decode_batch(session, filled)
        for sequence in range(1, batch):
            self.api.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        position = most

        def run():
            nonlocal position
            if position == most:
                for sequence in range(batch):
                    self.api.llama_memory_seq_rm(memory, sequence, context, -1)
                position = context
            for index in range(batch):
                step.pos[index] = position
            self.decode_batch(session, step)
            position += 1

        run()  # the copies of the cache are made by the first step
        result = repeat(seconds, batch, run)
        self.api.llama_batch_free(filled)
        self.api.llama_batch_free(step)
        self.api.llama_free(session)
        return result

    def prefill(self, length, seconds):
        session = self.context(1, length, length)
        memory = self.api.llama_get_memory(session)
        text = self.prompt_batch(length)

        def run():
            self.api.llama_memory_clear(memory, False)
            self.decode_batch(session, text)

        result = repeat(seconds, length, run)
        self.api.llama_batch_free(text)
        self.api.llama_free(session)
        return result


class PyTorch:
    """PyTorch through transformers, with its own cache and scaled_dot_product_attention."""

    name = "pytorch"

    def __init__(self):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise Failure(f"the Python package {error.name} is missing; "
                          f"{sys.executable} -m pip install torch transformers") from error
        warnings.simplefilter("ignore", FutureWarning)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers
        self.version = torch.__version__
        self.model = None

    def load(self, path, dtype, threads, batch, length):
        types = {"bf16": self.torch.bfloat16, "f16": self.torch.float16, "f32": self.torch.float32}
        self.torch.set_num_threads(threads)
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=types[dtype], attn_implementation="sdpa")
        self.model.eval()
        self.vocabulary = self.model.config.get_text_config().vocab_size
        return {"dtype": dtype}

    def forward(self, ids, cache):
        with self.torch.inference_mode():
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True,
                              logits_to_keep=1)

    def decode(self, batch, context, most, seconds):
        ids = self.torch.tensor([prompt(context, self.vocabulary)] * batch)
        step = self.torch.tensor(prompt(batch, self.vocabulary)).reshape(batch, 1)
        cache = self.transformers.DynamicCache()
        self.forward(ids, cache)

        def run():
            if cache.get_seq_length() == most:
                cache.crop(context - most)
            self.forward(step, cache)

        return repeat(seconds, batch, run)

    def prefill(self, length, seconds):
        ids = self.torch.tensor([prompt(length, self.vocabulary)])
        return repeat(seconds, length, lambda: self.forward(ids, self.transformers.DynamicCache()))


PEERS = {peer.name: peer for peer in (LlamaCpp, PyTorch)}


def answer(peer, request):
    what = request.pop("do", None)
    if what not in ("load", "decode", "prefill"):
        raise Failure(f"there is nothing called {what!r} to do")
    if what != "load" and not peer.model:
        raise Failure("no model is loaded")
    return getattr(peer, what)(**request)


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in PEERS:
        sys.exit(__doc__)
    # Libraries print as they like: the replies keep the descriptor, everything else goes to
    # standard error.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message):
        replies.write(json.dumps(message) + "\n")

    try:
        peer = PEERS[sys.argv[1]]()
    except Failure as failure:
        reply({"error": str(failure)})
        return
    reply({"peer": peer.name, "version": peer.version})
    for line in sys.stdin:
        try:
            reply(answer(peer, json.loads(line)))
        except Failure as failure:
            reply({"error": str(failure)})
        except Exception as error:  # whatever a library raises ends up as one sentence
            reply({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
