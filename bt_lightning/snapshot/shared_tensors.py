"""Which file and name each tensor of a checkpoint has: one for all that are the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.layout import STATE, WEIGHTS
from bt_lightning.snapshot.encoding_cache import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from bt_lightning.snapshot.encoding_cache import Fragment

_FILES: Final = {"weights": WEIGHTS, "state": STATE}
Ref = dict[str, str]
"""File, as the tree calls it, and name."""


class TensorNames:
    """Those of one checkpoint, as its tree is encoded."""

    def __init__(self, weights_prefix: str) -> None:
        self.single: dict[str, dict[str, torch.Tensor]] = {file: {} for file in _FILES.values()}
        """File -> name -> tensor, as `storable` returns it; without those of groups."""
        self.fragments: dict[tuple[str, ...], Fragment] = {}
        """Path in the state -> what its group came to."""
        self.refs: dict[tuple[Any, ...], Ref] = {}
        """Identity of a single tensor, its address the second item -> its file and name."""
        self.places: set[int] = set()
        """Their addresses."""
        self.weights_key = WEIGHTS_KEY
        """The entry whose tensors are the weights."""
        self._prefix = weights_prefix

    def find(self, identity: tuple[Any, ...]) -> Ref | None:
        """File and name of a tensor that was met before, in a group or not."""
        if identity in self.refs:
            return self.refs[identity]
        for fragment in self.fragments.values():
            if identity[1] in fragment.places and identity in fragment.refs:
                return fragment.refs[identity]
        return None

    def keep(self, identity: tuple[Any, ...], ref: Ref) -> None:
        """Give the same answer when that tensor comes again."""
        self.refs[identity] = ref
        self.places.add(identity[1])

    def store(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Ref:
        """Give the tensor its file and a name there that is still free."""
        is_weight = len(path) > 1 and path[0] == self.weights_key
        key = ".".join(path[1:]) if is_weight else ""
        if is_weight and key.startswith(self._prefix) and key != self._prefix:
            label, name = "weights", key.removeprefix(self._prefix)
        else:
            label, name = "state", ".".join(path)
        name = name.encode("utf-8", "backslashreplace").decode()  # no other reader takes surrogates
        file = _FILES[label]
        while name == "__metadata__" or any(name in names for names in self._of(file)):
            name += "'"
        self.single[file][name] = tensor
        return {"file": label, "name": name}

    def fits(self, fragment: Fragment) -> bool:
        """Whether none of its names is taken, and none of its tensors is tied to another's."""
        for file, names in fragment.tensors.items():
            if any(names.keys() & others.keys() for others in self._of(file)):
                return False
        met = [(self.places, self.refs), *((f.places, f.refs) for f in self.fragments.values())]
        return all(  # places first: that saves hashing thousands of identities
            fragment.places.isdisjoint(places) or not fragment.refs.keys() & refs.keys()
            for places, refs in met
        )

    def add(self, path: tuple[str, ...], fragment: Fragment) -> None:
        """Take all names of a group that fits."""
        self.fragments[path] = fragment

    def mark(self) -> tuple[int, ...]:
        """Where `back_to` goes back to."""
        return len(self.fragments), *map(len, self.single.values())

    def back_to(self, mark: tuple[int, ...]) -> None:
        """Forget what was named since."""
        parts: list[dict[Any, Any]] = [self.fragments, *self.single.values()]
        for part, length in zip(parts, mark, strict=True):
            for key in list(part)[length:]:
                del part[key]
        self.refs = {
            identity: ref
            for identity, ref in self.refs.items()
            if ref["name"] in self.single[_FILES[ref["file"]]]
        }

    def _of(self, file: str) -> Iterator[Mapping[str, torch.Tensor]]:
        """What has a name in a file; never one merged dict: there are thousands at each save."""
        yield self.single[file]
        for fragment in self.fragments.values():
            yield fragment.tensors[file]
