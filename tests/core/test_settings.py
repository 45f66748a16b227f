"""Wrong settings are answered with the key, the value and the nearest right spelling."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from potstill.core.errors import RecipeError
from potstill.core.settings import Count, Settings, parse_count, parse_settings


class Apple(Settings):
    kind: Literal["apple"]
    weight_g: float = 100.0


class Pear(Settings):
    kind: Literal["pear"]
    stalks: int = 1


class Basket(Settings):
    fruit: Annotated[Apple | Pear, Field(discriminator="kind")]
    number: Count = 1


@pytest.mark.parametrize(
    ("written", "number"), [("500k", 500_000), ("3M", 3_000_000), ("1.5B", 1_500_000_000), ("10_000", 10_000), (7, 7)]
)
def test_counts_are_read_as_people_write_them(written, number):
    assert parse_settings(Basket, {"fruit": {"kind": "apple"}, "number": written}, source="x").number == number


@pytest.mark.parametrize("written", ["3 Meg", "-1", "1e", "k", "0x10", [3], None, 2.5])
def test_what_is_no_count_is_refused(written):
    with pytest.raises(RecipeError, match="number"):
        parse_settings(Basket, {"fruit": {"kind": "apple"}, "number": written}, source="x")


@given(st.integers(0, 10**12))
def test_a_plain_number_is_its_own_count(number):
    assert parse_count(str(number)) == number


def test_an_unknown_key_is_answered_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"unknown key 'fruit.apple.wieght_g'; did you mean 'weight_g'\?"):
        parse_settings(Basket, {"fruit": {"kind": "apple", "wieght_g": 1}}, source="basket.yaml")


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(RecipeError, match=r"no such kind 'aple'.*did you mean 'apple'\?"):
        parse_settings(Basket, {"fruit": {"kind": "aple"}}, source="basket.yaml")


def test_a_missing_key_and_a_missing_kind_are_named():
    with pytest.raises(RecipeError, match="'fruit' is missing"):
        parse_settings(Basket, {}, source="basket.yaml")
    with pytest.raises(RecipeError, match="say which kind"):
        parse_settings(Basket, {"fruit": {}}, source="basket.yaml")


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        parse_settings(Basket, {"fruit": {"kind": "pear", "stalks": "many"}, "colour": "red"}, source="basket.yaml")
    assert "stalks" in str(caught.value)
    assert "colour" in str(caught.value)
