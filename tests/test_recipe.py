"""A recipe is judged whole, before the first second of work."""

from pathlib import Path

import pytest

from potstill.core.errors import RecipeError
from potstill.recipe import Recipe, dump_recipe, load_recipe

PRUNED_AND_MATCHED = """
name: x
prune: {kind: structured, keep_parameters: 0.5}
student: {losses: [{kind: forward_kl}, {kind: hidden_states, blocks: [[0, 0]]}]}
"""
RECIPES = sorted(Path("recipes").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def written(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_command_time_and_result(path):
    load_recipe(path)
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"potstill run recipes/{path.name}" in header
    assert "Wall time:" in header
    assert "Expected:" in header


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_reads_back_equal(path, tmp_path):
    recipe = load_recipe(path)
    dumped = tmp_path / "again.yaml"
    dumped.write_text(dump_recipe(recipe))
    assert load_recipe(dumped) == recipe


def test_the_names_people_rely_on_are_read(write):
    recipe = load_recipe(
        write(
            "name: quickstart\nseed: 0\n"
            "data: {source: {kind: docstrings}, sentences: 4000, tokens_per_sentence: 50,"
            " tokenizer: {kind: train, vocabulary: 4096}}\n"
            "teacher: {kind: train, parameters: 3M, epochs: 4}\n"
            "labels: {kind: top_k, k: 32}\n"
            "student: {parameters: 500k, from: scratch, epochs: 10, losses: [{kind: forward_kl, weight: 1.0}]}\n"
            "prune: null\nquantize: [{scheme: float16}, {scheme: int8}]\nexport: [{format: gguf}]\n"
            'evaluate: {prompts: ["The function returns"], speed: true}\n'
        )
    )
    assert recipe.student.parameters == 500_000
    assert recipe.student.start == "scratch"


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("data.sentences=1000", lambda recipe: recipe.data.sentences == 1000),
        ("data.source={kind: files, paths: [a.txt]}", lambda recipe: recipe.data.source.paths == ("a.txt",)),
        ("quantize=[{scheme: int8}]", lambda recipe: len(recipe.quantize) == 1),
        ("quantize.0.scheme=int8", lambda recipe: recipe.quantize[0].scheme == "int8"),
        ("student.losses.0.weight=0.5", lambda recipe: recipe.student.losses[0].weight == 0.5),
        ("prune.keep_parameters=0.5", lambda recipe: recipe.prune.keep_parameters == 0.5),
    ],
)
def test_overrides_take_yaml_and_reach_into_lists(write, override, check):
    base = (
        "name: x\nquantize: [{scheme: float16}]\nprune: {kind: structured, keep_parameters: 0.7}\n"
        "student: {parameters: 1M, losses: [{kind: forward_kl}]}\n"
    )
    assert check(load_recipe(write(base), [override]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {sentense: 3}", "unknown key 'data.sentense'; did you mean 'sentences'"),
        ("name: x\nteacher: {kind: trian}", "no such kind 'trian'"),
        ("name: ../x", "name"),
        ("data: {}", "'name' is missing"),
        ("- 1", "no mapping"),
        ("name: [", "is no YAML"),
        ("name: x\nteacher: null\nlabels: {kind: top_k}", "labels need a teacher"),
        ("name: x\nlabels: null", "forward_kl needs"),
        ("name: x\nteacher: {kind: load, model: m}\ndata: {tokenizer: {kind: train}}", "reads its own tokens"),
        ("name: x\ndata: {tokenizer: {kind: teacher}}", "needs teacher: {kind: load"),
        ("name: x\nquantize: [{scheme: int8}, {scheme: int8}]", "two variants called int8"),
        ("name: x\nstudent: {parameters: 1k}", "too few for a vocabulary"),
        ("name: x\nstudent: {losses: [{kind: forward_kl, temperature: 2}]}", "truncated"),
        ("name: x\nstudent: {losses: [{kind: reverse_kl, temperature: 2}]}", "truncated"),
        ("name: x\nlabels: null\nstudent: {losses: [{kind: total_variation}]}", "total_variation needs"),
        ("name: x\nstudent: {losses: [{kind: jensen_shannon, alpha: 0.1}]}", "unknown key"),
        ("name: x\nstudent: {losses: [{kind: jensen_shannon, beta: 1}]}", "beta"),
        ("name: x\nstudent: {losses: [{kind: forward_kll}]}", "did you mean 'forward_kl'"),
        ("name: x\nstudent: {losses: [{kind: hidden_states}]}", "alone teaches no token"),
        (
            "name: x\nteacher: null\nstudent: {losses: [{kind: cross_entropy}, {kind: hidden_states}]}",
            "needs a teacher whose weights",
        ),
        (
            "name: x\nstudent: {losses: [{kind: forward_kl}, {kind: hidden_states, blocks: [[0, 99]]}]}",
            "a block that isn't there",
        ),
        (
            PRUNED_AND_MATCHED,
            "blocks: auto",
        ),
        ("name: x\nteacher: null\nprune: {kind: structured, keep_parameters: 0.5}", "prune heals"),
        ("name: x\nteacher: {kind: train, grow_from: {blocks: 90, epochs: 1}}", "no fewer than the teacher's"),
        ("name: x\nseed: -1", "seed"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(write, text, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["data.sentences", "=3", "quantize.7.scheme=int8", "name.x=1"])
def test_a_bad_override_is_named(write, override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(write("name: x\nquantize: [{scheme: float16}]"), [override])


def test_an_unreadable_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path / "binary.yaml")


def test_a_loaded_teacher_brings_its_tokenizer(write):
    recipe = load_recipe(write("name: x\nteacher: {kind: load, model: m}"))
    assert recipe.data.tokenizer.kind == "teacher"


def test_without_a_teacher_the_student_learns_the_true_tokens(write):
    recipe = load_recipe(write("name: x\nteacher: null"))
    assert recipe.labels is None
    assert [loss.kind for loss in recipe.student.losses] == ["cross_entropy"]


def test_hidden_states_are_matched_as_asked_for(write):
    losses = "[{kind: forward_kl}, {kind: hidden_states, match: mse, blocks: [[0, 1]], weight: 0.1}]"
    recipe = load_recipe(write(f"name: x\nlabels: {{kind: dense}}\nstudent: {{losses: {losses}}}"))
    assert recipe.student.losses[1].blocks == ((0, 1),)


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(name="x").seed = 3
