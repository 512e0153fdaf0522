"""A checkpoint as a directory of `torch.distributed.checkpoint`, without torch, as it streams by.

Names and nesting are those of Lightning's own sharded checkpoints: `state_dict`, `optimizer_0` with
`state` and `param_groups`. Boxes of shards stay as they are, in one file a rank; a whole tensor is
one chunk. A state without a `state_dict` has all its entries, under their own names. A value that
is neither a tensor nor plain is left out, and named.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.localdir.fsync import write_file
from bt_lightning.manage.dcp_files import (
    METADATA,
    DcpEntry,
    Envelope,
    StoredChunk,
    metadata,
    tensor_envelope,
)
from bt_lightning.manage.saved_tree import (
    KIND,
    NOT_PLAIN,
    OPTIMIZERS,
    pairs_of,
    plain_value,
    references_in,
)
from bt_lightning.manage.tensor_bytes import StoredTensor, item_bytes, whole_bytes
from bt_lightning.sharding.boxes import Box, whole_box
from bt_lightning.sharding.read_plan import SavedBox
from bt_lightning.tensor_files.pickle_writer import pickled
from bt_lightning.tensor_files.tensor_headers import Tensor
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bt_lightning.manage.saved_tree import Path as Place
    from bt_lightning.manage.verified_blocks import VerifiedBlocks
    from bt_lightning.manage.whole_tensors import PlacedTensors

_UNKNOWN_TO_SAFETENSORS: Final = {
    "complex128": "C128",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""Dtypes whose items safetensors files have as bytes, by torch's names."""
_PACKAGE: Final = "bt_lightning"
"""Entry of a state for what this package adds."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A box of a tensor, by where its bytes are now."""

    name: str
    dtype: str
    box: Box
    source: SavedBox
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class NotInDcp:
    """What a state has and the directory lacks."""

    values: Sequence[str]
    """Places in the state of values that need a class."""
    tensors: Mapping[str, int]
    """Entry of the state -> number of its tensors with dimensions."""


@dataclass(slots=True)
class _Content:
    """What a directory is to hold."""

    tensors: dict[Place, tuple[StoredTensor, str]] = field(default_factory=dict)
    """Place in the state -> the tensor, and its dtype in torch, if safetensors lacks it."""
    values: dict[Place, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Places of values that are not plain."""
    roots: set[str] = field(default_factory=set)
    """Entries of the state that are written."""


def write_dcp(folder: Path, state: PlacedTensors, blocks: VerifiedBlocks) -> NotInDcp:
    """Write a directory of DCP into the new directory `folder`, durably; `.metadata` comes last.

    Raises:
        CheckpointCorruptError, CheckpointNotFoundError, StoreError: as `whole_bytes`.
        UnsupportedStateError: a tensor's dtype has no form in DCP, or two values have one name.
        OSError: the disk refused.
    """
    content = _content(state)
    _refuse_equal_names([*content.tensors, *content.values])
    chunks: dict[tuple[int, str], list[_Chunk]] = {}
    by_file: dict[str, list[_Chunk]] = {}
    files = _file_names(state)
    for place, (stored, dtype) in content.tensors.items():
        key = (id(stored), dtype)
        if key not in chunks:
            chunks[key] = _chunks(".".join(map(str, place)), stored, dtype)
            for chunk in chunks[key]:
                by_file.setdefault(files.get(chunk.source.file, _file(0)), []).append(chunk)
    if content.values or not by_file:
        by_file.setdefault(_file(0), [])
    written = _Written(blocks)
    for name in sorted(by_file):
        ordered = sorted(by_file[name], key=lambda one: (one.source.file, one.source.offset))
        own = content.values if name == _file(0) else {}
        write_file(folder / name, name, written.file(name, ordered, own))
    entries = []
    for place, (stored, dtype) in content.tensors.items():
        where = tuple(written.places[id(chunk)] for chunk in chunks[id(stored), dtype])
        entries.append(DcpEntry(place, *_form(stored.tensor, dtype), where))
    entries += [DcpEntry(place, "", (), (one,)) for place, one in written.values.items()]
    write_file(folder / METADATA, METADATA, [metadata(entries)])
    return NotInDcp(content.left_out, _tensors_beside(state, content.roots))


@dataclass
class _Written:
    """What was written so far, and where it lies."""

    blocks: VerifiedBlocks
    places: dict[int, StoredChunk] = field(default_factory=dict)
    """By the identity of the chunk."""
    values: dict[Place, StoredChunk] = field(default_factory=dict)

    def file(
        self, name: str, chunks: list[_Chunk], plain: Mapping[Place, Any]
    ) -> Iterator[bytes | memoryview]:
        """The bytes of one file."""
        offset = 0
        for chunk in chunks:
            envelope = tensor_envelope(chunk.name, chunk.dtype, chunk.box.sizes, chunk.size)
            yield envelope.head
            crc = 0
            for part in whole_bytes(self.blocks, _alone(chunk)):
                crc = zlib.crc32(part, crc)
                yield part
            tail = envelope.tail(crc)
            yield tail
            length = len(envelope.head) + chunk.size + len(tail)
            self.places[id(chunk)] = StoredChunk(chunk.box, name, offset, length)
            offset += length
        for place, value in plain.items():
            envelope = Envelope(pickled(value))
            data = envelope.head + envelope.tail()
            yield data
            self.values[place] = StoredChunk(None, name, offset, len(data))
            offset += len(data)


def _content(state: PlacedTensors) -> _Content:
    content = _Content()
    entries = dict(pairs_of(state.tree))
    if WEIGHTS_KEY in entries:
        roots = [(WEIGHTS_KEY, entries[WEIGHTS_KEY])]
        optimizers = entries.get(OPTIMIZERS)
        for number, node in enumerate(optimizers if isinstance(optimizers, list) else ()):
            roots.append((f"optimizer_{number}", node))
        content.roots |= {WEIGHTS_KEY, OPTIMIZERS}
    else:
        roots = [(str(key), node) for key, node in entries.items() if key != _PACKAGE]
        content.roots |= {name for name, _ in roots}
    for name, node in roots:
        _walk(state, node, (name,), content)
    return content


def _tensors_beside(state: PlacedTensors, roots: Collection[str]) -> dict[str, int]:
    """Entry of the state that is not written -> number of its tensors; scalars are bookkeeping."""
    found = {}
    for key, node in pairs_of(state.tree):
        if key not in roots and key != _PACKAGE:
            tensors = map(state.find, references_in({"tree": node}))
            found[str(key)] = sum(1 for one in tensors if one.tensor.shape)
    return {name: count for name, count in found.items() if count}


def _refuse_equal_names(places: Iterable[Place]) -> None:
    known: dict[str, Place] = {}
    for place in places:
        name = ".".join(map(str, place))
        if known.setdefault(name, place) != place:
            msg = (
                f"two values of the state are called {name} in torch.distributed.checkpoint, which"
                " joins keys by dots: export it `--to ckpt`"
            )
            raise UnsupportedStateError(msg)


def _walk(state: PlacedTensors, node: Any, place: Place, content: _Content) -> None:
    """Note what lies at a place; nested as torch flattens a state: `traverse_state_dict`."""
    if isinstance(node, dict) and node.get(KIND) == "tensor":
        content.tensors[place] = state.find(node), str(node.get("dtype") or "")
    elif isinstance(node, dict) and (pairs := pairs_of(node)):
        for key, value in pairs:
            if isinstance(key, str | int | float | tuple):
                _walk(state, value, (*place, str(key)), content)
            else:
                content.left_out.append(
                    f"{'.'.join(map(str, place))}[a key that is no plain value]"
                )
    elif isinstance(node, list) and any(_has_parts(one) for one in node):
        for number, value in enumerate(node):
            _walk(state, value, (*place, number), content)
    elif (value := plain_value(node)) is NOT_PLAIN:
        content.left_out.append(".".join(map(str, place)))
    elif value != {}:
        content.values[place] = value


def _has_parts(node: Any) -> bool:
    """Whether an item of a list makes torch look into the list."""
    if isinstance(node, list):
        return any(map(_has_parts, node))
    return isinstance(node, dict) and (node.get(KIND) == "tensor" or bool(pairs_of(node)))


def _file_names(state: PlacedTensors) -> Mapping[str, str]:
    """File of a shard -> the file that its boxes go to."""
    files = {} if state.shards is None else state.shards.index.files
    return {path: _file(rank) for rank, path in files.items()}


def _file(rank: int) -> str:
    return f"__{rank}_0.distcp"


def _chunks(name: str, stored: StoredTensor, dtype: str) -> list[_Chunk]:
    of_torch, shape = _form(stored.tensor, dtype)
    if not math.prod(shape):
        nowhere = SavedBox(whole_box(shape), "", 0)
        return [_Chunk(name, of_torch, nowhere.box, nowhere, 0)]
    if len(stored.boxes) == 1:
        return [_Chunk(name, of_torch, whole_box(shape), stored.boxes[0], stored.tensor.size)]
    item = item_bytes(stored.tensor)
    found = []
    for saved in stored.boxes:
        box = saved.box
        if dtype:
            if box.sizes[-1] != stored.tensor.shape[-1]:
                msg = f"{name} is divided within its items, which torch has as {dtype}"
                raise UnsupportedStateError(msg)
            box = Box(box.offsets[:-1], box.sizes[:-1])
        found.append(_Chunk(name, of_torch, box, saved, saved.box.items * item))
    return found


def _form(tensor: Tensor, dtype: str) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape of a tensor in torch."""
    if not dtype:
        return tensor.dtype, tensor.shape
    if dtype not in _UNKNOWN_TO_SAFETENSORS:
        msg = f"{tensor.name} is {dtype}, which has no form in torch.distributed.checkpoint"
        raise UnsupportedStateError(msg)
    return _UNKNOWN_TO_SAFETENSORS[dtype], tensor.shape[:-1]


def _alone(chunk: _Chunk) -> StoredTensor:
    """A chunk as a tensor of its own, of bytes."""
    box = whole_box((chunk.size,))
    tensor = Tensor(chunk.name, "U8", (chunk.size,), chunk.size)
    return StoredTensor(tensor, (replace(chunk.source, box=box),) if chunk.size else ())
