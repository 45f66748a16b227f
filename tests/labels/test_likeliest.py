"""The likeliest token, found again by its place among the draws."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.labels.likeliest import NOT_AMONG_THEM, likeliest_of, rank_among


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 30))
def test_rank_is_the_place_among_the_most_drawn(draws, token):
    """Against a counter sorted by count and id; what has a rank below 15 is found by it again."""
    draws_1N = np.sort(np.array([draws]), axis=1)
    order = sorted(Counter(draws), key=lambda drawn: (-Counter(draws)[drawn], drawn))
    expected = min(order.index(token), NOT_AMONG_THEM) if token in draws else NOT_AMONG_THEM
    ranks_1 = rank_among(draws_1N, np.array([token]))
    assert ranks_1.tolist() == [expected]
    if expected < NOT_AMONG_THEM:
        assert likeliest_of(draws_1N, ranks_1).tolist() == [token]
