"""Is this directory a model that can be read safely? Answered from its small files and headers, before any loading."""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.durable import read_json
from potstill.core.errors import InputError, RemoteError

__all__ = ["TOKENIZER_FILES", "check_config", "check_model", "check_tokenizer", "locate", "weight_files"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
)
_VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json"}
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
_INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: str | Path, *, only: tuple[str, ...] = ("*.json", "*.safetensors", *TOKENIZER_FILES)) -> Path:
    """The directory of a model: the one named, or the hub's snapshot in the local cache, fetched where needed.

    Raises: InputError: no such directory, and no hub id either. RemoteError: the hub refused or can't be reached.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError("is a file, not a model's directory", where=str(model), next_step="name its directory")
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        raise InputError("there is no such directory", where=str(model), next_step="check the path")
    return _fetch(model, only)


def _fetch(hub_id: str, only: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where the hub is asked
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    from potstill.model.quiet import quiet_hub  # noqa: PLC0415 - the same

    advice = "check the name, or download it where there is a network and give the directory"
    try:
        with quiet_hub():
            return Path(snapshot_download(hub_id, allow_patterns=list(only)))
    except HFValidationError as error:
        raise InputError("is neither a directory nor a hub id", where=hub_id, next_step="check the path") from error
    except (OSError, _http_error(HfHubHTTPError)) as error:
        off = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else " ".join(str(error).split())[:300]
        what = f"there is no directory of this name, and the hub didn't give a model: {off}"
        raise RemoteError(what, where=hub_id, next_step=advice) from error


def _http_error(hub_error: type[Exception]) -> type[Exception]:
    """The base error of whichever HTTP library the hub's client is built on: httpx, or a successor."""
    return next((base for base in hub_error.__bases__ if base is not OSError), hub_error)


def check_model(directory: Path) -> None:
    """Check that a directory holds a config and whole safetensors, and asks for nobody's code.

    Raises: InputError: naming the file, what is wrong with it, and what to do.
    """
    check_config(directory / "config.json")
    if (directory / "adapter_config.json").exists():
        raise InputError(
            "is an adapter on top of another model",
            where=str(directory),
            next_step="merge it into its base model with peft's merge_and_unload, save that, and give its directory",
        )
    for path in weight_files(directory):
        _check_safetensors(path)


def check_config(path: Path) -> Mapping[str, Any]:
    """Read a ``config.json`` that asks for nobody's code.

    Raises: InputError: it is missing, no JSON object, without a model type, or names code to run.
    """
    if not path.is_file():
        raise InputError(
            "there is no config.json, so this is no model directory",
            where=str(path.parent),
            next_step="give the directory that save_pretrained wrote, config.json and model.safetensors in it",
        )
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError("is no model config: it names no model_type", where=str(path))
    _refuse_code(config, path)
    return config


def check_tokenizer(directory: Path) -> None:
    """Check that a directory holds a tokenizer that asks for nobody's code.

    Raises: InputError: it doesn't.
    """
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise InputError(
            "holds no tokenizer",
            where=str(directory),
            next_step="put the model's tokenizer.json and tokenizer_config.json beside its config.json",
        )
    for name in ("tokenizer_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            _refuse_code(read_json(path), path)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in the order of their names.

    Raises: InputError: there are none, or the index names a file that is missing or outside the directory.
    """
    if (directory / _INDEX).is_file():
        return _shards(directory)
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    unsafe = sorted(path.name for pattern in _UNSAFE for path in directory.glob(pattern))
    if unsafe:
        raise InputError(
            f"has its weights only as {unsafe[0]}, a format that can run code when it is read",
            where=str(directory),
            next_step="convert it where you trust it: load it with transformers, then save_pretrained(...)",
        )
    raise InputError("there is no model.safetensors", where=str(directory), next_step="copy the weights beside it")


def _shards(directory: Path) -> list[Path]:
    index = directory / _INDEX
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("names no weights", where=str(index), next_step="download the model again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", name):
            what = f"names the file {name!r}; a shard is a .safetensors file beside the index"
            raise InputError(
                what, where=str(index), next_step="don't use this model: such an index isn't made by tools"
            )
        if not (directory / name).is_file():
            raise InputError("is missing", where=str(directory / name), next_step="download the model again")
    return [directory / name for name in names]


def _check_safetensors(path: Path) -> None:
    """Check that a safetensors file has all the bytes that its header promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if header_bytes > size - 8:
            raise _damaged(path, f"ends after {size:,} bytes, within its header")
        try:
            header = json.loads(file.read(header_bytes))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(path, f"has a header that is no safetensors header: {error}") from error
    expected = 8 + header_bytes + max(ends, default=0)
    if size != expected:
        raise _damaged(path, f"has {size:,} bytes where its header promises {expected:,}")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(what, where=str(path), next_step="copy or download the file again: it is incomplete or damaged")


def _refuse_code(config: Any, path: Path) -> None:  # noqa: ANN401 - any JSON value
    if not isinstance(config, dict):
        raise InputError("is no JSON object", where=str(path))
    if "auto_map" in config:
        raise InputError(
            f"asks to run code that comes with the model (auto_map: {config['auto_map']})",
            where=str(path),
            next_step="if transformers has the architecture itself, delete auto_map from the file; potstill runs no "
            "code out of models",
        )
    kernel = config.get("attn_implementation", config.get("_attn_implementation"))
    if isinstance(kernel, str) and "/" in kernel:
        what = f"asks for an attention kernel from the hub ({kernel})"
        raise InputError(what, where=str(path), next_step="delete that key from the file")
