"""What is a built model made of? Counted weight by weight, on any device, the meta device included."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.core.errors import InputError, ResourceError
from potstill.model.inspect import BYTES_PER_BLOCK, COLUMNS_PER_BLOCK, Inspection
from potstill.model.quiet import quiet_transformers

__all__ = ["inspect_model", "inspect_unbuilt"]


def inspect_unbuilt(file: Path) -> Inspection:
    """Inspect the model that a config.json describes, built without memory.

    Raises: InputError: an unknown or no causal architecture. ResourceError: it needs a package that isn't installed.
    """
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                built: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise ResourceError(f"needs a package that isn't installed: {error}", where=str(file)) from error
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"describes no causal language model that transformers can build: {reason}",
            where=str(file),
            next_step="give the config.json of a text-generating model",
        ) from error
    return inspect_model(built)


def inspect_model(model: PreTrainedModel) -> Inspection:
    """Inspect a model, on any device; on the meta device it costs no memory."""
    parts = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head", "other"), 0)
    sizes = dict.fromkeys(("float32", "float16", "int8", "int4"), 0)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            parts[_part_of(path, module, model)] += weight.numel()
            sizes["float32"] += 4 * weight.numel()
            sizes["float16"] += 2 * weight.numel()
            for scheme, block_bytes in BYTES_PER_BLOCK.items():
                sizes[scheme] += _quantized_bytes(weight, module, block_bytes)
    config = model.config.get_text_config()
    return Inspection(
        model_type=str(model.config.model_type),
        architecture=type(model).__name__,
        blocks=int(getattr(config, "num_hidden_layers", 0) or 0),
        width=int(getattr(config, "hidden_size", 0) or 0),
        vocabulary=int(getattr(config, "vocab_size", 0) or 0),
        tied=parts["head"] == 0,
        parameters=sum(parts.values()),
        parts=parts,
        bytes=sizes,
    )


def _part_of(path: str, module: nn.Module, model: PreTrainedModel) -> str:
    """The part that a module's own weights belong to, by what it is and then by what it is called."""
    names = path.lower().split(".")
    if "norm" in type(module).__name__.lower() or "norm" in names[-1]:
        return "norms"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if module is model.get_output_embeddings():  # type: ignore[no-untyped-call]
        return "head"
    if any("attn" in name or "attention" in name for name in names):
        return "attention"
    if any(name in _MLP_NAMES or "expert" in name for name in names):
        return "mlp"
    return "other"


_MLP_NAMES = {"mlp", "ffn", "feed_forward", "block_sparse_moe", "fc1", "fc2", "fc_in", "fc_out"}


def _quantized_bytes(weight: nn.Parameter, module: nn.Module, block_bytes: int) -> int:
    """Bytes of a matrix whose rows divide into blocks of 32 columns; anything else stays in float32."""
    if weight.ndim != 2:
        return 4 * weight.numel()
    columns = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
    if columns % COLUMNS_PER_BLOCK:
        return 4 * weight.numel()
    return weight.numel() // COLUMNS_PER_BLOCK * block_bytes
