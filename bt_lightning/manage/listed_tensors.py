"""All tensors of a checkpoint by their headers, and totals of the model apart from other state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manage.file_contents import has_tensors, tensors_of
from bt_lightning.manage.training_state_files import is_training_state
from bt_lightning.manage.whole_tensors import read_shards
from bt_lightning.path_layout import SHARDS
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.tensor_bytes import StoredTensor
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.tensor_files.tensor_headers import Tensor

Role = Literal["model", "optimizer", "callbacks", "other state"]
ROLES: Final[tuple[Role, ...]] = ("model", "optimizer", "callbacks", "other state")
_CALLBACKS: Final = "callbacks"
_WHOLE_STATES: Final = (".ckpt", ".metadata")
"""Files that have weights and the rest of a state together."""


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """A whole tensor and the file that says where it is."""

    file: str
    tensor: Tensor
    stored: StoredTensor | None
    """Of a tensor in shards."""

    @property
    def divided(self) -> str:
        """How ranks divide it; empty if it is in one file by design."""
        return "" if self.stored is None else self.stored.divided

    @property
    def role(self) -> Role:
        """What it belongs to."""
        return role_of(self.file, self.tensor.name)


@dataclass(frozen=True, slots=True)
class RoleTotals:
    """What the tensors of one role come to."""

    role: Role
    number: int
    """Tensors."""
    count: int
    """Elements; of the model, its parameters and buffers."""
    size: int
    """Bytes."""


def role_of(file: str, name: str) -> Role:
    """What a tensor belongs to, by the file that has it and its name there.

    Files of weights have the model's tensors alone. In others, names begin with their place in the
    state that was saved.
    """
    first, leaf = name.partition(".")[0], file.rpartition("/")[2]
    if first == WEIGHTS_KEY:
        return "model"
    is_state = is_training_state(file, has_parts=True)
    if not is_state and not leaf.endswith(_WHOLE_STATES):
        return "model"
    if first.startswith("optim") or leaf.startswith(("optimizer.pt", "optimizer.bin")):
        return "optimizer"
    return "callbacks" if first == _CALLBACKS else "other state"


def totals_by_role(tensors: Iterable[ListedTensor]) -> list[RoleTotals]:
    """The totals of each role that there is, the model first."""
    found: dict[Role, list[Tensor]] = {}
    for one in tensors:
        found.setdefault(one.role, []).append(one.tensor)
    return [
        RoleTotals(role, len(own), sum(t.count for t in own), sum(t.size for t in own))
        for role in ROLES
        if (own := found.get(role))
    ]


def list_tensors(
    reader: CheckpointReader, item: CheckpointItem
) -> tuple[list[ListedTensor], list[str]]:
    """The tensors of all files, those in shards whole; and why files are left out.

    Raises:
        StoreError: the store refused.
    """
    found: list[ListedTensor] = []
    left_out: list[str] = []
    of_ranks: set[str] = set()
    if item.manifest.is_sharded:
        try:
            shards = read_shards(reader, item, is_verified=False)
        except (CheckpointCorruptError, CheckpointNotFoundError) as error:
            left_out.append(str(error))
        else:
            of_ranks = {*shards.index.files.values()}
            found = [ListedTensor(SHARDS, one.tensor, one) for one in shards.tensors.values()]
    for entry in item.manifest.files:
        if has_tensors(entry.path) and entry.path not in of_ranks:
            try:
                header = tensors_of(reader, item, entry)
            except (CheckpointCorruptError, CheckpointNotFoundError) as error:
                left_out.append(str(error))
            else:
                found += [ListedTensor(entry.path, tensor, None) for tensor in header.tensors]
    return found, left_out
