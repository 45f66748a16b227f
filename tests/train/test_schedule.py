"""The learning rate rises, peaks and falls where it should."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.train.schedule import learning_rate_at
from potstill.train.settings import default_learning_rate


def rates(num_steps: int, warmup_share: float = 0.1, final_share: float = 0.05) -> list[float]:
    return [
        learning_rate_at(step, num_steps, peak=1.0, warmup_share=warmup_share, final_share=final_share)
        for step in range(num_steps)
    ]


def test_peak_comes_at_the_end_of_the_warm_up_and_the_last_step_has_the_final_share():
    schedule = rates(100)
    assert schedule[9] == pytest.approx(1.0)
    assert schedule[-1] == pytest.approx(0.05)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_rate_never_leaves_zero_to_peak_and_never_turns_twice(num_steps, warmup_share, final_share):
    schedule = rates(num_steps, warmup_share, final_share)
    assert all(0 < rate <= 1 + 1e-12 or (rate == 0 and final_share == 0) for rate in schedule)
    falling = [later < earlier - 1e-12 for earlier, later in itertools.pairwise(schedule)]
    assert falling == sorted(falling)


def test_larger_models_learn_slower_by_default():
    """The rule's two anchors: 2e-3 at 2 M parameters, about 6e-4 at 110 M."""
    assert default_learning_rate(2_000_000) == pytest.approx(2e-3)
    assert default_learning_rate(110_000_000) == pytest.approx(6.0e-4, rel=0.01)
