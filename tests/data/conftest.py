"""What the tests of the data family share: a stage that is run on a given text, and what it told its trace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from potstill.core.settings import parse_settings
from potstill.core.trace import Event, Trace
from potstill.data.settings import DataStageSettings
from potstill.data.stage import prepare_data


@dataclass
class DataRun:
    out: Path
    events: list[Event] = field(default_factory=list)

    def named(self, kind: str) -> list[Any]:
        return [event["value"] for event in self.events if event["kind"] == kind]


@pytest.fixture
def run_data(tmp_path: Path) -> Callable[..., DataRun]:
    """Run the data stage with the settings of a recipe, small by default."""

    def run(settings: Mapping[str, Any], name: str = "out", inputs: Mapping[str, Path] | None = None) -> DataRun:
        small = {"sentences": 20, "validation_sentences": 5, "test_sentences": 5, "tokens_per_sentence": 24}
        small |= {"shortest_sentence": 4, "tokenizer": {"kind": "train", "vocabulary": 400}}
        parsed = parse_settings(DataStageSettings, small | dict(settings), source="test")
        result = DataRun(tmp_path / name)
        result.out.mkdir(exist_ok=True)
        prepare_data(parsed, inputs or {}, result.out, Trace(listeners=[result.events.append]))
        return result

    return run


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A text file of 240 paragraphs of distinct sentences."""
    colours = ("red", "green", "blue", "grey", "brown", "white", "black", "pink")
    animals = ("fox", "hare", "owl", "toad", "crow")
    places = ("river", "hill", "barn", "forest", "road", "mill")
    paragraphs = [
        f"The {colour} {animal} lived by the {place}. Nobody had seen a {colour} {animal} near the {place} before."
        for colour in colours
        for animal in animals
        for place in places
    ]
    path = tmp_path / "story.txt"
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return path
