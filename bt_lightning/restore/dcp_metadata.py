"""The `.metadata` of `torch.distributed.checkpoint` (DCP): what was saved, and where it lies.

It is a pickle, read by a machine that runs none of it (`tensor_files.safe_unpickle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.top_level_entries import field_of
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import safe_parts
from bt_lightning.sharding.boxes import Box, tiles
from bt_lightning.sharding.shard_index import MOST_CORNERS
from bt_lightning.tensor_files.pickle_interpreter import PickledValue, TooLargeError
from bt_lightning.tensor_files.safe_unpickle import unpickle
from bt_lightning.tensor_files.tensor_headers import MOST_SIDES

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_ITEMS: Final = 2**63
_MOST_KEYS: Final = 64
_TENSOR: Final = "TensorStorageMetadata"


@dataclass(frozen=True, slots=True)
class DcpPlace:
    """Bytes of a file: what one `torch.save` wrote."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A tensor, and the boxes in which it was saved."""

    dtype: str
    """As torch names it: `float32`."""
    shape: tuple[int, ...]
    boxes: tuple[tuple[Box, DcpPlace], ...]


@dataclass(frozen=True, slots=True)
class DcpMetadata:
    """All that a `.metadata` says, by names that DCP joined with dots."""

    tensors: dict[str, DcpTensor]
    values: dict[str, DcpPlace]
    """What is no tensor."""
    paths: dict[str, tuple[str | int, ...]]
    """The keys that each name was joined from."""


def parse_dcp_metadata(data: bytes, where: str) -> DcpMetadata:
    """Read a `.metadata`; errors name `where`.

    Each item of each tensor is in one box, and that in a file beside it, or it is an error.

    Raises:
        CheckpointCorruptError: it is no such file, or too large to look into (`TooLargeError`).
    """
    try:
        return _parse(unpickle(data))
    except TooLargeError as error:
        msg = f"{where} is too large to look into: it has {error}"
        raise TooLargeError(msg) from error
    except Exception as error:  # whatever a malformed pickle makes the machine raise
        msg = f"{where} is no metadata of a checkpoint of torch.distributed: {error}"
        raise CheckpointCorruptError(msg) from error


def _parse(root: Any) -> DcpMetadata:
    places: dict[tuple[str, tuple[int, ...] | None], DcpPlace] = {}
    for index, info in _pairs(field_of(root, "storage_data")):
        offset = field_of(index, "offset")
        key = (_text(field_of(index, "fqn")), None if offset is None else _size(offset))
        places[key] = _place(info)
    tensors, values = {}, {}
    for name, each in _pairs(field_of(root, "state_dict_metadata")):
        if each.full.rpartition(".")[2] == _TENSOR:
            tensors[_text(name)] = _tensor(name, each, places)
        elif (name, None) in places:
            values[_text(name)] = places[name, None]
        else:
            _fail(f"the value {name!r} is in no file")
    if not tensors and not values:
        _fail("it names no tensor and no value")
    _check_boxes(tensors)
    names = tensors.keys() | values.keys()
    said = dict(_pairs(field_of(root, "planner_data")))
    paths = {name: _path(said.get(name), name) for name in sorted(names)}
    return DcpMetadata(tensors, values, paths)


def _tensor(
    name: str, value: PickledValue, places: dict[tuple[str, tuple[int, ...] | None], DcpPlace]
) -> DcpTensor:
    shape = _size(field_of(value, "size"))
    boxes = []
    for chunk in field_of(value, "chunks"):
        box = Box(_size(field_of(chunk, "offsets")), _size(field_of(chunk, "sizes")))
        place = places.get((name, box.offsets), places.get((name, None)))
        if box.items and place is None:
            _fail(f"the box at {box.offsets} of {name!r} is in no file")
        if place is not None:
            boxes.append((box, place))
    properties = field_of(value, "properties")
    dtype = (
        properties.state[0]
        if isinstance(properties.state, tuple)
        else field_of(properties, "dtype")
    )
    return DcpTensor(dtype.full.rpartition(".")[2], shape, tuple(boxes))


def _check_boxes(tensors: dict[str, DcpTensor]) -> None:
    """Whether each item of each tensor is in one box; files that would take long are refused."""
    corners = 0
    for name, each in tensors.items():
        boxes = [box for box, _ in each.boxes]
        if any(len(box.sizes) != len(each.shape) for box in boxes):
            _fail(f"a box of {name!r} has other dimensions than {list(each.shape)}")
        cut = [d for d, n in enumerate(each.shape) if any(box.sizes[d] != n for box in boxes)]
        corners += len(boxes) << len(cut)
        if corners > MOST_CORNERS:
            msg = f"boxes with more than {MOST_CORNERS:,} corners"
            raise TooLargeError(msg)
        if not tiles(each.shape, boxes):
            _fail(f"the boxes of {name!r} overlap, or are not all of it")


def _place(info: Any) -> DcpPlace:
    file = _text(field_of(info, "relative_path"))
    offset, length = field_of(info, "offset"), field_of(info, "length")
    if not safe_parts(file):
        _fail(f"it names {file!r}, which is no file beside it")
    if type(offset) is not int or type(length) is not int or min(offset, length) < 0:
        _fail(f"a part of {file} lies at {offset!r}, with {length!r} bytes")
    if field_of(info, "transform_descriptors"):
        _fail(f"a part of {file} is compressed: expected tensors as torch.save writes them")
    return DcpPlace(file, offset, length)


def _path(value: Any, name: str) -> tuple[str | int, ...]:
    if not isinstance(value, tuple | list) or not value:
        return (name,)
    if len(value) > _MOST_KEYS or not all(
        isinstance(part, str) or type(part) is int for part in value
    ):
        _fail(f"the keys of {name!r} are no texts and numbers, or too many")
    return tuple(value)


def _size(value: Any) -> tuple[int, ...]:
    """A `torch.Size`, which is pickled as a call with a tuple."""
    parts = value.args[0] if isinstance(value, PickledValue) else value
    if not isinstance(parts, tuple | list) or len(parts) > MOST_SIDES:
        _fail(f"{parts!r:.50} is no shape")
    if any(type(part) is not int or not 0 <= part < _MOST_ITEMS for part in parts):
        _fail(f"{parts!r:.50} is no shape")
    if math.prod(parts) >= _MOST_ITEMS:
        _fail(f"a tensor of the shape {parts!r:.50}")
    return tuple(parts)


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    flat = value.pairs if isinstance(value, PickledValue) and value.pairs else []
    return zip(flat[0::2], flat[1::2], strict=True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _fail(f"a name is {type(value).__name__}, no text")
    return str(value)


def _fail(reason: str) -> None:
    raise CheckpointCorruptError(reason)
