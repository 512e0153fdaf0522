"""Loads folders of `torch.distributed.checkpoint` (DCP): stock ones, and Lightning's sharded ones.

Lightning writes the weights and states of optimizers by DCP, and all else of rank 0 as `meta.pt`.
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from bt_lightning.checkpoint_formats.sharded_folders import METADATA
from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError, UnsafeLoadError
from bt_lightning.file_entries import FileEntry
from bt_lightning.localdir.folder_on_disk import is_dcp_folder
from bt_lightning.manifest import Manifest
from bt_lightning.restore.dcp_files import DcpFiles
from bt_lightning.restore.dcp_metadata import parse_dcp_metadata
from bt_lightning.restore.dcp_tensors import LABEL, DcpTensors
from bt_lightning.restore.lazy_values import with_leaves
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.restore.opened_state import SavedState
from bt_lightning.restore.optimizer_states import OPTIMIZERS, numbered, with_keys_of_groups
from bt_lightning.restore.read_documents import load_file
from bt_lightning.restore.saved_tensors import SavedTensor, read_whole
from bt_lightning.restore.unloaded_value import UnloadedValue
from bt_lightning.store.transfer.files_reader import DirectoryReader, FilesReader
from bt_lightning.store.transfer.held_memory import root_of, with_held_memory
from bt_lightning.tensor_files.safe_unpickle import MOST_BYTES
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import torch

    from bt_lightning.restore.dcp_metadata import DcpMetadata
    from bt_lightning.restore.load_to_device import TensorMemory
    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.store.interface import ReadProgress
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.store.transfer.copy_first_reader import CopyFirstReader

DCP: Final = "dcp"
"""The format of such a folder in a manifest."""
_META: Final = "meta.pt"
_MODEL: Final = "model"
_OPTIMIZER: Final = re.compile(r"optimizer_(\d{1,4})")
_ONE_OPTIMIZER: Final = ("optimizer", "optim")


class DcpDirectoryReader(FilesReader):
    """Reads a folder that DCP wrote and nothing describes: its bytes cannot be verified.

    But they are those of one save: a file that changes after the folder was listed is an error.
    """

    def __init__(self, path: Path) -> None:
        """List the files of the folder.

        Raises:
            CheckpointNotFoundError: it is no such folder.
        """
        if not is_dcp_folder(path):
            msg = f"no checkpoint at {path}: it has no {METADATA}"
            raise CheckpointNotFoundError(msg)
        with os.scandir(path) as found:
            there = {each.name: each.stat() for each in found if each.is_file()}
        self._stamps = {name: _stamp(status) for name, status in there.items()}
        files = tuple(
            FileEntry(path=name, size=there[name].st_size, xxh3_128="", blocks=())
            for name in sorted(there)
        )
        manifest = Manifest(
            step=0,
            epoch=0,
            created_at="1970-01-01T00:00:00+00:00",
            checkpoint_id=path.name,
            generation=1,
            files=files,
            origin={"format": DCP},
        )
        super().__init__(path, manifest)

    @override
    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """As `FilesReader`; `CheckpointCorruptError` if the file has changed since the listing."""
        super().read_into(entry, offset, targets, on_progress)
        with self._file(entry) as file:
            if _stamp(os.fstat(file)) != self._stamps[entry.path]:
                msg = (
                    f"{self.name}/{entry.path} was written while it was loaded, so that parts of"
                    " two saves would meet: load it when nobody saves to that folder"
                )
                raise CheckpointCorruptError(msg)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def committed_reader(path: Path, *, fills_cache: bool = False) -> DirectoryReader | CopyFirstReader:
    """A reader of a committed checkpoint on this disk, or of what a worker holds of it in memory.

    `fills_cache`: it leaves what it reads in the page cache, for those that read it next.

    Raises:
        CheckpointNotFoundError: nothing is committed there.
        CheckpointCorruptError: its manifest is damaged.
    """
    return with_held_memory(DirectoryReader(path, fills_cache=fills_cache), root_of(path))


def directory_reader(path: Path, *, fills_cache: bool = False) -> FilesReader | CopyFirstReader:
    """As `committed_reader`, or a reader of a folder that DCP wrote, which nothing verifies."""
    try:
        return committed_reader(path, fills_cache=fills_cache)
    except CheckpointNotFoundError:
        if not is_dcp_folder(path):
            raise
        return DcpDirectoryReader(path)


def open_dcp(
    reader: CheckpointReader, *, weights_only: bool | None = None, tensors_only: bool = False
) -> SavedState:
    """Open a folder of DCP; as `open_state`. Weights are what it calls `state_dict` or `model`.

    Raises:
        CheckpointCorruptError: it is damaged.
        UnsafeLoadError: `meta.pt` holds what only `weights_only=False` loads.
        StoreError: the store failed.
    """
    metadata, files = _opened(reader)
    tensors = DcpTensors(files, metadata)
    values = {} if tensors_only else _values(files, metadata, weights_only=weights_only)
    leaves = {name: tensors.find(LABEL, name) for name in metadata.tensors}
    nested = _nested(metadata, {**leaves, **values})
    meta = {} if tensors_only else _meta(reader, files, weights_only=weights_only)
    optimizers = [{"state": {}, "param_groups": [], **each} for each in _optimizers(nested)]
    key = WEIGHTS_KEY if WEIGHTS_KEY in nested else _MODEL
    weights = dict(_flat(nested.get(key, nested)))
    others = {
        name: value
        for name, value in nested.items()
        if key in nested and name not in {key, *_ONE_OPTIMIZER} and not _OPTIMIZER.fullmatch(name)
    }
    rest = _with_tensors(others, tensors)
    return SavedState(reader.name, tensors, {**rest, **meta}, weights, optimizers)


def dcp_step(path: Path, *, weights_only: bool | None, warm: bool = False) -> int:
    """The `global_step` of a folder of Lightning's sharded strategies, whose parts are all there.

    Raises:
        CheckpointCorruptError: something is missing; or, unless `warm`, states of optimizers are.
        UnsafeLoadError: as `open_dcp`.
    """
    with DcpDirectoryReader(path) as reader:
        metadata, files = _opened(reader)
        for tensor in metadata.tensors.values():
            for _, place in tensor.boxes:
                files.check(place)
        for place in metadata.values.values():
            files.check(place)
        step = _meta(reader, files, weights_only=weights_only).get("global_step")
    if not isinstance(step, int):
        msg = f"{path} is no checkpoint of Lightning: it has no {_META} with a global_step"
        raise CheckpointCorruptError(msg)
    if not warm and not any(_OPTIMIZER.fullmatch(str(each[0])) for each in metadata.paths.values()):
        msg = "it holds weights only"
        raise CheckpointCorruptError(msg)
    return step


def load_dcp(
    reader: CheckpointReader,
    memory: TensorMemory = HOST,
    *,
    move: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
) -> dict[str, Any]:
    """Load all of a folder of DCP in one process, with whole tensors.

    Of Lightning's folders the dictionary is what its full checkpoints hold, with the states of
    optimizers numbered; of others what was saved.

    Raises:
        CheckpointCorruptError, UnsafeLoadError, StoreError: as `open_dcp`.
    """
    metadata, files = _opened(reader)
    tensors = DcpTensors(files, metadata)
    values = _values(files, metadata, weights_only=weights_only)
    found, _ = read_whole(tensors, {(LABEL, name) for name in metadata.tensors}, memory)
    moved = {name: move(tensor) for name, tensor in found.get(LABEL, {}).items()}
    nested = _nested(metadata, {**moved, **values})
    meta = _meta(reader, files, weights_only=weights_only, map_location=map_location)
    if _MODEL in nested and meta and WEIGHTS_KEY not in nested:  # as Lightning's FSDP names them
        nested[WEIGHTS_KEY] = nested.pop(_MODEL)
    states = [{"state": {}, **each} for each in _optimizers(nested, _OPTIMIZER)]
    if not states:
        return {**nested, **meta}
    rest = {name: value for name, value in nested.items() if not _OPTIMIZER.fullmatch(name)}
    return {**rest, **numbered({OPTIMIZERS: states}), **meta}


def _opened(reader: CheckpointReader) -> tuple[DcpMetadata, DcpFiles]:
    entry = reader.manifest.entry(METADATA)
    if entry is None or entry.size > MOST_BYTES:
        what = "lacks" if entry is None else f"is too large to look into: {entry.size} bytes of"
        msg = f"the checkpoint {reader.name} {what} {METADATA}"
        raise CheckpointCorruptError(msg)
    files = DcpFiles(reader)
    data = files.bytes_at(METADATA, 0, entry.size)
    return parse_dcp_metadata(data, f"{reader.name}/{METADATA}"), files


def _values(
    files: DcpFiles, metadata: DcpMetadata, *, weights_only: bool | None
) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, place in metadata.values.items():
        data = BytesIO(files.content(place))
        try:
            found[name] = load_file(data, weights_only=weights_only)
        except CheckpointCorruptError:
            raise
        except Exception as error:  # noqa: BLE001 - torch.load raises anything
            found[name] = UnloadedValue(name, str(error).partition("\n")[0])
    return found


def _meta(
    reader: CheckpointReader,
    files: DcpFiles,
    *,
    weights_only: bool | None,
    map_location: MapLocation = None,
) -> dict[str, Any]:
    """What Lightning wrote beside DCP."""
    entry = reader.manifest.entry(_META)
    if entry is None:
        return {}
    data = BytesIO(files.bytes_at(_META, 0, entry.size))
    try:
        found = load_file(data, map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        msg = (
            f"{reader.name}/{_META} holds what only weights_only=False loads, which runs its code:"
            f" {str(error).strip().splitlines()[0]}"
        )
        raise UnsafeLoadError(msg) from error
    if not isinstance(found, dict):
        msg = f"{reader.name}/{_META} holds no dictionary, but {type(found).__name__}"
        raise CheckpointCorruptError(msg)
    return found


def _nested(metadata: DcpMetadata, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionaries and lists that were flattened into names."""
    top: dict[Any, Any] = {}
    for name, value in leaves.items():
        *keys, last = metadata.paths[name]
        place = top
        for key in keys:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                msg = f"the metadata say that {name!r} is inside of another value"
                raise CheckpointCorruptError(msg)
        place[last] = value
    return {str(key): _with_lists(value) for key, value in top.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    each = {key: _with_lists(inner) for key, inner in value.items()}
    numbers = sorted(key for key in each if type(key) is int)
    if each and numbers == list(range(len(each))):
        return [each[number] for number in numbers]
    return with_keys_of_groups(each)


def _optimizers(
    nested: Mapping[str, Any], pattern: re.Pattern[str] | None = None
) -> list[dict[str, Any]]:
    numbers = {int(m[1]): name for name in nested if (m := _OPTIMIZER.fullmatch(name))}
    names = [numbers[number] for number in sorted(numbers)]
    if not names and pattern is None:
        names = [name for name in _ONE_OPTIMIZER if name in nested]
    return [dict(nested[name]) for name in names if isinstance(nested[name], Mapping)]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _with_tensors(values: dict[str, Any], tensors: DcpTensors) -> dict[str, Any]:
    """The values with whole tensors in place of saved ones, all read at once."""
    found, _ = read_whole(tensors, {(LABEL, name) for name in _names(values)})

    def whole(_: str, value: Any) -> Any:
        if isinstance(value, SavedTensor):
            return found[LABEL][value.name]
        return with_leaves(value, whole)

    return {name: whole(name, value) for name, value in values.items()}


def _names(value: Any) -> Iterator[str]:
    """The names of the tensors in nested dictionaries and lists."""
    if isinstance(value, SavedTensor):
        yield value.name
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_names, value.values()))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_names, value))
