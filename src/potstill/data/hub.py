"""Data sets of the Hugging Face hub, streamed through ``datasets``: data formats only, never a data set's own code."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from potstill.core import interrupt
from potstill.core.errors import RemoteError, ResourceError
from potstill.data.files import text_at
from potstill.data.passages import BadInput, Passage
from potstill.data.settings import Hub

__all__ = ["data_builder", "hub_facts", "hub_passages"]

_NETWORK = "look at the id and the network; a gated data set needs HF_TOKEN in the environment"
_READERS = frozenset({"Csv", "Json", "Parquet", "Text"})


def hub_passages(source: Hub, bad: BadInput) -> Iterator[Passage]:
    """One passage for each paragraph of each row, of the first ``rows`` rows.

    Raises: ResourceError: the extra ``hub`` isn't installed. RemoteError: the hub doesn't answer or has no such thing.
    """
    revision = hub_facts(source)["revision"]
    try:
        rows = data_builder(source.id, source.config, revision).as_streaming_dataset(split=source.split)
        for number, row in enumerate(islice(rows, source.rows), start=1):
            if number % 1_000 == 0:
                interrupt.check()
            text = text_at(row, source.field, f"{source.id} {source.split} row {number:,}", bad)
            if text is not None:
                yield from (Passage(block) for block in text.split("\n\n") if block.strip())
    except (OSError, ValueError, RuntimeError) as error:
        raise RemoteError(f"can't be read: {error}", where=f"hub data set {source.id}", next_step=_NETWORK) from error


def data_builder(name: str, config: str | None, revision: str | None) -> Any:  # noqa: ANN401 - datasets leaves it untyped
    """The reader that ``datasets`` chooses for a data set, if it is one of the four for plain data.

    Raises: RemoteError: it is another one, for images, audio, archives or scripts.
    """
    builder = _datasets().load_dataset_builder(name, config, revision=revision)
    kinds = {part.__name__ for part in type(builder).__mro__}
    if kinds.isdisjoint(_READERS):
        known = ", ".join(sorted(_READERS)).lower()
        raise RemoteError(f"is of no format that is read here: {known}", where=f"hub data set {name}")
    return builder


def hub_facts(source: Hub) -> Mapping[str, Any]:
    """The revision that the data set has now.

    Raises: RemoteError: the hub doesn't answer or has no such data set. ResourceError: the extra isn't installed.
    """
    _datasets()
    from huggingface_hub import HfApi  # noqa: PLC0415 - only this source needs it
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - likewise

    try:
        found = HfApi().dataset_info(source.id, revision=source.revision)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RemoteError(f"can't be found: {error}", where=f"hub data set {source.id}", next_step=_NETWORK) from error
    return {"id": source.id, "revision": found.sha}


def _datasets() -> Any:  # noqa: ANN401 - an optional package without types
    try:
        import datasets  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ResourceError(
            "hub data sets need the package datasets", where="data.source", next_step="pip install 'potstill[hub]'"
        ) from error
    return datasets
