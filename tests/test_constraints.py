"""constraints.txt pins everything that ``make setup`` installs."""

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
)

PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


def test_the_whole_closure_is_pinned():
    """Every distribution that potstill and its extras need on this machine, directly or not, has its version there."""
    missing, waiting, seen = set(), [("potstill", frozenset({"dev", "hub"}))], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != "potstill" and name not in PINNED:
            missing.add(name)
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            asked = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""})
            if asked and not needed.name.startswith(PINNED_BY_TORCH):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert not missing


def test_this_environment_is_the_pinned_one():
    """What is installed here is what is pinned, so that what passes here is what users get."""
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in PINNED if _is_installed(name)}
    assert installed == {name: PINNED[name] for name in installed}


def test_pins_are_exact_and_portable():
    """No range, no local build, no path, no index: the file holds on any machine."""
    for version in PINNED.values():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version)
    assert PINNED["torch"] == "2.13.0"


def _is_installed(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
