"""The rules of the house that a machine can hold: which way imports point, sizes, names, and what is never used."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "potstill"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"core"},
    {"data", "model"},
    {"labels"},
    {"distill", "teacher", "prune", "runtime"},
    {"quantize"},
    {"train", "export", "evaluate"},
    {"recipe", "report"},
    {"stages"},
    {"summary"},
    {"costs"},
    {"plan"},
    {"pipeline"},
    {
        "cli",
        "terminal",
        "tables",
        "variants",
        "environment",
        "continuation",
        "bench",
        "output",
        "one_model",
        "verb_quantize",
    },
    {"__main__"},
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}

TORCH_FREE = (  # and every settings.py
    "potstill.core",
    "potstill.report",
    "potstill.recipe",
    "potstill.cli",
    "potstill.terminal",
)

MOST_LINES_PER_FILE = 300
MOST_LINES_PER_FUNCTION = 50
LONG_FILES: dict[str, str] = {}  # path under src/potstill: why it isn't split
LONG_FUNCTIONS: dict[str, str] = {  # path::name: why it isn't split
    "report/variants.py::variant_panels": "six charts, one call each: a list to read down, without a step of its own",
}

BAD_NAMES = {"utils", "helpers", "common", "misc", "base", "manager", "handler", "types"}
BAD_IMPORTS = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib"}
BAD_CALLS = {"eval", "exec", "torch.load", "yaml.load", "os.system", "os.popen"}


def test_every_module_stands_in_the_layer_table():
    """A new package or module at the top must be given its place."""
    tops = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert tops <= set(LAYER_OF), f"not in the table: {sorted(tops - set(LAYER_OF))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_point_down(path):
    """A module imports its own package and lower layers; its own layer's other packages only for their settings."""
    own = _package(path)
    if own == "__init__":
        assert not list(_imports(path)), "importing potstill does no work"
        return
    wrong = [
        name
        for name in _imports(path)
        if (other := _top(name)) not in {own, None} and not _may_import(own, other, name)
    ]
    assert not wrong, f"{own} (layer {LAYER_OF[own]}) may not import {wrong}"


def test_packages_import_each_other_in_no_circle():
    """There is an order in which every package comes after all that it imports."""
    imports = {name: set() for name in LAYER_OF}
    for path in FILES:
        own = _package(path)
        if own in imports:
            imports[own] |= {_top(name) for name in _imports(path)} & set(LAYER_OF) - {own}
    waiting = dict(imports)
    while waiting:
        ready = {name for name, others in waiting.items() if not others & set(waiting)}
        assert ready, f"a circle among {sorted(waiting)}"
        waiting = {name: others for name, others in waiting.items() if name not in ready}


def test_settings_report_and_command_line_import_no_torch():
    """Reading a recipe or a run's files costs no second of imports, now or through anything imported on the way."""
    settings = [_module(path) for path in FILES if path.name == "settings.py"]
    modules = settings + [_module(path) for path in FILES if _module(path).startswith(TORCH_FREE)]
    program = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    program += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"


def test_importing_does_no_work():
    """No module calls anything for its effect at its top level: no logging, no devices, no environment."""
    calls = {
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        for node in _tree(path).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    }
    assert not calls


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_and_functions_stay_short(path):
    """At most 300 lines a file and 50 a function; an exception stands in the tables above, with its reason."""
    name = path.relative_to(SOURCE).as_posix()
    if name not in LONG_FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_PER_FILE
    long = [
        f"{name}::{node.name}"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES_PER_FUNCTION
    ]
    assert not set(long) - set(LONG_FUNCTIONS)


def test_no_exception_outlives_its_reason():
    """What is listed as long still is there and still is long."""
    for name in LONG_FILES:
        assert len((SOURCE / name).read_text(encoding="utf-8").splitlines()) > MOST_LINES_PER_FILE
    for entry in LONG_FUNCTIONS:
        name, function = entry.split("::")
        lengths = [
            (node.end_lineno or 0) - node.lineno + 1
            for node in ast.walk(_tree(SOURCE / name))
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        assert lengths
        assert max(lengths) > MOST_LINES_PER_FUNCTION


def test_names_say_what_a_file_is_for():
    """No file, folder or class is named for being a place to put things."""
    for path in FILES:
        for part in path.relative_to(SOURCE).parts:
            assert part.removesuffix(".py") not in BAD_NAMES, path
        classes = [node.name.lower() for node in ast.walk(_tree(path)) if isinstance(node, ast.ClassDef)]
        assert not [name for name in classes if name.endswith(("manager", "handler", "helper", "utils"))], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_nothing_that_runs_foreign_code(path):
    """No pickle, no torch.load, no trust_remote_code, no eval or exec, no yaml.load, no shell."""
    assert not {name.split(".")[0] for name in _imports(path)} & BAD_IMPORTS
    assert not list(_dangerous(_tree(path)))


def test_the_layer_table_is_the_documented_one():
    """docs/architecture.md shows these layers, in this order."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split() for line in page.splitlines() if re.match(r"[0-9]+  [a-z_]", line)]
    assert [set(row[1:]) for row in rows] == [set(layer) for layer in LAYERS]
    assert all(int(later[0]) == int(earlier[0]) + 1 for earlier, later in pairwise(rows))


def _may_import(own: str, other: str, name: str) -> bool:
    lower = LAYER_OF[other] < LAYER_OF[own]
    beside = LAYER_OF[other] == LAYER_OF[own]
    command_line = LAYER_OF[own] == LAYER_OF["cli"]
    return lower or (beside and (command_line or name.split(".")[2:3] == ["settings"]))


def _dangerous(tree: ast.AST) -> Iterator[str]:
    """Every place that turns data into running code, or would if the flag it names were not False."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle", "shell"}:
            if ast.unparse(node.value) != "False":
                yield f"{node.value.lineno}: {node.arg}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BAD_CALLS:
            yield f"{node.lineno}: {ast.unparse(node.func)}"


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; ``from a import b`` counts as a.b."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which way they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top(name: str) -> str | None:
    """The package or module of potstill that an imported name belongs to; None for anything else."""
    parts = name.split(".")
    return parts[1] if parts[0] == "potstill" and len(parts) > 1 and parts[1] in LAYER_OF else None


def _package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _module(path: Path) -> str:
    return ".".join(("potstill", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
