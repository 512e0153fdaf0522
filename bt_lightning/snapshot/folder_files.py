"""Lays out the files of a folder that a framework defines: safetensors, `torch.save`, and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.path_layout import check_member
from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.encoding_cache import Fragment, comparison_with
from bt_lightning.snapshot.shared_tensors import WeightNames
from bt_lightning.snapshot.state_files import EncodingCache, Snapshot, TensorFile, tensor_file
from bt_lightning.snapshot.state_pickle import LEAST_TENSORS, SHARDED, PickledState, pickle_state
from bt_lightning.snapshot.torch_file import lay_out_storages, without_storages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_METADATA: Final = "__metadata__"


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file: any reader of the format gets these tensors and this metadata.

    Args:
        tensors: name -> dense tensor of any shape, strides and device. Tensors that share memory
            are written once for each name: the caller decides which names there are.
        metadata: name -> text, in the file's header.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})


@dataclass(frozen=True)
class TorchFile:
    """A file as `torch.save` writes it.

    Args:
        state: any value that pickle takes. It is pickled at once; the bytes of its tensors are
            copied as those of all files are.
    """

    state: Any


Content = SafetensorsFile | TorchFile | bytes
"""What is in one file of a folder."""


def lay_out_folder(files: Mapping[str, Content], cache: EncodingCache | None = None) -> Snapshot:
    """Lay out the files of a folder, by posix path inside it; copies no tensor.

    Raises:
        UnsupportedStateError: a file cannot be written: a tensor that safetensors does not have, or
            a value that cannot be pickled.
        CheckpointCorruptError: a path leaves the folder, or is that of a manifest.
    """
    cache = EncodingCache() if cache is None else cache
    folder = _Folder(cache)
    for path, content in files.items():
        check_member(path)
        if isinstance(content, SafetensorsFile):
            folder.add_safetensors(path, content)
        elif isinstance(content, TorchFile):
            folder.add_pickled(path, content)
        else:
            folder.small[path] = content
    return folder.snapshot()


def encode_folder_early(files: Mapping[str, Content]) -> Callable[[], EncodingCache]:
    """What lays out in advance the files of the first save, as far as they are known.

    Called on the training thread, which goes on; the result is called on any thread
    (`Saver.encode_early`), and reads no container that the training changes.
    """
    aliases = {
        path: TorchFile(_aliases(content.state)) if isinstance(content, TorchFile) else content
        for path, content in files.items()
    }

    def encode() -> EncodingCache:
        cache = EncodingCache()
        lay_out_folder(aliases, cache)
        for fragment in cache.fragments.values():
            _ = fragment.tensor_addresses
        return cache

    return encode


def _aliases(value: Any) -> Any:
    """The same tensors and values in dicts of our own."""
    if type(value) is dict:
        return {key: _aliases(item) for key, item in value.items()}
    return value


def _check_safetensors(path: str, content: SafetensorsFile) -> None:
    """Refuse what readers of the format would refuse, or read as something else."""
    for name, tensor in content.tensors.items():
        if not _is_text(name) or name == _METADATA:
            msg = f"{path}: no tensor of a safetensors file can be named {name!r}"
            raise UnsupportedStateError(msg)
        if tensor.layout is not torch.strided or tensor.dtype not in SAFETENSORS:
            msg = f"{path}: safetensors cannot hold {name}, of {tensor.dtype} and {tensor.layout}"
            raise UnsupportedStateError(msg)
        if type(tensor).__name__ in SHARDED:
            msg = f"{path}: {name} is one rank's part of a larger tensor: save a full state dict"
            raise UnsupportedStateError(msg)
    if not all(_is_text(each) for pair in content.metadata.items() for each in pair):
        msg = f"{path}: metadata of safetensors maps text to text, not {dict(content.metadata)!r}"
        raise UnsupportedStateError(msg)


def _is_text(value: object) -> bool:
    """Whether `value` is text that JSON of any reader can hold."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False  # a lone surrogate


class _Folder:
    """The files of one save: first all groups are looked up, then the files are laid out."""

    def __init__(self, cache: EncodingCache) -> None:
        self.small: dict[str, bytes] = {}
        self._cache = cache
        self._known = cache.fragments_for(WeightNames())
        self._groups: dict[tuple[str, ...], Fragment] = {}
        self._safetensors: dict[str, SafetensorsFile] = {}
        self._pickled: dict[str, PickledState] = {}

    def add_safetensors(self, path: str, content: SafetensorsFile) -> None:
        _check_safetensors(path, content)
        self._safetensors[path] = content
        tensors = dict(content.tensors)
        if len(tensors) < LEAST_TENSORS or self._cache.gives_up((path,)):
            return
        group = self._known.get((path,))
        if group is None or not group.matches(tensors):
            matches = comparison_with(tensors)
            if matches is None:
                return
            detached = {name: tensor.detach() for name, tensor in tensors.items()}
            group = Fragment(matches, "", {path: detached}, {}, frozenset())
        self._groups[path,] = group

    def add_pickled(self, path: str, content: TorchFile) -> None:
        known = self._cache.pickled.get(path)
        if known is not None and self._known.get((path,)) is not known.fragment:
            known = None
        grouped = not self._cache.gives_up((path,))
        state = self._pickled[path] = pickle_state(content.state, path, known, grouped=grouped)
        self._cache.pickled.pop(path, None)
        if state.group is not None:
            self._groups[path,] = state.group.fragment
            self._cache.pickled[path] = state.group

    def snapshot(self) -> Snapshot:
        """The files; safetensors first: meanwhile the worker fills in the CRCs of others."""
        kept = self._cache.keep(self._groups)
        pickled = self._cache.pickled
        self._cache.pickled = {path: g for path, g in pickled.items() if g.fragment in kept}
        files = {}
        for path, content in self._safetensors.items():
            fixed = self._fixed(path, kept)
            named = {} if fixed else content.tensors
            others = {name: tensor.detach() for name, tensor in named.items()}
            files[path] = tensor_file(path, fixed, others, self._cache, content.metadata)
        for path, state in self._pickled.items():
            if state.storages:
                files[path] = self._torch_file(path, state, self._fixed(path, kept))
            else:
                self.small[path] = without_storages(path, state.data)
        return Snapshot(files, self.small, (), (), {})

    def _fixed(self, path: str, kept: tuple[Fragment, ...]) -> tuple[Fragment, ...]:
        group = self._groups.get((path,))
        return (group,) if group is not None and group in kept else ()

    def _torch_file(
        self, path: str, state: PickledState, fixed: tuple[Fragment, ...]
    ) -> TensorFile:
        """Lay out one file, where the storages lay at the last save if possible."""
        others = state.others if fixed else state.storages
        key = (fixed, [storage.nbytes for storage in others.values()])
        last_key, layout = self._cache.layouts.get(path, (None, None))
        changing = layout.written(state.data) if layout is not None and last_key == key else None
        if layout is None or changing is None:
            sizes = [storage.nbytes for storage in state.storages.values()]
            layout = lay_out_storages(path, state.data, sizes)
            self._cache.layouts[path] = (key, layout)
            changing = layout.written(state.data)
            assert changing is not None
        return TensorFile(path, layout.plan, fixed, others, layout, state.data, changing)
