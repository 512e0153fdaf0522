"""Saves and restores which parts of a module train, which is in no state dictionary.

`requires_grad` of parameters, train or eval mode of modules, and whether a normalisation tracks
its statistics: fine-tuning callbacks and users change them in an epoch's hooks, and a resumed run
begins with what the constructors and `setup` say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.lightning_plugin.compat_validation import modes_outside_validation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lightning.pytorch import Trainer


class TrainableParts:
    """What one resume has to restore."""

    def __init__(self) -> None:
        self._saved: Mapping[str, Any] = {}

    def collect(self, trainer: Trainer) -> dict[str, Any]:
        """What a save of this moment needs."""
        module = trainer.lightning_module
        modules, modes = dict(module.named_modules()), modes_outside_validation(trainer)
        return {
            "requires_grad": _named(module.named_parameters(), lambda p: p.requires_grad),
            "training": _named(modules.items(), lambda m: m.training)
            if modes is None
            else _named(modes.items(), bool),
            "tracking": _named(_norms(modules.items()), lambda m: m.track_running_stats),
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


def _named(parts: Iterable[tuple[str, Any]], read: Callable[[Any], bool]) -> dict[str, Any]:
    """The names of the parts for which `read` is the rarer value, and that value."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for name, part in parts:
        names[read(part)].append(name)
    rare = len(names[True]) < len(names[False])
    return {"names": names[rare], "value": rare, "of": len(names[True]) + len(names[False])}


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
