"""Lays out a checkpoint dictionary as the files of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.path_layout import LEFTOVERS, TREE
from bt_lightning.snapshot.encode_tree import Encoder
from bt_lightning.snapshot.pickle_leftovers import leftover_digests, pickle_leftovers, type_name
from bt_lightning.snapshot.safetensors_layout import (
    OF_TORCH,
    FilePlan,
    file_pieces,
    header_row,
    plan_file,
    plan_rows,
    storable,
)
from bt_lightning.snapshot.shared_tensors import TensorNames, WeightNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    import torch

    from bt_lightning.snapshot.base_table import LeftOut
    from bt_lightning.snapshot.encoding_cache import Fragment
    from bt_lightning.snapshot.state_pickle import PickledGroup
    from bt_lightning.snapshot.torch_file import TorchLayout

_MISSES = 3


@dataclass(frozen=True)
class TensorFile:
    """One file of tensors, safetensors or of `torch.save`: its layout and its tensors."""

    path: str
    """Path inside the checkpoint."""
    plan: FilePlan
    fixed: tuple[Fragment, ...]
    """Groups of tensors that later snapshots may reuse."""
    others: dict[str, torch.Tensor]
    """Name -> tensor outside those groups, as `storable` returns it, on any device."""
    layout: TorchLayout | None = None
    """If it is a zip file of `torch.save`, whose tensors are flat storages."""
    data: bytes = b""
    """The `data.pkl` of such a file."""
    changing: tuple[tuple[int, bytes], ...] = ()
    """Offset and bytes of what such a file has beside the plan and the tensors."""
    wholes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Name -> the DTensor of which a tensor of `others` is this rank's part."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, of all tensors of the file."""
        files = dict(self.others)
        for fragment in self.fixed:
            files.update(fragment.tensors[self.path])
        return files

    def pieces(self) -> Iterator[memoryview | bytes]:
        """The bytes of the file in order; read them before the next step."""
        if self.layout is not None:
            return self.layout.pieces(self.data, self.tensors)
        return file_pieces(self.plan, self.tensors)


@dataclass(frozen=True)
class Snapshot:
    """The files of one checkpoint. Its tensors alias the state: copy them before the next step."""

    tensor_files: dict[str, TensorFile]
    """Path inside the checkpoint -> a file of tensors."""
    small_files: dict[str, bytes]
    leftovers: tuple[tuple[str, str], ...]
    """(path in the state, type) of each value that is in `leftovers.pt`."""
    dropped: tuple[tuple[str, str], ...]
    """(path in the state, type) of each hyperparameter that could not be pickled either."""
    classes: dict[type, str]
    """Class that the tree names -> path in the state of the first value of that class."""
    functions: dict[Any, str] = field(default_factory=dict)
    """Function that the tree names -> path in the state of the first value that is it."""
    left_out: LeftOut | None = None
    """Weights that are not in the files; they are verified before the commit."""
    fingerprint: str = ""
    """Of the structure that all ranks have, if this is one rank's part of a sharded state."""
    block_bytes: int = BLOCK_BYTES
    """By which the files are verified; the same on all ranks."""

    @property
    def files(self) -> dict[str, Callable[[], Iterator[memoryview | bytes]]]:
        """Path inside the checkpoint -> its bytes in pieces; read them before the next step."""
        files: dict[str, Callable[[], Iterator[memoryview | bytes]]] = {}
        for path, file in self.tensor_files.items():
            files[path] = file.pieces
        for path, content in self.small_files.items():
            files[path] = lambda content=content: iter([content])  # type: ignore[misc]
        return files

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file."""
        tensors = [file.plan.size for file in self.tensor_files.values()]
        return [*tensors, *map(len, self.small_files.values())]


@dataclass
class EncodingCache:
    """Encodings and layouts that one snapshot leaves to the next one of the same run."""

    fragments: dict[tuple[str, ...], Fragment] = field(default_factory=dict)
    plans: dict[str, tuple[Any, FilePlan]] = field(default_factory=dict)
    """File -> (everything that its layout depends on, its layout)."""
    misses: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Path -> number of consecutive saves that could not reuse its fragment."""
    weights: WeightNames = field(default_factory=WeightNames)
    """The names that the fragments were encoded with."""
    pickled: dict[str, PickledGroup] = field(default_factory=dict)
    """File of `torch.save` -> the pickle of its group of tensors."""
    layouts: dict[str, tuple[Any, TorchLayout]] = field(default_factory=dict)
    """Such a file -> (everything that its layout depends on, its layout)."""

    parts: dict[tuple[str, ...], tuple[Fragment, object, Fragment]] = field(default_factory=dict)
    """Path -> a fragment of a sharded state, the plan, and what this rank writes of it by that."""

    early: Future[EncodingCache] | None = None
    """The cache that `encode_early` computes on another thread for the first save."""

    def fragments_for(self, weights: WeightNames) -> dict[tuple[str, ...], Fragment]:
        """The cached fragments that were encoded with these names."""
        early, self.early = self.early, None
        # an error of the early encoding is ignored: the save meets the same error and raises it
        if early is not None and not early.cancel() and early.exception() is None:
            other = early.result()
            self.fragments, self.weights, self.plans = other.fragments, other.weights, other.plans
            self.pickled, self.layouts = other.pickled, other.layouts
        if weights != self.weights:
            self.fragments, self.weights = {}, weights
            self.plans.clear()
            self.pickled.clear()
        return self.fragments

    def gives_up(self, path: tuple[str, ...]) -> bool:
        """Whether the group at `path` is another at each save, so that none is kept."""
        return self.misses.get(path, 0) > _MISSES

    def part(
        self,
        path: tuple[str, ...],
        fragment: Fragment,
        plan: object,
        make: Callable[[Fragment], Fragment],
    ) -> Fragment:
        """What `make` returns for the fragment, kept as long as fragment and plan are these."""
        known = self.parts.get(path)
        if known is None or known[0] is not fragment or known[1] is not plan:
            known = self.parts[path] = (fragment, plan, make(fragment))
        return known[2]

    def prepare_parts(self) -> None:
        """Compute what the first save will look up."""
        for _, _, part in self.parts.values():
            part.prepare()

    def keep(self, fragments: Mapping[tuple[str, ...], Fragment]) -> tuple[Fragment, ...]:
        """Keep the fragments that are reusable from save to save, and return them.

        A group whose tensors are new objects at each save is dropped: it would only take memory.
        """
        for path, fragment in fragments.items():
            again = self.fragments.get(path) is fragment
            self.misses[path] = 0 if again else self.misses.get(path, 0) + 1
        self.fragments = {p: f for p, f in fragments.items() if not self.gives_up(p)}
        self.parts = {path: part for path, part in self.parts.items() if path in self.fragments}
        return tuple(self.fragments.values())


def lay_out_files(
    checkpoint: Mapping[str, Any],
    weights: WeightNames = WeightNames(),  # noqa: B008 - it cannot change
    cache: EncodingCache | None = None,
    more: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Snapshot:
    """Lay out a Lightning (or Fabric, or plain) checkpoint dictionary as files; copies no tensor.

    Tensors may have any shape and lie on any device. `more` are further safetensors files.

    Raises:
        UnsupportedStateError: a value can be neither encoded nor pickled, or is sharded.
    """
    encoder = Encoder(weights, None if cache is None else cache.fragments_for(weights))
    tree = encoder.encode(checkpoint)
    pickled, dropped = pickle_leftovers(encoder.leftovers)
    beside: dict[str, Any] = {"dropped": dropped}
    if pickled is not None:
        beside["pickled"] = leftover_digests(encoder.leftovers, len(pickled))
    small = {TREE: encoder.text(tree, beside).encode("ascii")}
    if pickled is not None:
        small[LEFTOVERS] = pickled
    kinds = [(path, type_name(value)) for path, value in encoder.leftovers.items()]
    return Snapshot(
        _tensor_files(encoder.names, more or {}, cache),
        small,
        tuple(pair for pair in kinds if pair[0] not in dropped),
        tuple(pair for pair in kinds if pair[0] in dropped),
        encoder.classes,
        encoder.functions,
    )


def encode_early(
    checkpoint: Mapping[str, Any],
    weights: WeightNames = WeightNames(),  # noqa: B008 - it cannot change
) -> EncodingCache:
    """Encode groups of the first checkpoint in advance; called on any thread.

    `checkpoint` has the groups in dicts that no other thread uses; tensors may alias the state.
    """
    encoder = Encoder(weights, {})
    encoder.encode(checkpoint)
    for fragment in encoder.names.fragments.values():
        fragment.prepare()
    return EncodingCache(encoder.names.fragments, weights=weights)


def _tensor_files(
    names: TensorNames, more: Mapping[str, Mapping[str, torch.Tensor]], cache: EncodingCache | None
) -> dict[str, TensorFile]:
    """The files of all tensors; empty ones are left out unless they are in `more`."""
    kept = cache.keep(names.fragments) if cache is not None else ()
    once = [fragment for fragment in names.fragments.values() if fragment not in kept]
    files = {}
    for path, single in names.single.items():
        others = dict(single)
        for fragment in once:
            others.update(fragment.tensors[path])
        fixed = tuple(fragment for fragment in kept if fragment.tensors[path])
        if fixed or others:
            files[path] = tensor_file(path, fixed, others, cache)
    for path, extra in more.items():
        others = {name: storable(tensor) for name, tensor in extra.items()}
        files[path] = tensor_file(path, (), others, cache)
    return files


def tensor_file(
    path: str,
    fixed: tuple[Fragment, ...],
    others: dict[str, torch.Tensor],
    cache: EncodingCache | None,
    metadata: Mapping[str, str] = OF_TORCH,
) -> TensorFile:
    """Lay out one file, or reuse the cached layout if nothing that it depends on has changed.

    `others` are tensors as `storable` returns them.
    """
    if cache is None:
        return TensorFile(path, plan_file(others, metadata), fixed, others)
    shapes = frozenset((name, each.dtype, each.shape) for name, each in others.items())
    key = (fixed, shapes, dict(metadata))
    last = cache.plans.get(path)
    if last is not None and last[0] == key:
        plan = last[1]
    else:
        known = [each for fragment in fixed for each in fragment.rows[path]]
        rows = known + [header_row(name, tensor) for name, tensor in others.items()]
        plan = plan_rows(rows, metadata)
    cache.plans[path] = (key, plan)
    return TensorFile(path, plan, fixed, others)
