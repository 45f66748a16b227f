"""Writes worked_sums.jsonl: problems in words, and what a black-box teacher (a program that explains) answers to them.

    python recipes/answers/make_worked_sums.py > recipes/answers/worked_sums.jsonl

It stands for any teacher that nobody can load: all that is left of it are its answers.
"""

import json
import random
import sys
from collections.abc import Iterator

_NAMES = ("Ada", "Ben", "Chloe", "Dan", "Eve", "Finn", "Grace", "Hugo", "Iris", "Jon", "Kim", "Leo")
_THINGS = ("apples", "books", "candles", "coins", "eggs", "letters", "marbles", "pencils", "shells", "stamps")


def _buys(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    bags, each, lost = rng.randint(2, 12), rng.randint(2, 12), rng.randint(1, 3)
    total = bags * each
    question = f"{name} buys {bags} bags with {each} {thing} in each and loses {lost}. How many {thing} are left?"
    answer = (
        f"{bags} bags with {each} {thing} in each are {bags} * {each} = {total} {thing}. "
        f"{name} loses {lost}, so {total} - {lost} = {total - lost} {thing} are left. The answer is {total - lost}."
    )
    return question, answer


def _shares(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    friends, each, kept = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 9)
    shared = friends * each
    question = (
        f"{name} has {shared + kept} {thing}, keeps {kept} and shares the rest among {friends} friends. "
        "How many does each get?"
    )
    answer = (
        f"After keeping {kept}, {name} has {shared + kept} - {kept} = {shared} {thing} to share. "
        f"Among {friends} friends that is {shared} / {friends} = {each} {thing} for each. The answer is {each}."
    )
    return question, answer


def _together(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(_NAMES, 2)
    thing, some, more = rng.choice(_THINGS), rng.randint(3, 40), rng.randint(2, 20)
    other = some + more
    question = (
        f"{first} has {some} {thing}. {second} has {more} more than {first}. How many {thing} do they have together?"
    )
    answer = (
        f"{second} has {some} + {more} = {other} {thing}. "
        f"Together they have {some} + {other} = {some + other} {thing}. The answer is {some + other}."
    )
    return question, answer


def worked_sums(number: int, seed: int) -> Iterator[dict[str, str]]:
    """Distinct problems with their answers, the same ones for the same seed."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < number:
        question, answer = rng.choice((_buys, _shares, _together))(rng)
        if question not in seen:
            seen.add(question)
            yield {"question": question, "answer": answer}


if __name__ == "__main__":
    for row in worked_sums(2000, seed=0):
        sys.stdout.write(json.dumps(row) + "\n")
