import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.core.errors import InputError
from potstill.data import docstrings
from potstill.data.docstrings import docstring_texts, docstring_versions, docstrings_of

SOURCE = '''
"""The module."""
if True:
    class Thing:
        """The class."""
        def method(self):
            """The method."""
            def inner():
                """A function inside a function."""
async def go():
    "The coroutine."
add_docstr(thing, r"""The attached \\d docstring.""")
other("""Not attached.""")
x = """Not a docstring."""
'''


def test_docstrings_of_modules_classes_functions_and_compiled_code_are_found():
    assert list(docstrings_of(SOURCE)) == [
        "The module.",
        "The class.",
        "The method.",
        "The coroutine.",
        "The attached \\d docstring.",
    ]


def test_invalid_escapes_in_other_peoples_code_warn_nobody():
    """Tests run with warnings as errors, so a warning here would raise."""
    assert list(docstrings_of('"""The \\d docstring."""')) == ["The \\d docstring."]


def test_a_file_that_is_no_python_costs_only_itself(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text('def (:\n"""' + "This is a sentence of the text. " * 20 + '"""', encoding="utf-8")
    latin = tmp_path / "latin.py"
    latin.write_bytes(b'"""' + b"caf\xe9 " * 100 + b'"""')
    assert docstrings._texts_of_file(str(bad)) == []
    assert docstrings._texts_of_file(str(latin)) == []
    assert docstrings._texts_of_file(str(tmp_path / "missing.py")) == []


def test_an_empty_docstring_costs_no_more_than_itself(tmp_path: Path):
    path = tmp_path / "module.py"
    text = "This is the only sentence that the file has. " * 9
    path.write_text(f'"""{text}"""\ndef f():\n    """   """\n', encoding="utf-8")
    assert len(docstrings._texts_of_file(str(path))) == 1


def test_generated_files_and_tables_are_left_out():
    text = '"""' + "This is a sentence of the text. " * 20 + '"""\n'
    assert docstrings._is_worth_parsing(text)
    assert not docstrings._is_worth_parsing("# This file was automatically generated from x.\n" + text)
    assert not docstrings._is_worth_parsing(text + "x = 1\n" * 2000)
    assert not docstrings._is_worth_parsing('"""Short."""\n')


def test_a_docstring_is_one_passage(tmp_path: Path):
    """Its paragraphs belong together: rows may take sentences of both, and no side gets half of it."""
    path = tmp_path / "module.py"
    first, second = "This is the first of the paragraphs. " * 6, "This is the second of the paragraphs. " * 6
    path.write_text(f'"""{first}\n\n{second}"""\n', encoding="utf-8")
    assert docstrings._texts_of_file(str(path)) == [f"{first.strip()} {second.strip()}"]


def test_the_text_of_a_package_is_prose_and_the_same_under_another_hash_seed():
    """Order and content depend on the packages alone, not on the process that reads them."""
    here = list(docstring_texts(["pydantic"]))
    assert len(here) > 100
    assert len(set(here)) == len(here)
    code = (
        "import json; from potstill.data.docstrings import docstring_texts as read;"
        "print(json.dumps(list(read(['Pydantic']))))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4321"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert _digest(json.loads(done.stdout)) == _digest(here)


def test_versions_name_the_standard_library_and_leave_potstill_out():
    start = time.perf_counter()
    versions = docstring_versions(None)
    assert time.perf_counter() - start < 1.0
    assert versions["python"]
    assert "numpy" in versions
    assert "potstill" not in versions
    assert list(versions) == sorted(versions)


def test_the_standard_library_has_files_and_no_tests():
    files = docstrings._python_files(None)
    assert len(files) > 200
    assert not [path for path in files if "/test/" in path or "site-packages" in path]


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="no such package is installed: no-such-thing"):
        docstring_versions(["numpy", "no_such.thing"])


def _digest(paragraphs: list[str]) -> str:
    return hashlib.sha256("\n".join(paragraphs).encode()).hexdigest()
