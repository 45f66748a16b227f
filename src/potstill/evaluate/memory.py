"""How much memory does each model need to run? Measured from outside, each model in a process of its own.

``python -m potstill.evaluate.memory --prompt-tokens 128 --new-tokens 32 PATH...`` opens every path in a fork of itself,
reads a prompt, decodes, and writes one JSON line a path: the fork's peak resident memory, everything included (Python,
the runtime's libraries, the weights, the caches). Libraries are imported once, before forking, so their pages are in
every figure, but their seconds are spent only once. What another runtime opens is measured
without PyTorch in the process.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill.core.errors import PotstillError, ResourceError
from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.evaluate.speed import Work
from potstill.runtime.table import needs_torch

__all__ = ["main", "measure_peak_memory"]

_TIMEOUT_S = 600
_RESERVED_IDS = 16
"""Prompts are made of the ids from here on: no vocabulary of use is so small."""


def measure_peak_memory(paths: Mapping[str, Path], work: Work, *, threads: int) -> dict[str, int]:
    """Peak resident bytes of a process that opens each model, reads ``work``'s prompt and decodes its new tokens.

    Returns: by the names of ``paths``.
    Raises: ResourceError: such a process failed; it carries what the process wrote to standard error.
    """
    groups: dict[bool, dict[str, Path]] = {}
    for name, path in paths.items():
        groups.setdefault(needs_torch(path), {})[name] = path
    peaks: dict[str, int] = {}
    for group in groups.values():
        peaks.update(zip(group, _run_child(list(group.values()), work, threads), strict=True))
    return {name: peaks[name] for name in paths}


def _run_child(paths: Sequence[Path], work: Work, threads: int) -> list[int]:
    command = [sys.executable, "-m", "potstill.evaluate.memory"]
    command += ["--prompt-tokens", str(work.prompt_tokens), "--new-tokens", str(work.new_tokens)]
    command += ["--threads", str(threads), "--", *(str(path.resolve()) for path in paths)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603 - our own module
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"gave no answer in {_TIMEOUT_S} s", where=_MEASURING, next_step=_NEXT) from error
    if done.returncode != 0:
        told = " ".join(done.stderr.split())[-500:] or "it wrote nothing"
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ResourceError(f"failed with {how}: {told}", where=_MEASURING, next_step=_NEXT)
    return [int(json.loads(line)["peak_memory_bytes"]) for line in done.stdout.splitlines()]


_MEASURING = "the process that measures memory"
_NEXT = "if memory ran out, evaluate on a larger machine or with evaluate.speed=false"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every path of the command line; exit with the code of the first error."""
    parser = argparse.ArgumentParser(prog="python -m potstill.evaluate.memory", description=measure_peak_memory.__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("paths", nargs="+", type=Path)
    chosen = parser.parse_args(arguments)
    if any(needs_torch(path) for path in chosen.paths):
        import potstill.runtime.pytorch  # noqa: F401, PLC0415 - only for models of PyTorch, before forking
    for path in chosen.paths:
        status, answer = _in_fork(path, Work(chosen.prompt_tokens, chosen.new_tokens, 1), chosen.threads)
        if status != 0:
            return status
        sys.stdout.write(answer)
        sys.stdout.flush()
    return 0


def _in_fork(path: Path, work: Work, threads: int) -> tuple[int, str]:
    """Run ``_measure`` in a fork; its exit code (128 + n for signal n) and what it answered."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_answer(path, work, threads, writing))
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        sys.stderr.write(f"{path}: killed by signal {-code}\n")
    return (128 - code if code < 0 else code), answer


def _answer(path: Path, work: Work, threads: int, writing: int) -> int:
    try:
        answer = {"path": str(path), **_measure(path, work, threads)}
    except PotstillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except BaseException as error:  # noqa: BLE001 - the fork must end here, whatever it was
        sys.stderr.write(f"{path}: {type(error).__name__}: {error}\n")
        return 1
    os.write(writing, (json.dumps(answer) + "\n").encode())
    return 0


def _measure(path: Path, work: Work, threads: int) -> dict[str, int]:
    from potstill.runtime.table import open_engine  # noqa: PLC0415 - in the fork, after the choice of libraries

    reset_peak_memory()
    start_bytes = peak_memory_bytes()
    with open_engine(path, threads=threads) as engine:
        first = _RESERVED_IDS % engine.facts.vocabulary
        usable = max(1, engine.facts.vocabulary - first)
        engine.generate([first + number % usable for number in range(work.prompt_tokens)], work.new_tokens)
    return {"peak_memory_bytes": peak_memory_bytes(), "start_bytes": start_bytes}


if __name__ == "__main__":
    sys.exit(main())
