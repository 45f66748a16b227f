import subprocess
import sys

import pytest

from potstill.core.errors import RecipeError
from potstill.core.settings import parse_settings
from potstill.data.settings import Answers, DataSettings, Docstrings, Files, TeacherTokenizer, TrainTokenizer


def test_the_recipe_of_the_design_is_accepted():
    settings = parse_settings(
        DataSettings,
        {
            "source": {"kind": "docstrings"},
            "sentences": 4000,
            "tokens_per_sentence": 50,
            "tokenizer": {"kind": "train", "vocabulary": 4096},
        },
        source="r",
    )
    assert settings == DataSettings(tokenizer=TrainTokenizer(vocabulary=4096))
    assert settings.source == Docstrings()


def test_every_source_and_tokenizer_has_its_kind():
    settings = parse_settings(
        DataSettings,
        {"source": {"kind": "files", "paths": ["a.txt"]}, "tokenizer": {"kind": "teacher"}, "sentences": "10k"},
        source="r",
    )
    assert settings.source == Files(kind="files", paths=("a.txt",))
    assert settings.tokenizer == TeacherTokenizer(kind="teacher")
    assert settings.sentences == 10_000
    answers = {"kind": "answers", "paths": ["a.jsonl"], "prompt": "q", "answer": "m.solution"}
    assert isinstance(parse_settings(DataSettings, {"source": answers}, source="r").source, Answers)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"sentence": 3}, "did you mean 'sentences'"),
        ({"source": {"kind": "docstring"}}, "did you mean 'docstrings'"),
        ({"source": {"kind": "files", "paths": []}}, "paths"),
        ({"sentences": 0}, "sentences"),
        ({"validation_sentences": -1}, "validation_sentences"),
        ({"tokenizer": {"kind": "train", "vocabulary": 100}}, "vocabulary"),
        ({"on_bad_input": "ignore"}, "on_bad_input"),
    ],
)
def test_a_wrong_key_or_value_is_named(value, said):
    with pytest.raises(RecipeError, match=said):
        parse_settings(DataSettings, value, source="r")


def test_settings_and_fingerprints_import_neither_torch_nor_transformers():
    """A recipe is checked before anything heavy is loaded."""
    code = (
        "import sys, potstill.data.settings, potstill.data.sources; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
