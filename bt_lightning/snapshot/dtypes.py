"""Maps torch dtypes to the names in a safetensors header, and back.

Source: the table `Dtype` of safetensors 0.8. A dtype without a name there is stored as `U8` with
one more dimension for the bytes of an item; `trainer.json` names the real dtype.
"""

from __future__ import annotations

from typing import Final

import torch

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}

SAFETENSORS: Final[dict[torch.dtype, str]] = {
    getattr(torch, name): stored for name, stored in _NAMES.items() if hasattr(torch, name)
}
TORCH: Final[dict[str, torch.dtype]] = {stored: dtype for dtype, stored in SAFETENSORS.items()}


def plain_dtype(name: str) -> torch.dtype | None:
    """The dtype `torch.<name>`; None if there is none, or if it is quantized."""
    dtype = vars(torch).get(name)  # getattr may import a module that a file names
    if not isinstance(dtype, torch.dtype) or is_quantized(dtype):
        return None
    return dtype


def is_quantized(dtype: torch.dtype) -> bool:
    """Whether a tensor of this dtype also has scales and zero points."""
    return str(dtype).startswith(("torch.qint", "torch.quint"))
