"""English prose that every machine with Python has: the docstrings of installed packages and the standard library.

Files are parsed with ``ast``; nothing is imported or run. Two subprocesses share the files (``python -m`` this module:
each reads a list of paths and answers with prose), because parsing is nearly all of the time.

The prose of one docstring is one passage: its paragraphs belong together, and rows of whole sentences fill better.
"""

import ast
import gc
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from potstill.core.errors import BugError, InputError
from potstill.data.prose import prose_paragraphs

__all__ = ["docstring_texts", "docstring_versions", "docstrings_of"]

STANDARD_LIBRARY = "python"
_PROCESSES = 2
_LARGEST_FILE_BYTES = 2_000_000  # larger ones are generated tables
_FEWEST_QUOTED = 300  # characters between triple quotes, below which a file isn't worth parsing
_SMALLEST_QUOTED_SHARE = 0.1  # likewise; a quarter of all source, and a twentieth of what is quoted
_GENERATED = re.compile(r"(?:automatically|auto-?) ?(?:generated|written)|DO NOT EDIT", re.IGNORECASE)
_HEADER_CHARACTERS = 1_000
_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
_LEFT_OUT = re.compile(
    r"(?:tests?|testing|_?vendor(?:ed)?|third_party|_?bundled|externals?|benchmarks?|examples?|site-packages"
    r"|__pycache__|idle_test|lib2to3|turtledemo|test_.*|.*_tests?\.py|conftest\.py)"
)
_ATTACHING = frozenset({"add_docstr", "_add_docstr", "add_docstr_all", "add_newdoc", "_add_newdoc"})


def docstring_versions(packages: Sequence[str] | None) -> dict[str, str]:
    """Name and version of every package that the text comes from, in the order of the names.

    Raises: InputError: a package of ``packages`` isn't installed.
    """
    versions = {name: found.version for name, found in _distributions().items()}
    versions[STANDARD_LIBRARY] = platform.python_version()
    if packages is None:
        return dict(sorted(versions.items()))
    chosen = {_normal_name(name) for name in packages}
    missing = sorted(chosen - versions.keys())
    if missing:
        raise InputError(
            f"no such package is installed: {', '.join(missing)}",
            where="data.source.packages",
            next_step=f"write names as pip list shows them, and {STANDARD_LIBRARY} for the standard library",
        )
    return dict(sorted((name, version) for name, version in versions.items() if name in chosen))


def docstring_texts(packages: Sequence[str] | None) -> Iterator[str]:
    """Distinct docstrings' prose, package by package in the order of names, file by file in the order of paths."""
    distributions = _distributions()
    paths = [path for name in docstring_versions(packages) for path in _python_files(distributions.get(name))]
    yield from dict.fromkeys(text for found in _in_subprocesses(paths) for text in found)


def docstrings_of(source: str) -> Iterator[str]:
    """The docstrings of a module's source: of the module, its classes and their functions, and attached ones.

    Functions inside functions are left out: they seldom explain themselves. An attached docstring is one that a call
    such as ``add_docstr(function, "...")`` gives to compiled code.

    Raises: SyntaxError, ValueError: the source is no Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
        elif isinstance(node, ast.Expr):
            yield from _attached(node.value)
        if isinstance(node, _HOLDERS):
            for name in ("finalbody", "handlers", "orelse", "body"):
                waiting.extend(reversed(getattr(node, name, ())))


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_HOLDERS = (ast.Module, ast.ClassDef, ast.If, ast.For, ast.With, ast.Try, ast.ExceptHandler)


def _attached(call: ast.expr) -> Iterator[str]:
    if not isinstance(call, ast.Call):
        return
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in _ATTACHING:
        return
    texts = [
        part.value
        for argument in call.args
        for part in ast.walk(argument)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    if texts:
        yield max(texts, key=len)


def _texts_of_file(path: str) -> list[str]:
    try:
        source = Path(path).read_text(encoding="utf-8")
        docstrings = list(docstrings_of(source)) if _is_worth_parsing(source) else []
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []  # a template or another Python's file in some package; the next file serves as well
    joined = (" ".join(prose_paragraphs(docstring)) for docstring in docstrings)
    return [text for text in joined if text]


def _is_worth_parsing(source: str) -> bool:
    """Whether a file was written by people and explains itself; generated ones repeat what they were made from."""
    if _GENERATED.search(source[:_HEADER_CHARACTERS]):
        return False
    num_quoted = sum(len(double) + len(single) for double, single in _TRIPLE_QUOTED.findall(source))
    return num_quoted >= max(_FEWEST_QUOTED, _SMALLEST_QUOTED_SHARE * len(source))


def _in_subprocesses(paths: Sequence[str]) -> list[list[str]]:
    """The prose of each file's docstrings, in the order of ``paths``."""
    found: list[list[str]] = [[] for _ in paths]
    with ThreadPoolExecutor(_PROCESSES) as threads:
        shares = [paths[first::_PROCESSES] for first in range(_PROCESSES)]
        for first, answer in enumerate(threads.map(_ask_subprocess, shares)):
            found[first::_PROCESSES] = answer
    return found


def _ask_subprocess(paths: Sequence[str]) -> list[list[str]]:
    command = [sys.executable, "-m", "potstill.data.docstrings"]
    done = subprocess.run(command, input=json.dumps(paths).encode(), stdout=subprocess.PIPE, check=False)  # noqa: S603 - ourselves
    if done.returncode != 0:
        raise BugError(f"reading docstrings ended with exit code {done.returncode}")
    answer: list[list[str]] = json.loads(done.stdout)
    return answer


def _distributions() -> Mapping[str, importlib.metadata.Distribution]:
    """Installed distributions by normal name; editable ones, and so potstill itself while it is worked on, left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = _normal_name(distribution.metadata["Name"] or "")
        if name and name != "potstill" and name not in found and not _is_editable(distribution):
            found[name] = distribution
    return found


def _is_editable(distribution: importlib.metadata.Distribution) -> bool:
    origin = distribution.read_text("direct_url.json")
    return origin is not None and bool(json.loads(origin).get("dir_info", {}).get("editable"))


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_files(distribution: importlib.metadata.Distribution | None) -> list[str]:
    """The files of a distribution, or of the standard library, that may hold docstrings, ordered by path."""
    if distribution is None:
        root = Path(sysconfig.get_path("stdlib"))
        names = [path.relative_to(root) for path in root.rglob("*.py")]
        return [str(root / path) for path in sorted(names) if _is_wanted(path, root / path)]
    files = distribution.files or []
    located = sorted((PurePath(str(file)), Path(str(file.locate()))) for file in files if file.suffix == ".py")
    return [str(path) for inside, path in located if _is_wanted(inside, path)]


def _is_wanted(inside: PurePath, path: Path) -> bool:
    if any(part == ".." or _LEFT_OUT.fullmatch(part) for part in inside.parts):
        return False
    try:
        return 0 < path.stat().st_size <= _LARGEST_FILE_BYTES
    except OSError:
        return False


def _serve() -> None:
    gc.disable()  # the collector walks syntax trees for nothing; they hold no cycles
    json.dump([_texts_of_file(path) for path in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    _serve()
