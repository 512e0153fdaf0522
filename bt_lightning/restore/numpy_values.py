"""Decodes numpy dtypes, scalars and arrays; imports numpy only for such values."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def decode_scalar(node: dict[str, Any]) -> Any:
    """The scalar of a `numpy.scalar` node; ValueError if the number of bytes does not fit."""
    import numpy as np

    data, dtype = base64.b64decode(node["v"], validate=True), decode_dtype(node["dtype"])
    if dtype.itemsize and len(data) != dtype.itemsize:
        msg = f"a {dtype} of {len(data)} bytes"
        raise ValueError(msg)
    return np.frombuffer(data, dtype=dtype)[0] if dtype.itemsize else np.zeros(1, dtype)[0]


def decode_array(node: dict[str, Any], content: torch.Tensor) -> Any:
    """The array of a `numpy.ndarray` node; uses the memory of `content`, a uint8 CPU tensor."""
    import numpy as np

    raw, dtype, shape = content.numpy(), decode_dtype(node["dtype"]), node["shape"]
    if raw.nbytes != math.prod(shape) * dtype.itemsize or any(axis < 0 for axis in shape):
        msg = f"an array of shape {shape} and {raw.nbytes} bytes"
        raise ValueError(msg)
    flat = raw.view(dtype) if raw.size else np.zeros(math.prod(shape), dtype)
    return flat.reshape(shape, order=node["order"])


def decode_dtype(descr: Any) -> Any:
    """The dtype of a description by `numpy.lib.format`.

    Raises:
        ValueError: the dtype has Python objects.
    """
    import numpy as np

    dtype = np.lib.format.descr_to_dtype(_tuples(descr))
    if dtype.hasobject:
        msg = "a dtype of Python objects"
        raise ValueError(msg)
    return dtype


def _tuples(descr: Any) -> Any:
    """Restore the tuples that JSON turned into lists in the description of a structured dtype."""
    if not isinstance(descr, list):
        return descr
    return [
        (
            tuple(name) if isinstance(name, list) else name,  # (title, name)
            _tuples(kind),
            *(tuple(shape) for shape in more),
        )
        for name, kind, *more in descr
    ]
