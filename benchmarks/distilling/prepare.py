"""Text and teacher of a benchmark: the first stages of a recipe, made once and kept."""

from dataclasses import dataclass
from pathlib import Path

from potstill.core.trace import Trace
from potstill.data.facts import TokenFacts, token_facts
from potstill.data.sequences import PackedSequences
from potstill.recipe import Recipe, load_recipe
from potstill.stages import stage_fingerprint, stages_of

__all__ = ["Prepared", "prepare"]

RECIPES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")


@dataclass(frozen=True)
class Prepared:
    """A recipe whose text is packed and whose teacher is trained."""

    recipe: Recipe
    inputs: dict[str, Path]

    @property
    def tokens(self) -> TokenFacts:
        """Vocabulary and special tokens."""
        return token_facts(self.inputs["data"])

    def text(self, split: str) -> PackedSequences:
        """The rows of a split; of "train" the student's rows."""
        rows = PackedSequences.load(self.inputs["data"], split)
        return rows.first(self.recipe.data.sentences) if split == "train" else rows


def prepare(name: str, folder: Path) -> Prepared:
    """Run the stages data and teacher of a recipe in ``folder``, unless they were run there before.

    ``name`` is that of a file in the recipes of the benchmarks or of the project.
    """
    recipe = load_recipe(next(path for folder in RECIPES if (path := folder / f"{name}.yaml").exists()))
    folder.mkdir(parents=True, exist_ok=True)
    trace = Trace(folder / "trace.jsonl")
    fingerprints: dict[str, str] = {}
    for stage in stages_of(recipe)[:2]:
        inputs = {role: fingerprints[source] for role, source in stage.inputs.items()}
        fingerprint = fingerprints[stage.name] = stage_fingerprint(stage, recipe, inputs)
        out, made_from = folder / stage.name, folder / f"{stage.name}.fingerprint"
        if not made_from.exists() or made_from.read_text() != fingerprint:
            out.mkdir(exist_ok=True)
            stage.run({role: folder / source for role, source in stage.inputs.items()}, out, trace)
            made_from.write_text(fingerprint)
    return Prepared(recipe, {"data": folder / "01-data", "teacher": folder / "02-teacher"})
