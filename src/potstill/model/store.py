"""Models on disk: ordinary Hugging Face directories, written durably and read without running anybody's code."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from potstill.core.durable import canonical_json, replacing, sha256_of_file, write_text
from potstill.core.errors import InputError, ResourceError
from potstill.model.directory import TOKENIZER_FILES, check_model, check_tokenizer, locate, weight_files
from potstill.model.quiet import quiet_transformers

__all__ = ["load_model", "load_tokenizer", "model_fingerprint", "save_model", "tokenizer_fingerprint"]


def load_model(model: str | Path, *, dtype: torch.dtype = torch.float32, check_finite: bool = True) -> PreTrainedModel:
    """Load a causal language model from a directory or the hub, in evaluation mode.

    Only safetensors are read, and no code that comes with a model ever runs. Weights that are missing, left over, of
    another shape, or (with ``check_finite``) NaN or infinite are refused, never replaced or passed over.

    Raises: InputError: the directory isn't such a model, or is damaged. RemoteError: the hub can't be reached.
        ResourceError: the model needs a package that isn't installed.
    """
    directory = locate(model)
    check_model(directory)
    try:
        with quiet_transformers():
            read: tuple[PreTrainedModel, dict[str, Collection[object]]] = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
                directory,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # refused below, with their names
                output_loading_info=True,
            )
    except ImportError as error:
        raise ResourceError(f"needs a package that isn't installed: {_line(error)}", where=str(directory)) from error
    except (StrictDataclassError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"can't be loaded as a causal language model: {_line(error)}", where=str(directory), next_step=_RESAVE
        ) from error
    loaded, info = read
    _refuse_unmatched(info, directory)
    if check_finite:
        _refuse_not_finite(loaded, directory)
    loaded.eval()  # type: ignore[no-untyped-call]
    return loaded


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory or hub id, without running any code that comes with it.

    Raises: InputError: there is none, or it is damaged. RemoteError: the hub can't be reached.
    """
    directory = locate(model)
    check_tokenizer(directory)
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except ImportError as error:
        raise ResourceError(f"needs a package that isn't installed: {_line(error)}", where=str(directory)) from error
    except Exception as error:  # tokenizers raises nothing narrower for a damaged file
        raise InputError(f"has no tokenizer that loads: {_line(error)}", where=str(directory)) from error
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer_dir: Path | None, out: Path, *, card: str | None = None) -> None:
    """Write a model, and the tokenizer of another directory, as an ordinary Hugging Face directory.

    Tied weights are stored once. The same model gives the same bytes. Every file is synced and put in its place in one
    step, weights first and ``config.json`` last, so a killed write leaves no directory that loads as something else;
    files of an earlier try are replaced, weights of another layout removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    with tempfile.TemporaryDirectory(prefix=".model.", suffix=".partial", dir=out) as staging:
        staged = Path(staging)
        with quiet_transformers():
            model.save_pretrained(staged)
        if tokenizer_dir is not None:
            for name in TOKENIZER_FILES:
                if (tokenizer_dir / name).is_file():
                    shutil.copyfile(tokenizer_dir / name, staged / name)
        write_text(staged / "README.md", card if card is not None else _card(model))
        names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == "config.json", name))
        (out / "config.json").unlink(missing_ok=True)
        for stale in (*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")):
            stale.unlink()
        for name in names:
            with replacing(out / name) as temporary:
                os.replace(staged / name, temporary)  # noqa: PTH105 - over what replacing() gave, on the same disk


def model_fingerprint(directory: Path) -> str:
    """Hexadecimal sha256 over what decides a model's logits: its config and its weight files.

    Raises: InputError: the directory holds no model.
    """
    check_model(directory)
    return _fingerprint([directory / "config.json", *weight_files(directory)])


def tokenizer_fingerprint(directory: Path) -> str:
    """Hexadecimal sha256 over a directory's tokenizer files.

    Raises: InputError: the directory holds no tokenizer.
    """
    check_tokenizer(directory)
    return _fingerprint([directory / name for name in TOKENIZER_FILES if (directory / name).is_file()])


def _remove_leftovers(out: Path) -> None:
    """Delete what a killed write left behind; nobody else writes here at the same time."""
    for leftover in out.glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


_RESAVE = "load it with transformers and save it again with save_pretrained"


def _fingerprint(files: list[Path]) -> str:
    digests = {path.name: sha256_of_file(path) for path in files}
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def _refuse_unmatched(info: Mapping[str, Collection[object]], directory: Path) -> None:
    problems = {
        "missing_keys": "lacks weights that its config asks for",
        "unexpected_keys": "holds weights that its config has no place for",
        "mismatched_keys": "holds weights of another shape than its config asks for",
    }
    for key, problem in problems.items():
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(f"{problem}: {shown}", where=str(directory), next_step=_RESAVE)


def _refuse_not_finite(model: PreTrainedModel, directory: Path) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"its weight {name} holds NaN or infinity",
                where=str(directory),
                next_step="take an earlier checkpoint: this one is the end of a training that diverged",
            )


def _card(model: PreTrainedModel) -> str:
    parameters = sum(weight.numel() for weight in model.parameters())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [potstill]
---
A causal language model of the {model.config.model_type} family with {parameters:,} parameters, made with potstill.
"""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
