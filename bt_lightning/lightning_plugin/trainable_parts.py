"""Saves and restores which parts of a module train, which is in no state dictionary.

`requires_grad` of parameters, train or eval mode of modules, and whether a normalisation tracks
its statistics: fine-tuning callbacks and users change them in an epoch's hooks, and a resumed run
begins with what the constructors and `setup` say.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.lightning_plugin.compat_validation import modes_outside_validation
from bt_lightning.snapshot.module_tree import ModuleTree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from lightning.pytorch import Trainer


_REQUIRES_GRAD = attrgetter("requires_grad")
_TRAINING = attrgetter("training")
_TRACKING = attrgetter("track_running_stats")


class _Parts:
    """The parts of a module by name, kept while they are the same."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tree = ModuleTree(module)
        self.parameters = dict(module.named_parameters())
        self.norms = dict(_norms(self.tree.named.items()))


class TrainableParts:
    """What one resume has to restore."""

    def __init__(self) -> None:
        self._saved: Mapping[str, Any] = {}
        self._parts: _Parts | None = None

    def collect(self, trainer: Trainer) -> dict[str, Any]:
        """What a save of this moment needs."""
        module, modes = trainer.lightning_module, modes_outside_validation(trainer)
        parts = self._parts
        if parts is None or not parts.tree.is_same(module):
            parts = self._parts = _Parts(module)
        modules = parts.tree.named
        return {
            "requires_grad": _rarer(
                parts.parameters, map(_REQUIRES_GRAD, parts.parameters.values())
            ),
            "training": _rarer(modules, map(_TRAINING, modules.values()))
            if modes is None
            else _rarer(modes, modes.values()),
            "tracking": _rarer(parts.norms, map(_TRACKING, parts.norms.values())),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Called with what the checkpoint says."""
        self._saved = saved.get("trainable", {})

    def restore(self, trainer: Trainer) -> None:
        """Called after every hook of the training's start, which may freeze parts again.

        DDP and the optimizers are set up by then, with what the uninterrupted run set them up with.
        """
        saved, self._saved = self._saved, {}
        if not saved:
            return
        module = trainer.lightning_module
        modules = dict(module.named_modules())
        for parameter, value in _to_change(
            module.named_parameters(), saved["requires_grad"], lambda p: p.requires_grad
        ):
            parameter.requires_grad_(value)
        for part, value in _to_change(modules.items(), saved["training"], lambda m: m.training):
            part.training = value
        for norm, value in _to_change(
            _norms(modules.items()), saved["tracking"], lambda m: m.track_running_stats
        ):
            norm.track_running_stats = value


def _norms(modules: Iterable[tuple[str, torch.nn.Module]]) -> Iterable[tuple[str, Any]]:
    kind = torch.nn.modules.batchnorm._NormBase  # noqa: SLF001 - of all that have the attribute
    return [(name, module) for name, module in modules if isinstance(module, kind)]


def _rarer(names: Collection[str], values: Iterable[bool]) -> dict[str, Any]:
    """The names of the parts with the rarer value, and that value."""
    found = list(map(bool, values))
    number = sum(found)
    rare = number < len(found) - number
    some = 0 < number < len(found)
    named = zip(names, found, strict=True) if some else ()
    rarer = [name for name, value in named if value is rare]
    return {"names": rarer, "value": rare, "of": len(found)}


def _to_change(
    parts: Iterable[tuple[str, Any]], saved: Mapping[str, Any], read: Callable[[Any], bool]
) -> Iterable[tuple[Any, bool]]:
    parts = list(parts)
    if len(parts) != saved["of"]:
        return  # another module, whose weights were loaded with strict=False
    names, rare = set(saved["names"]), bool(saved["value"])
    for name, part in parts:
        value = rare if name in names else not rare
        if read(part) != value:
            yield part, value
