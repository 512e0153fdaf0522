"""Forms of values of packages that need not be installed, and small questions about text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG = 1 << 64


def is_plain_config(config: Any) -> bool:
    """Whether a config is made of containers and primitive values, of one type at the most."""
    if config._is_none() or config._is_missing() or config._is_interpolation():
        return False
    if config._get_node_flag("allow_objects"):
        return False
    keys = range(len(config)) if isinstance(config, Sequence) else list(config)
    nodes = [config._get_node(key) for key in keys]
    inner = [node for node in nodes if hasattr(node, "_get_node")]
    return all(
        node._metadata.object_type in {dict, list, None} and is_plain_config(node)
        for node in inner
        if not (node._is_none() or node._is_missing() or node._is_interpolation())
    )


def is_text(value: str) -> bool:
    """Whether every JSON reader gives the text back: two lone surrogates would become one."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_short_numbers(value: list[Any]) -> bool:
    """Whether a list holds whole numbers only, none of them long."""
    whole = bool(value) and set(map(type, value)) == {int}
    return whole and -_LONG < min(value) <= max(value) < _LONG


def surrogates(value: str) -> str:
    """Text that UTF-8 cannot hold, in base 64."""
    return base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")


def descr(dtype: Any) -> Any:
    """The description of a numpy dtype, as `numpy.lib.format` writes it; None if it has objects."""
    import numpy as np

    if dtype.hasobject:
        return None
    return np.lib.format.dtype_to_descr(dtype)


def numpy_node(
    value: Any, store: Callable[[torch.Tensor], dict[str, str]]
) -> dict[str, Any] | None:
    """The form of a dtype, scalar or array of numpy, and its `kind`; None: it has no form.

    `store` keeps the bytes of an array as a tensor, and returns a reference to it.
    """
    import numpy as np

    if isinstance(value, np.dtype):
        described = descr(value)
        return None if described is None else {"kind": "numpy.dtype", "v": described}
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    described = descr(value.dtype)
    if described is None:
        return None
    if isinstance(value, np.generic):
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {"kind": "numpy.scalar", "dtype": described, "v": data}
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    raw = value.tobytes("F" if fortran else "C")
    content = (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if raw
        else torch.empty(0, dtype=torch.uint8, device="cpu")
    )
    return {
        "kind": "numpy.ndarray",
        "dtype": described,
        "shape": list(value.shape),
        "order": "F" if fortran else "C",
        "v": store(content),
    }
