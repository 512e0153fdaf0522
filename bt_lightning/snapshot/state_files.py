"""A checkpoint dictionary -> the files of a checkpoint: what lies in each, and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bt_lightning.layout import LEFTOVERS, TREE
from bt_lightning.snapshot.encode_tree import Encoder
from bt_lightning.snapshot.pickle_leftovers import digests, pickle, type_name
from bt_lightning.snapshot.safetensors_layout import (
    FilePlan,
    file_pieces,
    plan_file,
    plan_rows,
    row,
    storable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    import torch

    from bt_lightning.snapshot.encoding_cache import Fragment
    from bt_lightning.snapshot.shared_tensors import TensorNames

_MISSES = 3


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file: its layout, and the tensors that belong there."""

    path: str
    """Inside the checkpoint."""
    plan: FilePlan
    fixed: tuple[Fragment, ...]
    """Groups of tensors that may be, object by object, those of an earlier snapshot."""
    others: dict[str, torch.Tensor]
    """Name -> tensor outside those groups, as `storable` returns it; on any device."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, of all that belong there."""
        found = dict(self.others)
        for fragment in self.fixed:
            found.update(fragment.tensors[self.path])
        return found


@dataclass(frozen=True)
class Snapshot:
    """Everything that a commit needs. Its tensors alias the state: copy before the next step."""

    tensor_files: dict[str, TensorFile]
    """Path inside the checkpoint -> a safetensors file."""
    small_files: dict[str, bytes]
    leftovers: tuple[tuple[str, str], ...]
    """(path in the state, type) of each value that is in `leftovers.pt`."""
    dropped: tuple[tuple[str, str], ...]
    """The same of each hyperparameter that could not even be pickled."""
    classes: dict[type, str]
    """Class that the tree names -> path in the state of the first value that has it."""
    functions: dict[Any, str] = field(default_factory=dict)
    """The same of functions."""

    @property
    def files(self) -> dict[str, Callable[[], Iterator[memoryview | bytes]]]:
        """Path inside the checkpoint -> its bytes, in pieces; read before the next step."""
        found: dict[str, Callable[[], Iterator[memoryview | bytes]]] = {}
        for path, file in self.tensor_files.items():
            found[path] = lambda file=file: file_pieces(file.plan, file.tensors)  # type: ignore[misc]
        for path, content in self.small_files.items():
            found[path] = lambda content=content: iter([content])  # type: ignore[misc]
        return found

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file."""
        tensors = [file.plan.size for file in self.tensor_files.values()]
        return [*tensors, *map(len, self.small_files.values())]


@dataclass
class Memory:
    """What one snapshot leaves to the next one of the same run."""

    fragments: dict[tuple[str, ...], Fragment] = field(default_factory=dict)
    plans: dict[str, tuple[Any, FilePlan]] = field(default_factory=dict)
    """File -> (what its layout depends on, its layout)."""
    misses: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Path -> how often in a row its fragment was of no use."""
    prefix: str = ""
    """The `weights_prefix` that the fragments were encoded with."""

    foreseen: Future[Memory] | None = None
    """What is being encoded beside training, for the first save."""

    def open(self, prefix: str) -> dict[tuple[str, ...], Fragment]:
        """The fragments that were encoded with `prefix`."""
        foreseen, self.foreseen = self.foreseen, None
        # one that failed says nothing: the save meets what is wrong, and raises it
        if foreseen is not None and not foreseen.cancel() and foreseen.exception() is None:
            other = foreseen.result()
            self.fragments, self.prefix = other.fragments, other.prefix
        if prefix != self.prefix:
            self.fragments, self.prefix = {}, prefix
            self.plans.clear()
        return self.fragments

    def keep(self, fragments: Mapping[tuple[str, ...], Fragment]) -> tuple[Fragment, ...]:
        """Remember what lasts from save to save; return it.

        A group whose tensors are made anew for each save would only be kept in memory.
        """
        for path, fragment in fragments.items():
            again = self.fragments.get(path) is fragment
            self.misses[path] = 0 if again else self.misses.get(path, 0) + 1
        self.fragments = {p: f for p, f in fragments.items() if self.misses[p] <= _MISSES}
        return tuple(self.fragments.values())


def take(
    checkpoint: Mapping[str, Any],
    weights_prefix: str = "",
    memory: Memory | None = None,
    more: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Snapshot:
    """Lay out a Lightning (or Fabric, or plain) checkpoint dictionary as files; copies no tensor.

    Tensors may have any shape and lie on any device. `more` are further safetensors files.

    Raises:
        UnsupportedStateError: a value can be neither encoded nor pickled, or is sharded.
    """
    encoder = Encoder(weights_prefix, None if memory is None else memory.open(weights_prefix))
    tree = encoder.encode(checkpoint)
    pickled, dropped = pickle(encoder.leftovers)
    beside: dict[str, Any] = {"dropped": dropped}
    if pickled is not None:
        beside["pickled"] = digests(encoder.leftovers, len(pickled))
    small = {TREE: encoder.text(tree, beside).encode("ascii")}
    if pickled is not None:
        small[LEFTOVERS] = pickled
    kinds = [(path, type_name(value)) for path, value in encoder.leftovers.items()]
    return Snapshot(
        _tensor_files(encoder.names, more or {}, memory),
        small,
        tuple(pair for pair in kinds if pair[0] not in dropped),
        tuple(pair for pair in kinds if pair[0] in dropped),
        encoder.classes,
        encoder.functions,
    )


def foresee(checkpoint: Mapping[str, Any], weights_prefix: str = "") -> Memory:
    """A memory for the first save of a checkpoint that will have these parts.

    For any thread: tensors and dicts of `checkpoint` are nobody else's; they may alias the state.
    """
    encoder = Encoder(weights_prefix, {})
    encoder.encode(checkpoint)
    for fragment in encoder.names.fragments.values():
        fragment.prepare()
    return Memory(encoder.names.fragments, prefix=weights_prefix)


def _tensor_files(
    names: TensorNames, more: Mapping[str, Mapping[str, torch.Tensor]], memory: Memory | None
) -> dict[str, TensorFile]:
    """The files of all tensors; those that are empty are left out, but for `more`."""
    kept = memory.keep(names.fragments) if memory is not None else ()
    once = [fragment for fragment in names.fragments.values() if fragment not in kept]
    found = {}
    for path, single in names.single.items():
        others = dict(single)
        for fragment in once:
            others.update(fragment.tensors[path])
        fixed = tuple(fragment for fragment in kept if fragment.tensors[path])
        if fixed or others:
            found[path] = _file(path, fixed, others, memory)
    for path, extra in more.items():
        others = {name: storable(tensor) for name, tensor in extra.items()}
        found[path] = _file(path, (), others, memory)
    return found


def _file(
    path: str,
    fixed: tuple[Fragment, ...],
    others: dict[str, torch.Tensor],
    memory: Memory | None,
) -> TensorFile:
    """Lay out one file; as the last time, if nothing that the layout depends on has changed."""
    if memory is None:
        return TensorFile(path, plan_file(others), fixed, others)
    key = (fixed, frozenset((name, each.dtype, each.shape) for name, each in others.items()))
    last = memory.plans.get(path)
    if last is not None and last[0] == key:
        plan = last[1]
    else:
        known = [each for fragment in fixed for each in fragment.rows[path]]
        plan = plan_rows(known + [row(name, tensor) for name, tensor in others.items()])
    memory.plans[path] = (key, plan)
    return TensorFile(path, plan, fixed, others)
