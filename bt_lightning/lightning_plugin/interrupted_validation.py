"""Lets a run that was saved before the end of a validation make that validation as a whole.

Such a save says what the state was when the validation began: the random generators and Lightning's
counters are those of that moment. The weights are, unless a hook of the validation changes them,
which is looked for; then the validation is not made up for, and the resume says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat, compat_validation
from bt_lightning.lightning_plugin.torchmetrics_state import update_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from lightning.pytorch import LightningModule, Trainer


@dataclass(frozen=True)
class _Start:
    """The state when a validation began."""

    generators: dict[str, Any]
    total: dict[str, int]
    """Batches of this epoch's validations, as Lightning counts them."""
    weights: list[tuple[object, int]]
    updates: dict[int, int]
    """How often each metric object was updated, by its identity."""


class InterruptedValidation:
    """The validations of one fit, on every rank."""

    def __init__(self) -> None:
        self._start: _Start | None = None
        self._total: dict[str, int] | None = None

    def begin(self, trainer: Trainer, generators: Callable[[], dict[str, Any]]) -> None:
        """Called when the fit starts: note each validation's start, and `generators` then."""

        def note() -> None:
            total = compat_validation.validation_total(trainer)
            module = trainer.lightning_module
            self._start = _Start(generators(), total, _versions(module), update_counts(module))

        compat_validation.before_validations(trainer, note)

    def is_to_be_made(self, trainer: Trainer) -> bool:
        """Whether a run that resumes from this moment begins with the validation behind it."""
        if not compat_validation.validation_is_scheduled(trainer):
            return False
        if not trainer.validating:
            return compat.is_behind_batch(trainer)
        return (
            self._start is not None
            and compat_validation.is_between_validation_batches(trainer)
            and self._start.weights == _versions(trainer.lightning_module)
            and not self._keeps_updated(trainer.lightning_module)
        )

    def collect(self, trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, int]:
        """What a save of a moment at which `is_to_be_made` holds needs; edits Lightning's part."""
        compat_validation.end_batch(checkpoint)
        if trainer.validating and self._start is not None:
            return self._start.total
        return compat_validation.validation_total(trainer)

    def generators(self, trainer: Trainer) -> dict[str, Any] | None:
        """Those of the start of a validation that has begun; None if none has."""
        return self._start.generators if trainer.validating and self._start is not None else None

    def updated(self, module: LightningModule) -> set[int]:
        """Identities of the metric objects that were updated since the validation began.

        They were new by then, and are so when it begins again.
        """
        before = self._start.updates if self._start is not None else {}
        return {i for i, count in update_counts(module).items() if count != before.get(i, 0)}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Called with what the checkpoint says."""
        self._total = saved.get("validation")

    def restore(self, trainer: Trainer) -> None:
        """Called right before the first batch of a run: begin with the validation."""
        total, self._total = self._total, None
        if total is not None:
            compat_validation.begin_with_validation(trainer, total)

    def _keeps_updated(self, module: LightningModule) -> bool:
        """Whether a metric that goes on from before the validation was updated in it."""
        before = self._start.updates if self._start is not None else {}
        return any(before.get(identity, 0) for identity in self.updated(module))


def _versions(module: torch.nn.Module) -> list[tuple[object, int]]:
    """What a write to weights and buffers, or an exchange of their memory, changes.

    A tensor of `torch.inference_mode` counts no writes: it is never the same.
    """
    tensors = (*module.parameters(), *module.buffers())
    return [
        (object() if tensor.is_inference() else tensor._version, tensor.data_ptr())
        for tensor in tensors
    ]
