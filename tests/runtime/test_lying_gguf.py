"""A GGUF file whose header lies about sizes is refused in words: no crash, no abort, no allocation of what it claims.

Each file is opened in a fork with little memory to spare, so that an abort would be seen and not suffered.
"""

import os
import resource
import struct

import numpy as np
import pytest

from potstill.bench import bench
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.evaluate.speed import Work
from potstill.export.gguf import export_gguf
from potstill.runtime.llama_cpp import LlamaCppEngine

LIES = (2**31, 2**64 - 1)
SPARE_BYTES = 1 << 30
STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Places:
    """Where the sizes of a file's header stand, found by walking through it."""

    def __init__(self, content):
        self._content = content
        self.values, self.tensors = {}, {}
        tensors, pairs = struct.unpack_from("<QQ", content, 8)
        at = 24
        for _ in range(pairs):
            key, after = self._text(at)
            (kind,) = struct.unpack_from("<I", content, after)
            self.values[key] = (at, after + 4)
            at = self._after_value(kind, after + 4)
        for _ in range(tensors):
            name, after = self._text(at)
            (dimensions,) = struct.unpack_from("<I", content, after)
            shape = after + 4
            self.tensors[name] = {"name": at, "dimensions": after, "shape": shape, "offset": shape + 8 * dimensions + 4}
            at = shape + 8 * dimensions + 12

    def _text(self, at):
        (length,) = struct.unpack_from("<Q", self._content, at)
        return self._content[at + 8 : at + 8 + length].decode(), at + 8 + length

    def _after_value(self, kind, at):
        if kind == STRING:
            return self._text(at)[1]
        if kind != ARRAY:
            return at + WIDTHS[kind]
        inner, count = struct.unpack_from("<IQ", self._content, at)
        at += 12
        for _ in range(count):
            at = self._after_value(inner, at)
        return at


def opened_in_a_fork(path, length=4):
    """How a process ends that loads a file and scores some tokens, and what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code, said = 1, ""
        try:
            with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - no path of ours
                used = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES,) * 2)
            with LlamaCppEngine(path, threads=1) as engine:
                engine.logits(np.arange(length)[None] % 399)
                engine.tokenize("a b\n🙂")
            code = 0
        except InputError as error:
            code, said = 3, str(error)
        finally:
            os.write(writing, said.encode()[:4000])
            os._exit(code)
    os.close(writing)
    said = os.read(reading, 5000).decode()
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.fixture(scope="module", params=["llama", "gemma3", "phi3", "gpt2", "gpt_neox"])
def whole(request, make_family, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    export_gguf(make_family(request.param), path, "float32", Trace())
    return path.read_bytes()


def places_of_sizes(content):
    """Name, place and layout of each size, as ``struct`` writes it."""
    places = Places(content)
    tensor = places.tensors["blk.0.ffn_down.weight"]
    tokens, types = places.values["tokenizer.ggml.tokens"][1], places.values["tokenizer.ggml.token_type"][1]
    yield "number of tensors", 8, "<Q"
    yield "number of keys", 16, "<Q"
    yield "length of a key", places.values["tokenizer.ggml.pre"][0], "<Q"
    yield "length of a text", places.values["tokenizer.ggml.pre"][1], "<Q"
    yield "number of tokens", tokens + 4, "<Q"
    yield "length of a token", tokens + 12, "<Q"
    yield "number of types", types + 4, "<Q"
    yield "length of a tensor's name", tensor["name"], "<Q"
    yield "number of dimensions", tensor["dimensions"], "<I"
    yield "columns", tensor["shape"], "<Q"
    yield "rows", tensor["shape"] + 8, "<Q"
    yield "offset", tensor["offset"], "<Q"
    yield "offset of the last", list(places.tensors.values())[-1]["offset"], "<Q"
    for key, (_, value) in places.values.items():
        is_size = key.endswith(("_length", "head_count", "head_count_kv", "block_count", "dimension_count"))
        if is_size and (not key.endswith("context_length") or "position_embd.weight" in places.tensors):
            yield key, value, "<I"


def test_every_lie_about_a_size_is_refused_in_words(whole, tmp_path):
    path = tmp_path / "lying.gguf"
    for name, place, layout in places_of_sizes(whole):
        for lie in LIES:
            content = bytearray(whole)
            struct.pack_into(layout, content, place, lie if layout == "<Q" else lie % 2**32)
            path.write_bytes(content)
            code, said = opened_in_a_fork(path)
            assert code == 3, (name, lie, code)
            assert "llama.cpp can't load it: " in said


def test_a_whole_file_is_loaded_with_so_little_memory(whole, tmp_path):
    (tmp_path / "whole.gguf").write_bytes(whole)
    assert opened_in_a_fork(tmp_path / "whole.gguf") == (0, "")


def test_a_row_longer_than_a_table_of_positions_is_refused(make_family, tmp_path):
    """llama.cpp would end the process."""
    export_gguf(make_family("gpt2"), tmp_path / "model.gguf", "float32", Trace())
    code, said = opened_in_a_fork(tmp_path / "model.gguf", length=257)
    assert code == 3
    assert "257 tokens in a row are more than its table of 256 positions has" in said


def test_flipped_header_bytes_of_the_other_families_never_end_the_process(whole, tmp_path):
    random = np.random.default_rng(2)
    end = whole.index(b"tokenizer.ggml.tokens")
    path = tmp_path / "flipped.gguf"
    endings = set()
    for _ in range(20):
        content = bytearray(whole)
        content[int(random.integers(4, end))] = int(random.integers(0, 256))
        path.write_bytes(content)
        endings.add(opened_in_a_fork(path)[0])
    assert endings <= {0, 3}


def test_the_bench_refuses_it_too(whole, tmp_path):
    content = bytearray(whole)
    struct.pack_into("<Q", content, Places(whole).tensors["blk.0.ffn_down.weight"]["offset"], 2**40)
    (tmp_path / "lying.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"llama\.cpp can't load it: .* has offset"):
        bench({"lying": tmp_path / "lying.gguf"}, Work(prompt_tokens=4, new_tokens=2, rounds=1), threads=[1])
