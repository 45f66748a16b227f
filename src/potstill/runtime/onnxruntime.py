"""What does onnxruntime compute for an ONNX folder? An Engine over its Python interface, on the CPU.

Shapes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.errors import BugError, InputError
from potstill.core.extras import needing
from potstill.runtime.engine import EngineFacts
from potstill.runtime.tokens import require_known, require_prompt

__all__ = ["OnnxruntimeEngine"]

_LOGITS_PER_CALL = 32 * 1024 * 1024
_ERRORS_ONLY = 3
_PAST, _PRESENT = "past_key_values.", "present."
_KEEP = "num_logits_to_keep"
_DEVICE = "cpu"


class OnnxruntimeEngine:
    """A folder with ``model.onnx`` that potstill exported, or the file itself.

    Raises: InputError: no ONNX model, a damaged one, or one of another program. ResourceError: onnxruntime isn't
    installed.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        file = path / "model.onnx" if path.is_dir() else path
        self._ort = _load_library()
        self._session = self._open(file, threads)
        self._past = {one.name: one.shape for one in self._session.get_inputs() if one.name.startswith(_PAST)}
        self._needs_positions = "position_ids" in {one.name for one in self._session.get_inputs()}
        self._facts = self._describe(path, file, threads)

    @property
    def facts(self) -> EngineFacts:
        """What is loaded."""
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Next-token logits [B, T, V]; as many rows at a time as keep the logits of a call below 128 MiB."""
        require_known(tokens_BT, self.facts)
        self._require_open()
        rows, length = tokens_BT.shape
        logits_BTV = np.empty((rows, length, self.facts.vocabulary), dtype=np.float32)
        at_once = max(1, _LOGITS_PER_CALL // max(length * self.facts.vocabulary, 1))
        for start in range(0, rows if length else 0, at_once):
            interrupt.check()
            part_BT = np.ascontiguousarray(tokens_BT[start : start + at_once], dtype=np.int64)
            feed = self._tokens(part_BT, 0) | self._empty_cache(len(part_BT))
            (logits_BTV[start : start + at_once],) = self._session.run(["logits"], feed)
        return logits_BTV

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens by greedy decoding; the first of equally likely ones; never stops early.

        The cache is made once, for as many tokens as will be there in the end, and written to in place.
        """
        require_prompt(prompt, self.facts)
        self._require_open()
        if num_tokens <= 0:
            return []
        tokens_1T = np.asarray([prompt], dtype=np.int64)
        present = [name.replace(_PAST, _PRESENT) for name in self._past]
        interrupt.check()
        feed = self._tokens(tokens_1T, 0) | self._empty_cache(1) | {_KEEP: np.ones(1, dtype=np.int64)}
        logits_11V, *cache = self._session.run(["logits", *present], feed)
        continuation = [int(logits_11V[0, -1].argmax())]
        binding = self._session.io_binding()
        kept = self._bind_cache(binding, dict(zip(self._past, cache, strict=True)), tokens_1T.size + num_tokens)
        for position in range(tokens_1T.size, tokens_1T.size + num_tokens - 1):
            interrupt.check()
            for name, values in self._tokens(np.asarray([continuation[-1:]], dtype=np.int64), position).items():
                binding.bind_cpu_input(name, values)
            binding.bind_output("logits", _DEVICE)
            self._session.run_with_iobinding(binding)
            continuation.append(int(binding.get_outputs()[-1].numpy().reshape(-1).argmax()))
        del kept
        return continuation

    def close(self) -> None:
        """Free the model; the engine is of no use afterwards."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tokens(self, tokens_BT: NDArray[np.int64], position: int) -> dict[str, NDArray[np.int64]]:
        """The inputs that change from call to call: ids, what of the cache is filled, positions where asked for."""
        rows, length = tokens_BT.shape
        feed = {"input_ids": tokens_BT, "attention_mask": np.ones((rows, position + length), dtype=np.int64)}
        if self._needs_positions:
            positions_T = np.arange(position, position + length, dtype=np.int64)
            feed["position_ids"] = np.ascontiguousarray(np.broadcast_to(positions_T, tokens_BT.shape))
        return feed

    def _empty_cache(self, rows: int) -> dict[str, NDArray[np.float32]]:
        return {name: np.zeros((rows, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in self._past.items()}

    def _bind_cache(self, binding: Any, filled: Mapping[str, NDArray[np.float32]], tokens: int) -> list[Any]:  # noqa: ANN401
        """Bind every part of the cache as input and output at once, with room for ``tokens``; the memory, to keep."""
        kept = []
        for name, start in filled.items():
            room = np.zeros((1, start.shape[1], tokens, start.shape[3]), dtype=np.float32)
            room[:, :, : start.shape[2]] = start
            value = self._ort.OrtValue.ortvalue_from_numpy(room)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)
            kept.append(value)
        return kept

    def _open(self, file: Path, threads: int) -> Any:  # noqa: ANN401 - onnxruntime's session is untyped
        if not file.is_file():
            raise InputError("there is no such file", where=str(file))
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        try:
            return self._ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except self._errors() as error:
            raise InputError(
                f"onnxruntime can't load it: {' '.join(str(error).split())[:300]}",
                where=str(file),
                next_step="export the model again; if it is another program's file, check that it is whole",
            ) from error

    def _errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of onnxruntime, which have no base of their own."""
        state = self._ort.capi.onnxruntime_pybind11_state
        names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
        return (*(getattr(state, name) for name in names), state.RuntimeException, RuntimeError)

    def _describe(self, path: Path, file: Path, threads: int) -> EngineFacts:
        told = self._session.get_modelmeta().custom_metadata_map
        (logits,) = [one for one in self._session.get_outputs() if one.name == "logits"] or [None]
        if "potstill.parameters" not in told or logits is None or not isinstance(logits.shape[-1], int):
            raise InputError("isn't an ONNX model that potstill exported", where=str(file))
        return EngineFacts(
            name=path.stem,
            format="onnx",
            engine="onnxruntime",
            dtype=told.get("potstill.dtype", "unknown"),
            parameters=int(told["potstill.parameters"]),
            file_bytes=sum(part.stat().st_size for part in (file, file.with_suffix(".onnx.data")) if part.is_file()),
            threads=threads,
            vocabulary=logits.shape[-1],
        )

    def _require_open(self) -> None:
        if self._session is None:
            raise BugError("the engine is closed", where=self.facts.name)


def _load_library() -> Any:  # noqa: ANN401 - untyped
    with needing("onnxruntime", "onnx"):
        import onnxruntime  # noqa: PLC0415 - an extra
    return onnxruntime
