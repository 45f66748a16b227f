import pytest
from pydantic import TypeAdapter, ValidationError

from potstill.quantize.settings import Float16, Int8, Scheme


def test_a_recipe_names_a_scheme_by_its_tag():
    adapter = TypeAdapter(Scheme)
    assert adapter.validate_python({"scheme": "float16"}) == Float16()
    assert adapter.validate_python({"scheme": "int8"}) == Int8(group=32)


@pytest.mark.parametrize(
    "value", [{"scheme": "int9"}, {"scheme": "int8", "group": 64}, {"scheme": "float16", "group": 32}]
)
def test_what_no_file_could_hold_is_refused(value):
    with pytest.raises(ValidationError):
        TypeAdapter(Scheme).validate_python(value)
