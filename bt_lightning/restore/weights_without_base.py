"""Weights whose base is not in the checkpoint: compared with that of a module, and completed."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointCorruptError, CheckpointMismatchError
from bt_lightning.path_layout import BASE
from bt_lightning.restore.read_tensors import read_whole_file
from bt_lightning.snapshot.base_table import BaseTable
from bt_lightning.snapshot.dtypes import plain_dtype
from bt_lightning.snapshot.tensor_digests import all_threads, tensor_digests
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.snapshot.base_table import BaseTensor
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_SHOWN = 8
_ADVICE = (
    "Make the model from the base of the run that saved it: the same `from_pretrained` and"
    " revision, the same dtype, and where the script draws a part of it, the same seed. Or begin a"
    " new run in another directory (BT_CHECKPOINT_DIR). With BTLightning(save_frozen=True)"
    " checkpoints hold their base"
)


class WeightsWithoutBase(OrderedDict[str, Any]):
    """A state dictionary as it was saved; a module that loads it has the rest.

    `LightningModule.load_state_dict` completes it by itself; for other modules call `completed`.
    """

    def __init__(self, stored: Mapping[str, Any], table: BaseTable) -> None:
        super().__init__(stored)
        vars(self).update(getattr(stored, "__dict__", {}))  # `_metadata`: versions of modules
        self.table = table
        """What it leaves out."""

    def completed(self, module: torch.nn.Module, *, strict: bool = True) -> dict[str, Any]:
        """The whole state dictionary, with the module's own tensors as the base.

        Unless `strict`, the module may lack parts of it, or have them in other shapes.

        Raises:
            CheckpointMismatchError: the module has another base.
        """
        own = base_tensors(module, self.table.tensors)
        check_base(self.table, own, strict=strict)
        return self.filled(module)

    def filled(self, module: torch.nn.Module) -> dict[str, Any]:
        """As `completed`, for a base that has been compared."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        whole = self.plain()
        for name, tensor in self.table.tensors.items():
            # not what a quantised one has beside it, which stays as it is
            if name in parameters and tuple(parameters[name].shape) == tensor.shape:
                whole[name] = parameters[name].detach()
        return whole

    def plain(self) -> OrderedDict[str, Any]:
        """What was stored, as any state dictionary."""
        stored = OrderedDict(self)
        vars(stored).update({n: v for n, v in vars(self).items() if n != "table"})
        return stored


def load_base_table(reader: CheckpointReader) -> BaseTable | None:
    """What a checkpoint leaves out; None if it has all of its weights.

    Raises:
        CheckpointCorruptError: the table is damaged.
    """
    entry = reader.manifest.entry(BASE)
    if entry is None:
        return None
    try:
        return BaseTable.parse(bytes(read_whole_file(reader, entry)))
    except CheckpointCorruptError as error:
        msg = f"the checkpoint {reader.name} is damaged: {BASE}: {error}"
        raise CheckpointCorruptError(msg) from error


def without_base(checkpoint: Any, table: BaseTable | None, name: str) -> None:
    """Let the weights of a loaded checkpoint say what they lack.

    Raises:
        CheckpointCorruptError: it has no weights that a base could complete.
    """
    if table is None:
        return
    weights = checkpoint.get(WEIGHTS_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict):
        msg = f"the checkpoint {name} is damaged: it has a {BASE}, and no {WEIGHTS_KEY}"
        raise CheckpointCorruptError(msg)
    checkpoint[WEIGHTS_KEY] = WeightsWithoutBase(weights, table)


def base_tensors(module: torch.nn.Module, names: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a module with these names, with what quantised parameters keep beside them."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        if name in names:
            found[name] = parameter.detach()
            found.update({n: t for n, t in beside(module, name, parameter).items() if n in names})
    return found


def beside(
    module: torch.nn.Module, name: str, parameter: torch.nn.Parameter
) -> dict[str, torch.Tensor]:
    """The tensors that a quantised parameter adds to the state dictionary, below its own name."""
    if type(parameter) is torch.nn.Parameter:
        return {}
    owner = name.rpartition(".")[0]
    state = module.get_submodule(owner).state_dict(prefix=f"{owner}." if owner else "")
    return {
        key: value.detach()
        for key, value in state.items()
        if key.startswith(f"{name}.") and isinstance(value, torch.Tensor)
    }


def check_base(
    table: BaseTable,
    own: Mapping[str, torch.Tensor],
    known: Mapping[str, BaseTensor] | None = None,
    *,
    strict: bool = True,
) -> None:
    """Compare a module's own tensors with a base; hashes those that are not `known`.

    Unless `strict`, only values count: of tensors that have the same name and shape.

    Raises:
        CheckpointMismatchError: they differ; it says which, and what to do.
    """
    wanted, known = table.tensors, known or {}
    missing = [name for name in wanted if name not in own]
    shapes = [n for n, t in wanted.items() if n in own and tuple(own[n].shape) != t.shape]
    alike = [name for name in wanted if name in own and name not in set(shapes)]
    hashed = {
        name: own[name]
        for name in alike
        if wanted[name].is_like(own[name])
        if name not in known or not known[name].is_like(own[name])
    }
    found = tensor_digests(hashed, all_threads())
    found.update({name: known[name].xxh3_128 for name in alike if known.get(name) == wanted[name]})
    for name in alike:
        if not wanted[name].is_like(own[name]):  # one at a time: each takes memory
            found.update(tensor_digests({name: _as(own[name], wanted[name].dtype)}))
    same = {name for name, digest in found.items() if digest == wanted[name].xxh3_128}
    values = [name for name in alike if name not in same]
    lines = [
        f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}{_more(names)}"
        for title, names in (
            ("other values", values),
            ("another shape", shapes if strict else []),
            ("not in the model", missing if strict else []),
        )
        if names
    ]
    if lines:
        called = f" {table.name!r}" if table.name else ""
        msg = (
            f"the checkpoint has the weights that were trained on a base{called}, and not the base"
            " itself; the model has another one:\n  " + "\n  ".join(lines) + f"\n{_ADVICE}"
        )
        raise CheckpointMismatchError(msg)


def _as(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """What a precision of the Trainer makes of it, behind the restore."""
    return tensor.to(plain_dtype(dtype))


def _more(names: list[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
