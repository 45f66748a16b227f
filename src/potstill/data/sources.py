"""Where text comes from: one function per source, and what outside the recipe its text depends on."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from potstill.core.settings import Settings
from potstill.data.docstrings import docstring_texts, docstring_versions
from potstill.data.files import TABLE_SUFFIXES, answer_passages, file_facts, file_passages
from potstill.data.hub import hub_facts, hub_passages
from potstill.data.passages import BadInput, Passage
from potstill.data.settings import Answers, DataSettings, Docstrings, Files, Hub

__all__ = ["read_passages", "source_fingerprint"]


def _docstrings(source: Docstrings, _bad: BadInput) -> Iterator[Passage]:
    return map(Passage, docstring_texts(source.packages))


def _docstrings_facts(source: Docstrings) -> Mapping[str, Any]:
    return {"packages": docstring_versions(source.packages)}


_READERS: Mapping[type[Settings], Callable[[Any, BadInput], Iterator[Passage]]] = MappingProxyType(
    {Docstrings: _docstrings, Files: file_passages, Hub: hub_passages, Answers: answer_passages}
)
_FACTS: Mapping[type[Settings], Callable[[Any], Mapping[str, Any]]] = MappingProxyType(
    {
        Docstrings: _docstrings_facts,
        Files: lambda source: file_facts(source.paths),
        Hub: hub_facts,
        Answers: lambda source: file_facts(source.paths, suffixes=TABLE_SUFFIXES),
    }
)


def read_passages(settings: DataSettings, bad: BadInput) -> Iterator[Passage]:
    """The source's passages, in an order that depends on the source alone; what is unusable goes to ``bad``."""
    return _READERS[type(settings.source)](settings.source, bad)


def source_fingerprint(settings: DataSettings) -> Mapping[str, Any]:
    """Facts outside the recipe that the text depends on: versions of packages, digests of files, a revision.

    Raises: InputError: a package or a file isn't there.
    """
    return {"kind": settings.source.kind, **_FACTS[type(settings.source)](settings.source)}
