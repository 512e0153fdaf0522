"""Whether a file of tensors is whole: safetensors by its header, torch's by its zip directory."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import MANIFEST
from bt_lightning.path_layout import safe_parts
from bt_lightning.tensor_files.pickle_interpreter import TooLargeError
from bt_lightning.tensor_files.pickled_tensors import read_zip
from bt_lightning.tensor_files.range_file import RangeFile
from bt_lightning.tensor_files.safe_unpickle import unpickle_with_storages
from bt_lightning.tensor_files.tensor_headers import (
    LENGTH_BYTES,
    OF_ANYBODY,
    header_bytes,
    parse_header,
)

if TYPE_CHECKING:
    from bt_lightning.checkpoint_formats.folder_view import FolderView
    from bt_lightning.tensor_files.pickle_interpreter import PickledValue
    from bt_lightning.tensor_files.tensor_headers import Header

TORCH_SUFFIXES: Final = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES: Final = (*TORCH_SUFFIXES, ".safetensors")
INDEX: Final = ".index.json"
_SHARD: Final = re.compile(r"(.*)-(\d{5,6})-of-(\d{5,6})(\..+)")
_ZIP_START: Final = b"PK\x03\x04"


def is_checkpoint_name(name: str) -> bool:
    """Whether a file of this name may hold tensors, and be a checkpoint by itself."""
    return name.endswith(SUFFIXES)


class MayBeAllError(CheckpointCorruptError):
    """Raised when what is there may be all there was to come.

    The rest may lie on another node, or be what another program would have written.
    """


class UnknownContentError(CheckpointCorruptError):
    """Raised when a file has the name of a format, but nothing tells whether it is whole."""


@dataclass(frozen=True, slots=True)
class WholeTorchFile:
    """A whole file of `torch.save`."""

    value: Any
    """What was saved, inert; None if it is too large to look into."""
    storages: int
    """Number of its storages."""


def check_safetensors(view: FolderView, path: str) -> Header | None:
    """The header of a whole safetensors file; None if the header is too large to look into.

    Raises:
        CheckpointCorruptError: the file is shorter, or longer, than its header says.
    """
    size = view.files[path]
    start = view.read(path, 0, LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) == LENGTH_BYTES and OF_ANYBODY.size < length <= size - LENGTH_BYTES:
        return None
    length = header_bytes(start, size, path)
    data = view.read(path, LENGTH_BYTES, length)
    header = parse_header(data, size, path)
    end = max((t.offset + t.size for t in header.tensors if t.offset is not None), default=None)
    if end is None:
        end = LENGTH_BYTES + length
    if end != size:
        msg = f"{path} has {size} bytes, its header says {end}"
        raise CheckpointCorruptError(msg)
    return header


def check_torch_file(view: FolderView, path: str) -> WholeTorchFile:
    """Read the directory of a file of `torch.save`: every storage that it refers to is there.

    A save that an error ended has a valid zip directory, with fewer storages than it refers to.

    Raises:
        CheckpointCorruptError: it is cut short, or a storage is missing.
        UnknownContentError: it is something else: of torch before 1.6, or no torch file.
    """
    start = view.read(path, 0, len(_ZIP_START))
    if not _ZIP_START.startswith(start):
        msg = f"{path} is no file that torch.save writes today"
        raise UnknownContentError(msg)
    try:
        with io.BufferedReader(RangeFile(view.files[path], partial(view.read, path))) as file:
            members, data = read_zip(file, path)
        value, storages = unpickle_with_storages(data)
    except TooLargeError:
        return WholeTorchFile(None, 0)
    except CheckpointCorruptError:
        raise
    except Exception as error:
        msg = f"{path} holds no pickle that can be read: {type(error).__name__}: {error}"
        raise CheckpointCorruptError(msg) from error
    _check_storages(path, members, storages)
    return WholeTorchFile(value, len(storages))


def _check_storages(
    path: str, members: dict[str, tuple[int, int]], storages: list[PickledValue]
) -> None:
    root = next(name for name in members if name.rpartition("/")[2] == "data.pkl")
    folder = root.rpartition("/")[0]
    if min(offset for offset, _ in members.values()) != 0:
        msg = f"{path} does not begin with the file that its end describes"
        raise CheckpointCorruptError(msg)
    for storage in storages:
        key = storage.args[2] if isinstance(storage.args, tuple) and len(storage.args) > 2 else None  # noqa: PLR2004
        if isinstance(key, str) and f"{folder}/data/{key}" not in members:
            msg = f"{path} lacks the tensor data {key}: its save was broken off"
            raise CheckpointCorruptError(msg)


def check_tensor_file(view: FolderView, path: str) -> Header | WholeTorchFile | None:
    """Check a file by its name: safetensors, or torch's."""
    if path.endswith(".safetensors"):
        return check_safetensors(view, path)
    return check_torch_file(view, path)


def check_index(view: FolderView, index: str) -> set[str]:
    """The shards that the index file `index` names; each is there, whole, and has its tensors.

    Raises:
        CheckpointCorruptError: the index is not whole, or a shard is missing or not whole.
    """
    folder = index.rpartition("/")[0]
    weight_map = view.read_object(index, MANIFEST).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        msg = f"{index} names no shards"
        raise CheckpointCorruptError(msg)
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not safe_parts(shard):
            msg = f"{index} names {shard!r}, which is no file beside it"
            raise CheckpointCorruptError(msg)
        by_shard.setdefault(f"{folder}/{shard}" if folder else shard, set()).add(tensor)
    for shard, tensors in by_shard.items():
        if shard not in view.files:
            msg = f"{shard} is missing, which {index} names"
            raise CheckpointCorruptError(msg)
        header = check_tensor_file(view, shard)
        names = None if header is None or isinstance(header, WholeTorchFile) else header.tensors
        if names is not None and (missing := tensors - {tensor.name for tensor in names}):
            msg = f"{shard} lacks {min(missing)}, which {index} places there: of another save"
            raise CheckpointCorruptError(msg)
    return set(by_shard)


def check_shard_names(view: FolderView, indexed: set[str]) -> None:
    """Raise unless each shard by its name (`-00001-of-00003`) is named by an index, if any is.

    Raises:
        CheckpointCorruptError: there are shards, and no index yet.
    """
    for path in view.files:
        found = _SHARD.fullmatch(path)
        if found is not None and found[4] in {".safetensors", ".bin"} and not indexed:
            msg = f"{path} is one of {int(found[3])} shards, and no {INDEX} file names them yet"
            raise CheckpointCorruptError(msg)
