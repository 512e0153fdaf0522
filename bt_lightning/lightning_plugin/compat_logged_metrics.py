"""Private names of Lightning for the metrics that it logs: a look at each row, with any logger.

Lightning hands each row of `self.log(...)` to one method of its logger connector, at the steps of
`log_every_n_steps` and at the ends of epochs, whether there is a logger or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

_METHOD = "log_metrics"
AddRow = Callable[[int, dict[str, float], int], None]
"""Called with the optimizer step, the values and the epoch of a row."""


def look_at_logged(trainer: Trainer, add: AddRow) -> None:
    """On the rank that writes: let `add` have each row that the fit logs, on the training thread.

    Values on a device are copied to the host when the next row comes: waiting for them at once
    would wait for the device.
    """
    stop_looking_at_logged(trainer)
    connector: Any = trainer._logger_connector
    vars(connector)[_METHOD] = _Look(trainer, connector.log_metrics, add)


def stop_looking_at_logged(trainer: Trainer) -> None:
    """The fit is over; idempotent."""
    look = vars(trainer._logger_connector).pop(_METHOD, None)
    if isinstance(look, _Look):
        look.pass_on()


class _Look:
    """Stands in for the connector's method."""

    def __init__(self, trainer: Trainer, original: Callable[..., Any], add: AddRow) -> None:
        self._trainer, self._original, self._add = trainer, original, add
        self._late: tuple[int, dict[str, Any], int] | None = None

    def __call__(self, metrics: Mapping[str, Any], step: int | None = None) -> Any:
        # a row with a step of its own counts batches of a validation
        if metrics and step is None and not self._trainer.sanity_checking:
            self._look(metrics)
        return self._original(metrics, step=step)

    def pass_on(self) -> None:
        """Hand over the row that waits for its values."""
        row, self._late = self._late, None
        if row is not None:
            step, values, epoch = row
            self._add(step, {name: float(value) for name, value in values.items()}, epoch)

    def _look(self, metrics: Mapping[str, Any]) -> None:
        self.pass_on()
        values = dict(_scalars(metrics))
        own = values.pop("step", None)
        step = self._trainer.global_step if own is None else int(own)
        self._late = (step, values, self._trainer.current_epoch)
        if not any(isinstance(value, torch.Tensor) for value in values.values()):
            self.pass_on()


def _scalars(metrics: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Names and values: numbers, or tensors of one value that are on a device."""
    found: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor):
            if value.numel() == 1:
                host = value.device.type == "cpu"
                found.append((before + name, value.item() if host else value.detach().clone()))
        elif isinstance(value, dict):
            found += _scalars(value, f"{before}{name}.")
        elif isinstance(value, int | float):
            found.append((before + name, value))
    return found
