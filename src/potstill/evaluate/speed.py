"""How fast is each engine, measured so that the machine's moods fall on all of them alike?

Prefill and decode are measured as ``llama-bench`` does (its pp and tg): reading a prompt in one go up to its first new
token, and decoding one token after another from an almost empty context. Neither is a difference of two times, so a
noisy machine can't turn one negative.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from potstill.core import interrupt
from potstill.core.trace import Trace
from potstill.runtime.engine import Engine

__all__ = ["Rate", "Speed", "Work", "measure_speed"]


_REST_S = 0.02
"""Before each measurement: threads of the runtime before spin for a while after their work, and would take a core."""


@dataclass(frozen=True)
class Work:
    """How much is read and written in one measurement."""

    prompt_tokens: int
    new_tokens: int
    rounds: int


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of the rounds, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float


@dataclass(frozen=True)
class Speed:
    prefill_tokens_per_s: Rate
    decode_tokens_per_s: Rate


def measure_speed(
    engines: Mapping[str, Engine],
    work: Work,
    trace: Trace,
    *,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """Time every engine in every round, in turn, each round with a fresh random prompt that all engines get.

    The order of the engines turns by one from round to round, so none is always the first after another one's work. A
    round before the first warms up and isn't counted: it finds libraries, memory and caches made ready. Prefill is
    done with before decoding begins, for a runtime may lay out its cache anew when lengths change. Random tokens are
    fair: no runtime's time depends on which token it reads.

    Returns: by the names of ``engines``.
    """
    prefill = _Job("prefill", work.prompt_tokens, 1, work.prompt_tokens)
    decode = _Job("decode", 1, work.new_tokens, work.new_tokens)
    vocabulary = min(engine.facts.vocabulary for engine in engines.values())
    rates = {}
    for job in (prefill, decode):
        generator = np.random.default_rng([seed, job.prompt_tokens, job.new_tokens])
        prompts = generator.integers(0, vocabulary, (work.rounds + 1, job.prompt_tokens)).tolist()
        rates[job] = _run(engines, job, prompts, clock, trace)
    return {name: Speed(rates[prefill][name], rates[decode][name]) for name in engines}


@dataclass(frozen=True)
class _Job:
    name: str
    prompt_tokens: int
    new_tokens: int
    counted_tokens: int


def _run(
    engines: Mapping[str, Engine],
    job: _Job,
    prompts: list[list[int]],
    clock: Callable[[], float],
    trace: Trace,
) -> dict[str, Rate]:
    """The rates of one job on every prompt after the first, which is the warm-up."""
    names = list(engines)
    tokens_per_s: dict[str, list[float]] = {name: [] for name in names}
    for round_number, prompt in enumerate(prompts):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            interrupt.check()
            time.sleep(_REST_S)
            start = clock()
            engines[name].generate(prompt, job.new_tokens)
            took_s = max(clock() - start, 1e-9)
            if round_number > 0:
                tokens_per_s[name].append(job.counted_tokens / took_s)
        trace.progress(f"measuring {job.name}", round_number, len(prompts) - 1, "rounds")
    return {name: _rate(measured) for name, measured in tokens_per_s.items()}


def _rate(tokens_per_s: list[float]) -> Rate:
    return Rate(statistics.median(tokens_per_s), min(tokens_per_s), max(tokens_per_s))
