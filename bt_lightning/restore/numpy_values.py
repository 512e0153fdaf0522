"""Forms of numpy back to its dtypes, scalars and arrays; numpy need not be installed for others."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def scalar_of(node: dict[str, Any]) -> Any:
    """The scalar of a `numpy.scalar` node; ValueError if its bytes are not those of its dtype."""
    import numpy as np

    data, dtype = base64.b64decode(node["v"], validate=True), dtype_of(node["dtype"])
    if dtype.itemsize and len(data) != dtype.itemsize:
        msg = f"a {dtype} of {len(data)} bytes"
        raise ValueError(msg)
    return np.frombuffer(data, dtype=dtype)[0] if dtype.itemsize else np.zeros(1, dtype)[0]


def array_of(node: dict[str, Any], content: torch.Tensor) -> Any:
    """The array of a `numpy.ndarray` node, in the memory of `content`: bytes, on the host."""
    import numpy as np

    raw, dtype, shape = content.numpy(), dtype_of(node["dtype"]), node["shape"]
    if raw.nbytes != math.prod(shape) * dtype.itemsize or any(axis < 0 for axis in shape):
        msg = f"an array of shape {shape} and {raw.nbytes} bytes"
        raise ValueError(msg)
    flat = raw.view(dtype) if raw.size else np.zeros(math.prod(shape), dtype)
    return flat.reshape(shape, order=node["order"])


def dtype_of(descr: Any) -> Any:
    """The dtype that numpy describes so; ValueError for one of Python objects."""
    import numpy as np

    dtype = np.lib.format.descr_to_dtype(_tuples(descr))
    if dtype.hasobject:
        msg = "a dtype of Python objects"
        raise ValueError(msg)
    return dtype


def _tuples(descr: Any) -> Any:
    """JSON has no tuples: numpy describes a structured dtype as a list of tuples."""
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
