"""Speed is measured in turn, on fresh prompts, without the warm-up; the arithmetic against a clock that we set."""

import itertools

import pytest

from potstill.core.trace import Trace
from potstill.evaluate.speed import Rate, Work, measure_speed


def test_rates_are_medians_and_extremes_of_the_rounds_after_the_warm_up(bigram):
    """One engine, a clock whose intervals are known: the warm-ups' 100 s don't count."""
    times = itertools.chain.from_iterable((start, start + took) for start, took in enumerate(
        [100, 2, 4, 1, 100, 4, 2, 8]
    ))  # fmt: skip
    speed = measure_speed({"a": bigram(1)}, Work(8, 16, 3), Trace(), seed=0, clock=lambda: next(times))["a"]
    assert speed.prefill_tokens_per_s == Rate(median=4.0, slowest=2.0, fastest=8.0)
    assert speed.decode_tokens_per_s == Rate(median=4.0, slowest=2.0, fastest=8.0)


def test_all_engines_get_the_same_fresh_prompts_in_turning_order(bigram):
    calls = []
    engines = {}
    for name in "abc":
        engine = bigram(1)
        generate = engine.generate
        engine.generate = lambda prompt, num, name=name, generate=generate: (
            calls.append((name, tuple(prompt), num)),
            generate(prompt, num),
        )[1]
        engines[name] = engine
    measure_speed(engines, Work(8, 4, 2), Trace(), seed=0)
    assert [name for name, prompt, _ in calls if len(prompt) == 8] == list("abc") + list("bca") + list("cab")
    prompts = {name: [prompt for one, prompt, _ in calls if one == name and len(prompt) == 8] for name in "abc"}
    assert prompts["a"] == prompts["b"] == prompts["c"]
    assert len(set(prompts["a"])) == 3
    assert {num for _, prompt, num in calls if len(prompt) == 8} == {1}
    assert {num for _, prompt, num in calls if len(prompt) == 1} == {4}


def test_a_clock_that_stands_still_is_no_division_by_zero(bigram):
    speed = measure_speed({"a": bigram(1)}, Work(8, 4, 1), Trace(), seed=0, clock=lambda: 1.0)["a"]
    assert speed.prefill_tokens_per_s.median > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_prompts_are_a_function_of_the_seed(bigram, seed):
    runs = []
    for _ in range(2):
        engine = bigram(1)
        measure_speed({"a": engine}, Work(5, 2, 2), Trace(), seed=seed)
        runs.append(engine.prompts)
    assert runs[0] == runs[1]
