"""Local files as text: ``.txt``, ``.jsonl``, ``.parquet``. Reading is bounded; what is unusable is named.

A file is read row by row, so a corpus may be larger than memory; what comes out is not kept here.
"""

import codecs
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from potstill.core import interrupt
from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError, ResourceError
from potstill.data.passages import BadInput, Passage
from potstill.data.settings import Answers, Files

__all__ = [
    "LONGEST_LINE_BYTES",
    "TABLE_SUFFIXES",
    "answer_passages",
    "file_facts",
    "file_passages",
    "find_files",
    "text_at",
]

LONGEST_LINE_BYTES = 16 << 20
TABLE_SUFFIXES = (".jsonl", ".parquet")
_SUFFIXES = (".txt", *TABLE_SUFFIXES)


def find_files(patterns: Sequence[str], *, suffixes: Sequence[str] = _SUFFIXES) -> list[Path]:
    """The files that paths and globs name, pattern by pattern, each once, ordered by name within a pattern.

    Raises: InputError: a pattern matches nothing, or a file is of a kind that isn't read.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        literal = Path(pattern)
        names = [pattern] if literal.is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - relative to the current directory
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise InputError("no such file, and no file matches", where=pattern, next_step="look at data.source.paths")
        for path in files:
            if path.suffix.lower() not in suffixes:
                known = ", ".join(suffixes)
                raise InputError(f"is of no kind that is read here: {known}", where=str(path))
            found[path] = None
    return list(found)


def file_facts(patterns: Sequence[str], *, suffixes: Sequence[str] = _SUFFIXES) -> Mapping[str, Any]:
    """Size and sha256 of each file."""
    try:
        return {
            "files": [
                {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
                for path in find_files(patterns, suffixes=suffixes)
            ]
        }
    except OSError as error:
        raise _unreadable(error) from error


def file_passages(source: Files, bad: BadInput) -> Iterator[Passage]:
    """The paragraphs of text files, and one passage for each row of the others."""
    for path in find_files(source.paths):
        if path.suffix.lower() == ".txt":
            yield from _paragraphs(path, bad)
            continue
        for where, row in _rows(path, [source.field], bad):
            text = text_at(row, source.field, where, bad)
            if text is not None:
                yield from (Passage(block) for block in text.split("\n\n") if block.strip())


def answer_passages(source: Answers, bad: BadInput) -> Iterator[Passage]:
    """One passage a row, its prompt context only; white space at the ends of both goes."""
    for path in find_files(source.paths, suffixes=TABLE_SUFFIXES):
        for where, row in _rows(path, [source.prompt, source.answer], bad):
            prompt = text_at(row, source.prompt, where, bad)
            answer = text_at(row, source.answer, where, bad) if prompt is not None else None
            if prompt is None or answer is None:
                continue
            if not prompt.strip() or not answer.strip():
                bad.found(f"field {source.answer if prompt.strip() else source.prompt!r} is empty", where)
                continue
            yield Passage(answer.strip(), prompt=prompt.strip())


def text_at(row: object, field: str, where: str, bad: BadInput) -> str | None:
    """The text that a dotted field names; None, and ``bad`` is told, where there is none.

    A key that itself holds dots is found too: the whole name is tried first.
    """
    value: object = row
    if isinstance(row, dict) and field in row:
        value = row[field]
    else:
        for part in field.split("."):
            if not isinstance(value, dict) or part not in value:
                known = ", ".join(sorted(map(str, row))) if isinstance(row, dict) else type(row).__name__
                bad.found(f"no field {field!r}", f"{where} (there are: {known[:200]})")
                return None
            value = value[part]
    if not isinstance(value, str):
        bad.found(f"field {field!r} holds no text", f"{where} ({type(value).__name__})")
        return None
    return _cleaned(value, where, bad)


def _cleaned(text: str, where: str, bad: BadInput) -> str | None:
    """One kind of line end; None for text with NUL or half a surrogate pair, which no tokenizer takes."""
    if "\0" in text:
        bad.found("a NUL character", where)
        return None
    if any("\ud800" <= character <= "\udfff" for character in text):
        bad.found("half a surrogate pair, which is no character", where)
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")


def _paragraphs(path: Path, bad: BadInput) -> Iterator[Passage]:
    """Runs of lines between blank lines."""
    block: list[str] = []
    for where, line in _lines(path, bad):
        text = _cleaned(line, where, bad)
        if text is None:
            continue
        if text.strip():
            block.append(text)
        elif block:
            yield Passage("\n".join(block))
            block = []
    if block:
        yield Passage("\n".join(block))


def _lines(path: Path, bad: BadInput) -> Iterator[tuple[str, str]]:
    """Each line with its place; a line that is too long or no UTF-8 is told to ``bad``."""
    try:
        with path.open("rb") as file:
            number = offset = 0
            while line := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                size = len(line)
                if size > LONGEST_LINE_BYTES:
                    bad.found(f"a line of more than {LONGEST_LINE_BYTES >> 20} MiB", f"{path} line {number:,}")
                    size += _skip_line(file, line)
                    offset += size
                    continue
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)  # the mark is no text
                try:
                    yield f"{path} line {number:,}", line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    start = offset + size - len(line) + error.start
                    bad.found("no UTF-8", f"{path} byte {start:,} (line {number:,})")
                offset += size
                if number % 10_000 == 0:
                    interrupt.check()
    except OSError as error:
        raise _unreadable(error) from error


def _skip_line(file: IO[bytes], beginning: bytes) -> int:
    """Read on to the end of a line in bounded pieces; how many bytes that were."""
    num_bytes = 0
    piece = beginning
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(LONGEST_LINE_BYTES)
        num_bytes += len(piece)
    return num_bytes


def _rows(path: Path, fields: Sequence[str], bad: BadInput) -> Iterator[tuple[str, object]]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, fields)
        return
    for where, line in _lines(path, bad):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.found("no JSON", f"{where} ({error})")
            continue
        yield where, row


def _parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, object]]:
    """The rows with only the columns that ``fields`` need."""
    try:
        with pq.ParquetFile(path) as file:
            known = list(file.schema_arrow.names)
            columns = [field if field in known else field.split(".", maxsplit=1)[0] for field in fields]
            missing = [field for field, column in zip(fields, columns, strict=True) if column not in known]
            if missing:
                raise InputError(f"no column for {missing[0]!r}; there are: {', '.join(known)}", where=str(path))
            number = 0
            for batch in file.iter_batches(batch_size=1_000, columns=columns):
                interrupt.check()
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number:,}", row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"can't be read as parquet: {error}", where=str(path)) from error
    except OSError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError, path: Path | None = None) -> InputError | ResourceError:
    where = str(error.filename or path)
    if isinstance(error, PermissionError):
        return ResourceError("may not be read", where=where, next_step="look at its permissions")
    return InputError(f"can't be read: {error.strerror or error}", where=where)
