import pytest
from pydantic import TypeAdapter, ValidationError

from potstill.quantize.settings import Float16, Int4, Int8, Keep, Scheme, label_of, repeated_labels

ADAPTER = TypeAdapter(Scheme)


def test_a_recipe_names_a_scheme_by_its_tag():
    assert ADAPTER.validate_python({"scheme": "float16"}) == Float16()
    assert ADAPTER.validate_python({"scheme": "int8", "group": 32}) == Int8(group=32)
    assert ADAPTER.validate_python({"scheme": "int4", "group": 128}) == Int4(group=128)


@pytest.mark.parametrize(
    "value",
    [
        {"scheme": "int9"},
        {"scheme": "int8", "group": 64},
        {"scheme": "int4", "group": 64},
        {"scheme": "float16", "group": 32},
        {"scheme": "q3_k", "group": 256},
        {"scheme": "int4", "keep": [""]},
        {"scheme": "int4", "method": "smoothquant"},
        {"scheme": "q3_k", "method": "gptq"},
        {"scheme": "int4", "method": {"kind": "rtn", "calibration_tokens": 5}},
        {"scheme": "int4", "method": {"kind": "gptq", "damping": 0}},
        {"scheme": "int8", "keep": [{"tensors": "*", "dtype": "int8"}]},
    ],
)
def test_what_no_file_could_hold_is_refused(value):
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"scheme": "float16"}, "float16"),
        ({"scheme": "bfloat16"}, "bfloat16"),
        ({"scheme": "int8"}, "int8"),
        ({"scheme": "int8-channel"}, "int8-channel"),
        ({"scheme": "int4"}, "int4"),
        ({"scheme": "int4", "group": 128}, "int4-g128"),
        ({"scheme": "int4", "group": 128, "keep": ["lm_head.weight"]}, "int4-g128-keep"),
        ({"scheme": "int4", "group": 128, "method": "gptq"}, "int4-g128-gptq"),
        ({"scheme": "int4", "method": {"kind": "awq", "steps": 5}, "keep": ["*"]}, "int4-awq-keep"),
        ({"scheme": "int8-channel", "method": "smoothquant"}, "int8-channel-smoothquant"),
        ({"scheme": "q3_k", "method": "search"}, "q3_k-search"),
        ({"scheme": "q3_k"}, "q3_k"),
        ({"scheme": "q2_k"}, "q2_k"),
    ],
)
def test_a_label_begins_with_the_dtype(value, label):
    assert label_of(ADAPTER.validate_python(value)) == label


def test_two_groups_of_one_scheme_have_two_labels_and_twice_the_same_are_told():
    schemes = [Int8(), Int4(), Int4(group=128)]
    assert repeated_labels(schemes) == []
    assert repeated_labels([*schemes, Int4()]) == ["int4"]


def test_a_bare_pattern_keeps_float16():
    scheme = ADAPTER.validate_python({"scheme": "int4", "keep": ["a*", {"tensors": "b", "dtype": "int8"}]})
    assert scheme.keep == (Keep(tensors="a*"), Keep(tensors="b", dtype="int8"))
