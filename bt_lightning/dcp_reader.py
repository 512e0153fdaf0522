"""A reader of checkpoints for `torch.distributed.checkpoint` (DCP), from torch 2.4 on.

Each tensor is offered to DCP as one piece, so that a rank asks for the box that it holds; its bytes
come from whatever files have them, verified.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future
from typing_extensions import override

from bt_lightning.errors import CheckpointNotFoundError, UnsafeLoadError
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.fill_live import TensorLoad, load_all, whole_value
from bt_lightning.restore.optimizer_states import OPTIMIZERS
from bt_lightning.restore.saved_state import open_state
from bt_lightning.restore.saved_tensors import SavedTensor
from bt_lightning.restore.unloaded_value import UnloadedValue
from bt_lightning.session.bt_and_evicted_paths import StorePaths
from bt_lightning.session.checkpoint_paths import is_url, local_path, url_reader
from bt_lightning.sharding.boxes import Box
from bt_lightning.tree_document import WEIGHTS_KEY
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from bt_lightning.restore.opened_state import SavedState
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    Path_ = tuple[str | int, ...]


class DCPReader(StorageReader):
    """Reads any committed checkpoint, sharded or full, for `torch.distributed.checkpoint.load`.

    ::

        state = {"state_dict": model.state_dict()}
        dcp.load(state, storage_reader=bt_lightning.DCPReader("checkpoints/step-1000"))

    Names are those of Lightning's own sharded checkpoints: `state_dict.<name>`,
    `optimizer_0.state.<name>.<key>`, `optimizer_0.param_groups.0.lr`, `epoch`. What is no tensor is
    given to DCP as bytes that were pickled here from the decoded value.

    Args:
        path: a directory, a URL of one in a store, or `bt://...`; None: `dcp.load(checkpoint_id=)`.
        store: URL of the store of `bt://`; `$BT_STORE_URL` by default.
        storage_options: for that store, as in `BTLightning`.
        weights_only: False also loads what was saved with pickle, which runs its code. Otherwise
            such a checkpoint has its tensors only.

    Every rank makes one of its own. Failures are those of `load_checkpoint`; DCP raises them inside
    its `CheckpointException`, which is no `Exception`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        store: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        weights_only: bool | None = None,
    ) -> None:
        super().__init__()
        self._path = None if path is None else str(path)
        self._paths = StorePaths(store, dict(storage_options or {}))
        self._weights_only = weights_only
        self._state: SavedState | None = None
        self._values: dict[str, Any] = {}
        self._digest = ""
        self._opened = contextlib.ExitStack()

    @override
    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Forget what was read; from now on read `checkpoint_id`, if it is given."""
        self._opened.close()
        self._state, self._values = None, {}
        if checkpoint_id is not None:
            self._path = str(checkpoint_id)

    @override
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Names, dtypes and shapes; opens the checkpoint.

        Raises:
            CheckpointNotFoundError: nothing is committed there.
            CheckpointCorruptError, StoreError: as `load_checkpoint`.
        """
        self.reset()
        reader = self._reader()
        self._digest = reader.manifest.digest
        try:
            state = open_state(reader, weights_only=self._weights_only)
        except UnsafeLoadError:
            state = open_state(reader, weights_only=self._weights_only, tensors_only=True)
        self._state = state
        paths: dict[str, Path_] = {}
        for path, value in _leaves(state):
            name = ".".join(map(str, path))
            if name not in paths and not isinstance(value, UnloadedValue):
                paths[name], self._values[name] = path, value
        return Metadata(
            {name: _metadata(value) for name, value in self._values.items()}, planner_data=paths
        )

    @override
    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any
    ) -> None:
        """Open the checkpoint here: on the other ranks DCP brings the metadata."""
        del metadata, is_coordinator
        if self._state is None:
            self.read_metadata()

    @override
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan, with the digest of the manifest that this rank has read."""
        return replace(plan, storage_data=self._digest)

    @override
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans, as they are; called on one rank.

        Raises:
            CheckpointNotFoundError: ranks have opened different checkpoints under one name.
        """
        digests = [plan.storage_data for plan in plans]
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            msg = (
                f"{self._path} was replaced while it was opened: ranks 0 and {other} have different"
                " checkpoints of that name. Load again"
            )
            raise CheckpointNotFoundError(msg)
        return plans

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of the plan, each item once, and give the planner all other values.

        Raises:
            CheckpointCorruptError, StoreError: as `load_checkpoint`.
        """
        assert self._state is not None, "DCP sets a reader up before it reads"
        try:
            self._read(plan, planner, self._state)
        finally:
            self._opened.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, plan: LoadPlan, planner: LoadPlanner, state: SavedState) -> None:
        loads, targets = [], []
        for item in plan.items:
            value = self._values[item.storage_index.fqn]
            if item.type == LoadItemType.BYTE_IO:
                stream = BytesIO()
                torch.save(whole_value(state.tensors, value), stream)
                stream.seek(0)
                planner.load_bytes(item, stream)
                continue
            target = planner.resolve_tensor(item).detach()
            targets.append((item, target))
            box = Box(tuple(item.storage_offsets), tuple(item.lengths))
            if isinstance(value, SavedTensor):
                loads.append(TensorLoad(value, box, target))
            else:
                target.copy_(value[_slices(item)])
        load_all(state.tensors, loads)
        for item, target in targets:
            planner.commit_tensor(item, target)

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it may be a path or URL of ours."""
        path = str(checkpoint_id)
        return is_bt(path) or is_url(path) or Path(path).is_dir()

    def _reader(self) -> CheckpointReader:
        if self._path is None:
            msg = "DCPReader has no path: give it one, or call dcp.load with checkpoint_id"
            raise CheckpointNotFoundError(msg)
        if is_bt(self._path):
            return self._paths.reader(self._path)
        if is_url(self._path):
            found = url_reader(self._path)
            if found is None:
                msg = f"no committed checkpoint at {self._path}"
                raise CheckpointNotFoundError(msg)
            return found
        reader = directory_reader(local_path(self._path))
        self._opened.enter_context(reader)
        return reader


def _leaves(state: SavedState) -> Iterator[tuple[Path_, Any]]:
    """Path and value of all that DCP can name; tensors first."""
    for name, value in state.weights.items():
        yield from _walk((WEIGHTS_KEY, name), value)
    for number, optimizer in enumerate(state.optimizers):
        yield from _walk((f"optimizer_{number}",), optimizer)
    for name, value in state.rest.items():
        if name not in {WEIGHTS_KEY, OPTIMIZERS}:
            yield from _walk((name,), value)


def _walk(path: Path_, value: Any) -> Iterator[tuple[Path_, Any]]:
    """As DCP flattens: into dictionaries, and into lists that hold such, or tensors."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk((*path, str(key)), each)
    elif isinstance(value, list) and not _is_plain(value):
        for number, each in enumerate(value):
            yield from _walk((*path, number), each)
    else:
        yield path, value


def _is_plain(value: Sequence[Any]) -> bool:
    return not any(
        isinstance(each, Mapping | SavedTensor | torch.Tensor)
        or (isinstance(each, list) and not _is_plain(each))
        for each in value
    )


def _metadata(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, SavedTensor):
        shape, dtype = torch.Size(value.item_shape), value.item_dtype
    elif isinstance(value, torch.Tensor):
        shape, dtype = value.shape, value.dtype
    else:
        return BytesStorageMetadata()
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
    return TensorStorageMetadata(TensorProperties(dtype=dtype), shape, [chunk])


def _slices(item: ReadItem) -> tuple[slice, ...]:
    pairs = zip(item.storage_offsets, item.lengths, strict=True)
    return tuple(slice(begin, begin + length) for begin, length in pairs)
