"""What does OpenVINO compute for a folder of its own format? An Engine over its Python interface, on the CPU.

Activations are float32; whether products of quantized weights round them to int8 stands in the model.

Shapes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.errors import BugError, InputError
from potstill.core.extras import needing
from potstill.runtime.engine import EngineFacts
from potstill.runtime.tokens import require_known, require_prompt

__all__ = ["OpenvinoEngine"]

_LOGITS_PER_CALL = 32 * 1024 * 1024
_INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx"}


class OpenvinoEngine:
    """A folder with ``openvino_model.xml``, or that file itself, of a model that keeps its cache as states.

    Raises: InputError: no such model, a damaged one, or one of another program. ResourceError: openvino isn't
    installed.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        file = path / "openvino_model.xml" if path.is_dir() else path
        with needing("openvino", "openvino"):
            import openvino  # noqa: PLC0415 - an extra
        if not (file.is_file() and file.with_suffix(".bin").is_file()):
            raise InputError("there are no openvino_model.xml and .bin", where=str(path))
        self._threads = threads
        model, compiled = self._open(openvino.Core(), file)
        self._facts = self._describe(model, path, file)
        self._request: Any = compiled.create_infer_request()

    @property
    def facts(self) -> EngineFacts:
        """What is loaded."""
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Next-token logits [B, T, V]; as many rows at a time as keep the logits of a call below 128 MiB."""
        require_known(tokens_BT, self.facts)
        rows, length = tokens_BT.shape
        logits_BTV = np.empty((rows, length, self.facts.vocabulary), dtype=np.float32)
        at_once = max(1, _LOGITS_PER_CALL // max(length * self.facts.vocabulary, 1))
        for start in range(0, rows if length else 0, at_once):
            self._forget()
            part_BT = np.ascontiguousarray(tokens_BT[start : start + at_once], dtype=np.int64)
            logits_BTV[start : start + at_once] = self._step(part_BT, 0)
        return logits_BTV

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens by greedy decoding; the first of equally likely ones; never stops early."""
        require_prompt(prompt, self.facts)
        self._forget()
        tokens_1T = np.asarray([prompt], dtype=np.int64)
        continuation: list[int] = []
        position = 0
        while len(continuation) < num_tokens:
            logits_1TV = self._step(tokens_1T, position)
            continuation.append(int(logits_1TV[0, -1].argmax()))
            position += tokens_1T.size
            tokens_1T = np.asarray([continuation[-1:]], dtype=np.int64)
        return continuation

    def close(self) -> None:
        """Free the model; the engine is of no use afterwards."""
        self._request = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self) -> None:
        if self._request is None:
            raise BugError("the engine is closed", where=self.facts.name)
        self._request.reset_state()

    def _step(self, tokens_BT: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Logits of tokens that follow ``position`` ones in the cache: a view that the next step overwrites."""
        interrupt.check()
        rows, length = tokens_BT.shape
        positions_T = np.arange(position, position + length, dtype=np.int64)
        feed = {
            "input_ids": tokens_BT,
            "attention_mask": np.ones((rows, position + length), dtype=np.int64),
            "position_ids": np.ascontiguousarray(np.broadcast_to(positions_T, tokens_BT.shape)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        logits_BTV: NDArray[np.float32] = self._request.infer(feed, share_inputs=True, share_outputs=True)["logits"]
        return logits_BTV

    def _open(self, core: Any, file: Path) -> tuple[Any, Any]:  # noqa: ANN401 - an optional package
        """The model as it stands in the file, and ready to run."""
        settings = {
            "INFERENCE_NUM_THREADS": str(self._threads),
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = core.read_model(file)
            return model, core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO can't load it: {' '.join(str(error).split())[:300]}",
                where=str(file),
                next_step="export the model again; if it is another program's file, check that it is whole",
            ) from error

    def _describe(self, model: Any, path: Path, file: Path) -> EngineFacts:  # noqa: ANN401 - an optional package
        inputs = {name for one in model.inputs for name in one.get_names()}
        shape = next((one.get_partial_shape() for one in model.outputs if "logits" in one.get_names()), None)
        known = model.has_rt_info(["potstill", "parameters"]) and inputs == _INPUTS
        if not known or shape is None or not shape[2].is_static:
            raise InputError("isn't an OpenVINO model that potstill exported", where=str(file))
        return EngineFacts(
            name=path.stem,
            format="openvino",
            engine="openvino",
            dtype=str(model.get_rt_info(["potstill", "dtype"]).value),
            parameters=int(model.get_rt_info(["potstill", "parameters"]).value),
            file_bytes=file.stat().st_size + file.with_suffix(".bin").stat().st_size,
            threads=self._threads,
            vocabulary=int(shape[2].get_length()),
        )
