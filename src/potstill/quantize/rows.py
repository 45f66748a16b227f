"""Work on the rows of a weight in chunks, a chunk per core.

Many small operations gain nothing from threads of their own, and lose much where cores are busy: so each chunk is
worked on by one thread. Chunks don't depend on the number of cores, and neither do results.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["in_chunks_of_rows"]

T = TypeVar("T")


def in_chunks_of_rows(function: Callable[[Tensor], T], weight_O: Tensor, num_rows: int) -> list[T]:
    """What ``function`` gives for every ``num_rows`` rows, in their order."""
    chunks = torch.split(weight_O, num_rows)
    threads = torch.get_num_threads()  # 1 inside of a chunk of another such call
    torch.set_num_threads(1)
    try:
        if len(chunks) == 1 or threads == 1:
            return [function(chunk) for chunk in chunks]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, chunks))
    finally:
        torch.set_num_threads(threads)
