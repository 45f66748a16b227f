"""Keeping transformers' own log lines and progress bars off the terminal while it works for us."""

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

__all__ = ["quiet_hub", "quiet_transformers"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only and no progress bars inside the block; what was set before holds again after it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(python_logging.CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def quiet_hub() -> Iterator[None]:
    """No download bars inside the block."""
    bars = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not bars:
            enable_progress_bars()
