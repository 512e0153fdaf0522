"""Assigns each tensor of a checkpoint a file and a name; tensors that share memory get one name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.path_layout import ADAPTER, STATE, WEIGHTS
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from bt_lightning.snapshot.encoding_cache import Fragment

TENSOR_FILES: Final = {"weights": WEIGHTS, "state": STATE, "adapter": ADAPTER}
"""Label of a file in the tree -> its path inside the checkpoint."""
Ref = dict[str, str]
"""The file (as named in the tree) and the name of a tensor."""


@dataclass(frozen=True)
class WeightNames:
    """How the weights of a state dictionary are named in files."""

    prefix: str = ""
    """What `model.safetensors` leaves out at the front of each name."""
    adapter: Mapping[str, str] = field(default_factory=dict)
    """Name in the state dictionary -> name in `adapter_model.safetensors`, of an adapter's."""


class TensorNames:
    """The files and names of the tensors of one checkpoint, filled while its tree is encoded."""

    def __init__(self, weights: WeightNames) -> None:
        self.single: dict[str, dict[str, torch.Tensor]] = {
            file: {} for file in TENSOR_FILES.values()
        }
        """File -> name -> tensor, as `storable` returns it; without those of fragments."""
        self.fragments: dict[tuple[str, ...], Fragment] = {}
        """Path in the state -> the encoding of its group of tensors."""
        self.refs: dict[tuple[Any, ...], Ref] = {}
        """Identity of a single tensor (second item: its address) -> its file and name."""
        self.data_pointers: set[int] = set()
        """Addresses of the single tensors."""
        self.weights_key = WEIGHTS_KEY
        """The entry of the checkpoint whose tensors are the weights."""
        self._weights = weights

    def find(self, identity: tuple[Any, ...]) -> Ref | None:
        """The file and name of a tensor that already has one, in a fragment or not."""
        if identity in self.refs:
            return self.refs[identity]
        for fragment in self.fragments.values():
            if identity[1] in fragment.data_pointers and identity in fragment.refs:
                return fragment.refs[identity]
        return None

    def remember(self, identity: tuple[Any, ...], ref: Ref) -> None:
        """Let `find` return `ref` for this tensor from now on."""
        self.refs[identity] = ref
        self.data_pointers.add(identity[1])

    def store(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Ref:
        """Assign the tensor a file and an unused name in it."""
        is_weight = len(path) > 1 and path[0] == self.weights_key
        key = ".".join(path[1:]) if is_weight else ""
        prefix, adapter = self._weights.prefix, self._weights.adapter
        if is_weight and key in adapter:
            label, name = "adapter", adapter[key]
        elif is_weight and key.startswith(prefix) and key != prefix:
            label, name = "weights", key.removeprefix(prefix)
        else:
            label, name = "state", ".".join(path)
        name = name.encode("utf-8", "backslashreplace").decode()  # other readers reject surrogates
        file = TENSOR_FILES[label]
        while name == "__metadata__" or any(name in names for names in self._of(file)):
            name += "'"
        self.single[file][name] = tensor
        return {"file": label, "name": name}

    def fits(self, fragment: Fragment) -> bool:
        """Whether its names are unused and no other value shares one of its tensors."""
        for file, names in fragment.tensors.items():
            if any(names.keys() & others.keys() for others in self._of(file)):
                return False
        taken = [
            (self.data_pointers, self.refs),
            *((f.data_pointers, f.refs) for f in self.fragments.values()),
        ]
        return all(  # addresses first, to avoid hashing thousands of identities
            fragment.data_pointers.isdisjoint(data_pointers)
            or not fragment.refs.keys() & refs.keys()
            for data_pointers, refs in taken
        )

    def add(self, path: tuple[str, ...], fragment: Fragment) -> None:
        """Add a fragment that `fits`, with all its names."""
        self.fragments[path] = fragment

    def savepoint(self) -> tuple[int, ...]:
        """The current state, for `roll_back`."""
        return len(self.fragments), *map(len, self.single.values())

    def roll_back(self, savepoint: tuple[int, ...]) -> None:
        """Remove what was added since `savepoint`."""
        parts: list[dict[Any, Any]] = [self.fragments, *self.single.values()]
        for part, length in zip(parts, savepoint, strict=True):
            for key in list(part)[length:]:
                del part[key]
        self.refs = {
            identity: ref
            for identity, ref in self.refs.items()
            if ref["name"] in self.single[TENSOR_FILES.get(ref["file"], ref["file"])]
        }

    def _of(self, file: str) -> Iterator[Mapping[str, torch.Tensor]]:
        """The named tensors of a file, in several dicts: merging thousands would be slow."""
        yield self.single[file]
        for fragment in self.fragments.values():
            yield fragment.tensors[file]
