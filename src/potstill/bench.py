"""Which file is fastest on this machine? Every model named, in the runtime that opens it, measured in turn."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError, ResourceError
from potstill.core.hardware import cores_usable, hardware
from potstill.core.trace import Trace
from potstill.evaluate.speed import Rate, Speed, Work, measure_speed
from potstill.runtime.engine import Engine
from potstill.runtime.table import open_engine

__all__ = ["bench"]


def bench(
    models: Mapping[str, Path], work: Work, *, threads: Sequence[int] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Time prefill and decode of every model, all of them in every round, on each of these numbers of threads.

    Threads unless told: as many as this process may use. A small model often decodes faster on fewer, for its layers
    are done sooner than several threads meet. A model whose runtime isn't installed is left out and named under
    ``left_out``, with what to install.

    Units: tokens/s; the median of the rounds, the slowest and the fastest.
    Raises: InputError: a path that no runtime opens, or none at all whose runtime is installed.
    """
    numbers = list(dict.fromkeys(threads or [cores_usable()]))
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        engines: dict[str, tuple[str, Engine]] = {}
        for name, path in models.items():
            try:
                for number in numbers:
                    engine = stack.enter_context(open_engine(path, threads=number))
                    engines[f"{name} on {number} threads"] = (name, engine)
            except ResourceError as error:
                left_out[name] = str(error)
        if not engines:
            raise InputError(
                "no model could be opened", where=", ".join(models), next_step="; ".join(left_out.values())
            )
        speeds = measure_speed({key: engine for key, (_, engine) in engines.items()}, work, Trace(), seed=seed)
        rows = [_row(name, engine, speeds[key]) for key, (name, engine) in engines.items()]
    return {
        "models": rows,
        "fastest_prefill": _fastest(rows, "prefill_tokens_per_s"),
        "fastest_decode": _fastest(rows, "decode_tokens_per_s"),
        "left_out": left_out,
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "rounds": work.rounds,
        "hardware": hardware(),
    }


def _row(name: str, engine: Engine, speed: Speed) -> dict[str, Any]:
    return {
        "model": name,
        "format": engine.facts.format,
        "engine": engine.facts.engine,
        "dtype": engine.facts.dtype,
        "bytes": engine.facts.file_bytes,
        "threads": engine.facts.threads,
        **_rates("prefill_tokens_per_s", speed.prefill_tokens_per_s),
        **_rates("decode_tokens_per_s", speed.decode_tokens_per_s),
    }


def _rates(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.median, f"{name}_slowest": rate.slowest, f"{name}_fastest": rate.fastest}


def _fastest(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return str(max(rows, key=lambda row: row[key])["model"])
