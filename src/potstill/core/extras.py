"""What to say where a package of an extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from potstill.core.errors import ResourceError

__all__ = ["needing"]


@contextmanager
def needing(package: str, extra: str) -> Iterator[None]:
    """Turn an ``ImportError`` inside the block into an error that names the extra.

    Raises: ResourceError: ``package``, or what it needs, isn't installed or can't be loaded.
    """
    try:
        yield
    except ImportError as error:
        raise ResourceError(
            f"isn't installed, or can't be loaded: {error}", where=package, next_step=f"pip install 'potstill[{extra}]'"
        ) from error
