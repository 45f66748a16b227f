"""What the hardware multiplies natively."""

import torch

__all__ = ["bfloat16_is_native"]


def bfloat16_is_native(device: str) -> bool:
    """Whether products in bfloat16 are faster than in float32, not emulated by them."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001 - the only probe there is
