"""Which losses a recipe may ask for, and that asking costs no torch."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from potstill.core.errors import BugError, RecipeError
from potstill.distill.settings import (
    CrossEntropy,
    ForwardKl,
    JensenShannon,
    Loss,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    TotalVariation,
    block_pairs,
    check_losses,
    needs_labels,
    refusal,
)

DIVERGENCES = [ForwardKl(), ReverseKl(), JensenShannon(), SkewKl(), SkewReverseKl(), TotalVariation()]


def test_a_recipe_names_losses_by_their_kind():
    losses = TypeAdapter(tuple[Loss, ...]).validate_python(
        [{"kind": "forward_kl", "weight": 0.7}, {"kind": "cross_entropy"}]
    )
    assert losses == (ForwardKl(weight=0.7), CrossEntropy())


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": -1.0}, {"temperature": 0.0}])
def test_weights_and_temperatures_are_positive(wrong):
    with pytest.raises(ValidationError):
        ForwardKl(**wrong)


@pytest.mark.parametrize(
    ("losses", "label_kind", "said"),
    [
        ([], "top_k", "no loss"),
        ([ForwardKl(), ForwardKl(weight=2.0)], "top_k", "twice"),
        ([ForwardKl()], None, "soft labels"),
        ([ForwardKl(temperature=2.0)], "top_k", "truncated"),
        ([ForwardKl(temperature=2.0)], "sampled", "draws of one temperature"),
        ([SkewKl(temperature=0.5)], "top_k", "truncated"),
        ([ReverseKl()], "sampled", "never drawn"),
        ([CrossEntropy(), TotalVariation()], "sampled", "isn't linear"),
    ],
)
def test_losses_that_labels_cannot_carry_are_refused(losses, label_kind, said):
    with pytest.raises(RecipeError, match=said):
        check_losses(losses, label_kind)


@pytest.mark.parametrize(
    ("losses", "label_kind"),
    [
        ([ForwardKl(), CrossEntropy(weight=0.5)], "top_k"),
        ([ForwardKl(temperature=2.0)], "dense"),
        ([CrossEntropy()], None),
        ([ForwardKl(), CrossEntropy()], "sampled"),
        (DIVERGENCES, "dense"),
        (DIVERGENCES, "top_k"),
    ],
)
def test_losses_that_labels_carry_pass(losses, label_kind):
    check_losses(losses, label_kind)


def test_only_a_divergence_from_the_teacher_needs_labels():
    assert all(needs_labels([CrossEntropy(), divergence]) for divergence in DIVERGENCES)
    assert not needs_labels([CrossEntropy()])


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda divergence: divergence.kind)
def test_without_labels_no_divergence_passes(divergence):
    with pytest.raises(RecipeError, match=f"{divergence.kind} needs the teacher's soft labels"):
        check_losses([divergence], None)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": 1.0}])
def test_at_its_ends_jensen_shannon_is_no_divergence(wrong):
    with pytest.raises(ValidationError):
        JensenShannon(**wrong)


def test_a_pair_that_nobody_thought_of_is_a_bug():
    with pytest.raises(BugError, match="isn't said"):
        refusal("forward_kl", "compressed")


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "expected"),
    [
        (1, 6, [5]),
        (2, 6, [2, 5]),
        (4, 6, [1, 2, 4, 5]),
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [0, 0, 1, 1]),
        (3, 1, [0, 0, 0]),
        (2, 5, [2, 4]),
    ],
)
def test_the_automatic_map_goes_in_proportion_and_from_last_to_last(num_student, num_teacher, expected):
    assert [teacher for _, teacher in block_pairs("auto", num_student, num_teacher)] == expected


@given(num_student=st.integers(1, 60), num_teacher=st.integers(1, 60))
def test_the_automatic_map_never_goes_back(num_student, num_teacher):
    pairs = block_pairs("auto", num_student, num_teacher)
    assert [student for student, _ in pairs] == list(range(num_student))
    assert pairs[-1] == (num_student - 1, num_teacher - 1)
    matched = [teacher for _, teacher in pairs]
    assert matched == sorted(matched)
    assert matched[0] >= 0


@pytest.mark.parametrize("pair", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_block_that_is_not_there_is_named(pair):
    with pytest.raises(RecipeError, match=r"isn't there: the student has 2, the teacher 3"):
        block_pairs(((0, 0), pair), 2, 3)


def test_settings_import_no_torch():
    modules = "potstill.distill.settings, potstill.labels.settings, potstill.teacher.settings"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
