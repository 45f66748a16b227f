"""What stands beside the weights in an exported folder, and how does the folder appear whole or not at all?"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.core.durable import write_json
from potstill.model.directory import TOKENIZER_FILES, check_config

__all__ = ["copy_companions", "folder_bytes", "replacing_folder"]

_COMPANIONS = ("generation_config.json", *TOKENIZER_FILES)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on a clean exit, put it in ``path``'s place.

    Raises: whatever the block raises, after removing the temporary folder.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_companions(source: Path, target: Path) -> None:
    """Copy config, generation config and tokenizer, so that the folder is complete for other programs."""
    write_json(target / "config.json", dict(check_config(source / "config.json")))
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
