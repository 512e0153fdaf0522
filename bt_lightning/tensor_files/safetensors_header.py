"""The header of a safetensors file of tensors that are known by their shapes alone. Pure.

Order, padding and text are those of `snapshot.safetensors_layout`: the same tensors make the same
bytes, whether training wrote them or an export.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from bt_lightning.tensor_files.tensor_headers import BITS, LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bt_lightning.tensor_files.tensor_headers import Tensor

_ALIGNMENT: Final = 4096


def in_file_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors as they follow each other: by falling size of an item, number of items, name."""
    return sorted(tensors, key=lambda one: (-BITS.get(one.dtype, 0), -one.count, one.name))


def safetensors_header(ordered: Iterable[Tensor], metadata: Mapping[str, str]) -> bytes:
    """What stands before the bytes of these tensors, which follow each other without gaps."""
    entries, end = [], 0
    for one in ordered:
        shape = ",".join(map(str, one.shape))
        begin, end = end, end + one.size
        entries.append(
            f'{json.dumps(one.name)}:{{"dtype":"{one.dtype}","shape":[{shape}],'
            f'"data_offsets":[{begin},{end}]}}'
        )
    first = json.dumps({"__metadata__": dict(metadata)}, separators=(",", ":")).removesuffix("}")
    text = ",".join([first, *entries]).encode() + b"}"
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
