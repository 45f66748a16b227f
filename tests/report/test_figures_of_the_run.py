"""What the page derives from a run's figures: headline, questions, mistakes, doubts, panels."""

import math

import pytest

from potstill.report.charts import spread
from potstill.report.doubts import doubts
from potstill.report.flow import family, flow
from potstill.report.headline import headline
from potstill.report.mistakes import mistakes
from potstill.report.questions import questions, where_the_loss_came_from, why_not_a_quarter
from potstill.report.summary import Run, Stage, Summary
from potstill.report.training import cross_entropy_of, divergence_of, panels
from potstill.report.variants import by_dtype, reference_of, shipped, squares


def _plain(text):
    return text.replace("\u00a0", " ").replace("\u2011", "-")


def _doubts(summary):
    return doubts(Run(Summary.model_validate(summary), (), None, ()))


def test_the_headline_says_what_became_what(summary):
    """Parameters, bytes, ratio and agreement, all from the rows."""
    title = _plain(headline(Summary.model_validate(summary)).title)
    assert title == (
        "A 4.1 M-parameter teacher became a 1.1 M-parameter student. Its int8 file is 1.2 MB, 14 times smaller than "
        "the teacher’s, and agrees with the teacher on 71 % of held-out tokens."  # noqa: RUF001 - as on the page
    )


def test_the_headline_leaves_out_what_was_not_measured(summary):
    """Without a teacher's row there is nothing to be smaller than or to agree with."""
    summary["models"] = [row for row in summary["models"] if row["name"] != "teacher"]
    for row in summary["models"]:
        row["agreement_with_teacher"] = None
    title = _plain(headline(Summary.model_validate(summary)).title)
    assert title == "A 1.1 M-parameter student. Its int8 file is 1.2 MB."


def test_agreement_is_named_for_whom_it_is_measured_against(summary):
    """A run without a teacher's model compares with the student, and must not call that the teacher."""
    for row in summary["models"]:
        row["agreement_with_teacher"], row["agreement_with_student"] = None, 0.99
    assert reference_of(Summary.model_validate(summary).models) == "student"


def test_the_file_to_ship_is_the_smallest_students_gguf(summary):
    """Neither the twin nor another format of the same dtype."""
    summary["models"].append({"name": "twin", "format": "gguf", "dtype": "float32", "bytes": 10})
    model = shipped(Summary.model_validate(summary).models)
    assert (model.name, model.format) == ("student-int8", "gguf")


def test_areas_of_the_squares_are_bytes(summary):
    """The eye compares areas, so areas are to scale."""
    drawn = squares(Summary.model_validate(summary).models)
    assert drawn[0].side == 1
    for square in drawn:
        assert square.side**2 == pytest.approx(square.bytes / drawn[0].bytes)


def test_bytes_by_dtype_keep_formats_apart(summary):
    """A ratio is only taken between files of one model in one format."""
    rows = by_dtype(Summary.model_validate(summary).models)
    assert [(row.base, row.format) for row in rows] == [
        ("teacher", "safetensors"),
        ("student", "safetensors"),
        ("student", "gguf"),
    ]
    assert rows[1].bytes[1] is None


def test_three_questions_with_sums(summary):
    """A full run is asked about three times, each with arithmetic."""
    asked = questions(Summary.model_validate(summary))
    assert len(asked) == 3
    assert all(question.sums for question in asked)


def test_the_sum_behind_a_quarter(summary):
    """34 bytes for 32 weights is 0.2656 of float32; the measured ratio stands beside it."""
    question = why_not_a_quarter(Summary.model_validate(summary))
    small, full = summary["models"][5]["bytes"], summary["models"][2]["bytes"]
    assert "0.2656" in question.sums[1]
    assert f"{small / full:.4f}" in question.sums[3]


def test_losses_of_distilling_and_rounding_add_up(summary):
    """The two logarithms sum to the third."""
    question = where_the_loss_came_from(Summary.model_validate(summary))
    values = [float(line.split(" = ")[1].split()[0]) for line in question.sums]
    assert values[0] + values[1] == pytest.approx(values[2], abs=2e-4)
    assert values[0] == pytest.approx(math.log(56.7 / 48.1), abs=1e-4)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (("x", "x", "x"), "no mistake"),
        (("y", "y", "y"), "from the teacher"),
        (("x", "y", "y"), "from distilling: the teacher knew"),
        (("z", "y", "y"), "from distilling: the teacher was wrong too"),
        (("x", "x", "y"), "from int8"),
        (("x", "y", "x"), "int8 is right by luck"),
    ],
)
def test_a_mistake_belongs_to_whom_first_made_it(said, verdict):
    """Teacher, then student, then int8: the first to leave the truth is named."""
    names = ("teacher", "student", "student-int8")
    candidates = {name: [{"token": word, "probability": 0.5}] for name, word in zip(names, said, strict=True)}
    content = {"recipe": "r", "predictions": [{"prompt": "p", "true_next": "x", "candidates": candidates}]}
    (found,) = mistakes(Summary.model_validate(content).predictions)
    assert found.verdict.startswith(verdict)


def test_sound_figures_raise_no_doubt(summary):
    """The fixture's own figures contradict nothing."""
    assert _doubts(summary) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["models"][1].update(perplexity=0.5), "1 is certainty"),
        (lambda s: s["models"][1].update(perplexity_interval_95=[1.0, 2.0]), "outside its own"),
        (lambda s: s["models"][1].update(agreement_with_teacher=71.2), "no share of one"),
        (lambda s: s["models"][1].update(kl_to_teacher_nats=-0.3), "negative"),
        (lambda s: s["models"][5].update(bytes=9_000_000), "no smaller than the float32"),
        (lambda s: s["label_example"].update(tail_mass=0.9), "sums to"),
        (lambda s: s["training"]["student"].reverse(), "not in ascending order"),
        (lambda s: s.update(seconds=10.0), "more than the run's"),
    ],
)
def test_figures_that_contradict_one_another_are_named(summary, change, said):
    """Drawn, but never without saying so."""
    change(summary)
    assert any(said in doubt for doubt in _doubts(summary))


def test_divergence_and_cross_entropy_never_share_a_curve(summary):
    """A student's KL is not drawn among the cross-entropies; a mixed loss is taken for neither."""
    training = Summary.model_validate(summary).training
    assert divergence_of(training.teacher[0]) is None
    assert cross_entropy_of(training.student[0]) == pytest.approx(4.03 + 1.4 * math.exp(-0.45))
    mixed = training.student[0].model_copy(
        update={"loss": "forward_kl + cross_entropy", "validation_cross_entropy_nats": None}
    )
    assert divergence_of(mixed) is None
    assert cross_entropy_of(mixed) is None


def test_a_kl_on_top_k_labels_is_said_to_be_a_lower_bound(summary):
    """What training sees of the KL is less than what evaluation measures; the page never mixes them up."""
    parsed = Summary.model_validate(summary)
    assert "never more than the full KL" in panels(parsed.training, parsed.labels)[0].caption
    dense = parsed.labels.model_copy(update={"kind": "dense"})
    assert "never more" not in panels(parsed.training, dense)[0].caption


def test_a_loaded_teacher_has_no_curve(summary):
    """The other curves are still drawn."""
    summary["training"]["teacher"] = []
    parsed = Summary.model_validate(summary)
    drawn = panels(parsed.training, parsed.labels)
    assert drawn[0].title == "Distance to the teacher"
    assert "teacher from" not in drawn[1].drawing


def test_stations_follow_the_data(summary):
    """Text to file, in the order of the pipeline."""
    assert [station.name for station in flow(Summary.model_validate(summary))] == [
        "text",
        "tokens",
        "teacher",
        "soft labels",
        "student",
        "int8",
        "file",
    ]


def test_stages_are_known_by_their_step_whatever_their_number():
    """Numbers and suffixes of a stage's name carry no meaning here."""
    assert family(Stage(name="06-quantize-student")) == "quantize"
    assert family(Stage(name="labels")) == "labels"
    assert family(Stage(name="unheard of")) == ""


def test_labels_at_the_ends_of_curves_keep_their_distance():
    """Neighbours end up at least the gap apart, in their order."""
    placed = spread([0.50, 0.51, 0.9], [0, 1], 100, 13)
    assert placed[1] - placed[0] >= 0.13 - 1e-6
    assert placed[2] == 0.9
