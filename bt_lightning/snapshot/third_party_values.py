"""Encodes values of optional packages (numpy, OmegaConf), and text that UTF-8 cannot encode."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG = 1 << 64


def is_plain_config(config: Any) -> bool:
    """Whether an OmegaConf config has only containers and primitive values, and no typed nodes."""
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
    """Whether JSON preserves the text: a pair of lone surrogates would become one character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_short_numbers(value: list[Any]) -> bool:
    """Whether a list has only integers of at most 64 bits."""
    whole = bool(value) and set(map(type, value)) == {int}
    return whole and -_LONG < min(value) <= max(value) < _LONG


def is_texts(value: list[Any]) -> bool:
    """Whether a list has only texts that JSON preserves."""
    return bool(value) and set(map(type, value)) == {str} and all(map(is_text, value))


def encode_surrogates(value: str) -> str:
    """Text that UTF-8 cannot encode, as base64."""
    return base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")


def dtype_description(dtype: Any) -> Any:
    """A numpy dtype as `numpy.lib.format` describes it; None if it has Python objects."""
    import numpy as np

    if dtype.hasobject:
        return None
    return np.lib.format.dtype_to_descr(dtype)


def numpy_node(
    value: Any, store: Callable[[torch.Tensor], dict[str, str]]
) -> dict[str, Any] | None:
    """The node of a numpy dtype, scalar or array; None if it cannot be encoded.

    `store` stores the bytes of an array as a tensor and returns a reference to it.
    """
    import numpy as np

    if isinstance(value, np.dtype):
        described = dtype_description(value)
        return None if described is None else {"kind": "numpy.dtype", "v": described}
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    described = dtype_description(value.dtype)
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
