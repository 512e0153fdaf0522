"""Which weights are frozen and need not be stored: the base that every start of a script makes.

`FrozenBase` is made on the rank that writes, when the module is complete and no checkpoint applied
yet; `begin` is called when training begins. All methods are the training thread's.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.restore.weights_without_base import base_tensors, beside, check_base
from bt_lightning.snapshot.base_table import BaseTable, BaseTensor, LeftOut
from bt_lightning.snapshot.dtypes import is_quantized
from bt_lightning.snapshot.host_copies import write_counts
from bt_lightning.snapshot.tensor_digests import all_threads, tensor_digests
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.restore.weights_without_base import WeightsWithoutBase

log = logging.getLogger(__name__)

_STORED_SHARE = 16
"""The smallest frozen tensors are stored, up to this share of what trains."""
_Mark = tuple[int, int, torch.dtype, torch.device]
"""Address, version counter, dtype and device of a tensor."""


class FrozenBase:
    """The frozen weights of a module that trains, and what they held at the start.

    Args:
        module: the module, as its state dictionary names its weights.
        save_frozen: False leaves out all frozen parameters, None those of a `PeftModel`, True none.
    """

    def __init__(self, module: torch.nn.Module, save_frozen: bool | None) -> None:  # noqa: FBT001
        self._module = module
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        names = _frozen(module, self._parameters, save_frozen)
        self.tensors: dict[str, BaseTensor] = {}
        """What checkpoints leave out; the names of the state dictionary."""
        self._owners: dict[str, str] = {}
        """Name of each tensor -> the parameter that it belongs to."""
        self._marks: dict[str, _Mark] = {}
        self._changed: set[str] = set()
        """Gets names from the thread that verifies saves."""
        self._rewritten: set[str] = set()
        self._table = BaseTable({})
        self._name = _base_name(module) if names else None
        for name in names:
            own = {name, *beside(module, name, self._parameters[name])}
            self._owners.update(dict.fromkeys(own, name))
        self._hash(self._owners)
        self._note(names)

    def check(self, weights: WeightsWithoutBase, *, strict: bool = True) -> None:
        """Before `weights` are loaded: compare the base that they lack with the module's.

        Raises:
            CheckpointMismatchError: it is another one.
        """
        wanted = weights.table.tensors
        own = base_tensors(self._module, wanted)
        check_base(weights.table, own, self.tensors, strict=strict)
        # a precision of the Trainer may convert them later, to what the table says
        self.tensors.update(
            {
                n: t
                for n, t in wanted.items()
                if n in self.tensors and t.shape == tuple(own[n].shape)
            }
        )

    def restored(self, weights: Mapping[str, Any], left_out: Mapping[str, Any]) -> None:
        """After a load: `weights` were read from the checkpoint, but for those `left_out`."""
        for name in self._marks.keys() & weights.keys() - left_out.keys():
            del self._marks[name]  # whether it is that of the base, is to be seen
        self._note(self._marks.keys() & left_out.keys())

    def begin(self) -> None:
        """When training begins: look at what was loaded, moved or written since the start."""
        kept: dict[str, BaseTensor] = {}
        # a module that is moved may have other objects than before
        self._parameters = dict(self._module.named_parameters(remove_duplicate=False))
        self.tensors = {
            n: t for n, t in self.tensors.items() if self._owners[n] in self._parameters
        }
        again = [name for name in self.tensors if not self._is_untouched(self._owners[name])]
        found = self._digests(again)
        for name, known in self.tensors.items():
            now = found.get(name, known)
            owner = self._marks.get(self._owners[name])
            converted = owner is not None and now.dtype != known.dtype and now.shape == known.shape
            if now == known or converted:
                kept[name] = now
        dropped = {self._owners[name] for name in self.tensors.keys() - kept.keys()}
        self.tensors = {n: t for n, t in kept.items() if self._owners[n] not in dropped}
        self._marks.clear()
        self._note(set(map(self._owners.__getitem__, self.tensors)))
        if self.tensors:
            facts = BaseTable(self.tensors, self._name).facts
            log.info(
                "checkpoints leave out %d frozen tensors of %.1f MB%s: each start must make them",
                facts["tensors"],
                facts["size"] / 1e6,
                f" ({self._name})" if self._name else "",
            )

    def take(self, state: Mapping[str, Any]) -> LeftOut | None:
        """What a save of `state` leaves out of its weights; None if it stores all."""
        weights = state.get(WEIGHTS_KEY)
        if not self.tensors or not isinstance(weights, dict):
            return None
        self._forget_changed()
        found = {}
        for name, tensor in weights.items():
            owner = self._owners.get(name)
            if owner is not None and name in self.tensors and isinstance(tensor, torch.Tensor):
                parameter = self._parameters[owner]
                if not parameter.requires_grad and (
                    owner != name or tensor.data_ptr() == parameter.data_ptr()
                ):
                    found[name] = tensor
        self._look_at_writes(found)
        found = {
            name: tensor
            for name, tensor in found.items()
            if self._owners[name] in found and name in self.tensors
            if self.tensors[name].is_like(tensor)
        }
        if not found:
            return None
        if self._table.tensors.keys() != found.keys():
            self._table = BaseTable({name: self.tensors[name] for name in found}, self._name)
        owners = [self._parameters[name] for name in found if name in self._parameters]
        return LeftOut(self._table, found, owners, self._changed)

    def look(self) -> LeftOut | None:
        """What is to be verified between two saves."""
        names = self.tensors.keys() & self._parameters.keys()
        return self.take({WEIGHTS_KEY: {n: self._parameters[n].detach() for n in names}})

    def _look_at_writes(self, found: Mapping[str, torch.Tensor]) -> None:
        """Hash what was written to since it was looked at, each at its first time only.

        Who writes the same values again and again is left to the thread that verifies.
        """
        owners = {self._owners[name] for name in found}
        written = {o for o in owners - self._rewritten if not self._is_untouched(o)}
        if not written:
            return
        self._rewritten |= written
        names = [name for name in found if self._owners[name] in written]
        hashed = self._digests(names)
        self._changed.update(n for n in names if hashed.get(n) != self.tensors[n])
        self._forget_changed()
        self._note(written & self._marks.keys())

    def _forget_changed(self) -> None:
        """Store from now on what is not that of the base any more."""
        owners = {self._owners[name] for name in tuple(self._changed) if name in self.tensors}
        if not owners:
            return
        self.tensors = {n: t for n, t in self.tensors.items() if self._owners[n] not in owners}
        for owner in owners:
            self._marks.pop(owner, None)

    def _is_untouched(self, owner: str) -> bool:
        """Whether a parameter is that of the last look, or has only moved to another device."""
        mark, now = self._marks.get(owner), _mark(self._parameters[owner])
        if mark is None or mark[1:3] != now[1:3]:
            return False
        return mark[0] == now[0] or mark[3] != now[3]

    def _note(self, owners: Any) -> None:
        self._marks.update({name: _mark(self._parameters[name]) for name in owners})

    def _hash(self, names: Any) -> None:
        self.tensors.update(self._digests(names))

    def _digests(self, names: Any) -> dict[str, BaseTensor]:
        own = base_tensors(self._module, dict.fromkeys(names))
        found = tensor_digests(own, all_threads())
        return {name: BaseTensor.of(tensor, found[name]) for name, tensor in own.items()}


def _mark(tensor: torch.Tensor) -> _Mark:
    (writes,) = write_counts([tensor])
    return tensor.data_ptr(), writes, tensor.dtype, tensor.device


def _frozen(
    module: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    save_frozen: bool | None,  # noqa: FBT001
) -> list[str]:
    """Names of the parameters to leave out: frozen, in memory of their own, not the smallest."""
    if save_frozen:
        return []
    within = [""] if save_frozen is False else [f"{n}." if n else "" for n in _peft_models(module)]
    trained = [p for p in parameters.values() if p.requires_grad and _is_dense(p)]
    busy = {
        t.untyped_storage().data_ptr() for t in (*trained, *filter(_is_dense, module.buffers()))
    }
    frozen = {
        name: parameter
        for name, parameter in parameters.items()
        if not parameter.requires_grad
        and any(map(name.startswith, within))
        and _is_dense(parameter)
        and parameter.untyped_storage().data_ptr() not in busy
    }
    room = sum({p.data_ptr(): p.nbytes for p in trained}.values()) // _STORED_SHARE
    by_size = sorted(frozen, key=lambda name: frozen[name].nbytes)
    for number, name in enumerate(by_size):
        room -= frozen[name].nbytes
        if room < 0:
            return by_size[number:]
    return []


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its values lie in memory that can be read."""
    return (
        not torch.nn.parameter.is_lazy(tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not is_quantized(tensor.dtype)  # its scale is not among its bytes
        and type(tensor.detach()) in {torch.Tensor, torch.nn.Parameter}
        and tensor.numel() > 0
    )


def _peft_models(module: torch.nn.Module) -> list[str]:
    """Names of the models that `peft` has wrapped; it is imported if there are any."""
    peft = sys.modules.get("peft")
    if peft is None:
        return []
    return [name for name, part in module.named_modules() if isinstance(part, peft.PeftModel)]


def _base_name(module: torch.nn.Module) -> str | None:
    """What the base is called: by its adapter, or the configuration of a `transformers` model."""
    for part in module.modules():
        configs = getattr(part, "peft_config", None)
        adapters = configs.values() if isinstance(configs, dict) else ()
        named = [getattr(one, "base_model_name_or_path", None) for one in adapters]
        named.append(getattr(getattr(part, "config", None), "_name_or_path", None))
        for name in named:
            if isinstance(name, str) and name:
                return name
    return None
