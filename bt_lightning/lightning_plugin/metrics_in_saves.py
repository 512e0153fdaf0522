"""Carries the metrics of an unfinished epoch to the next run: what `log` and metric objects hold.

Lightning keeps both in memory only: an epoch that goes on after a resume would report the mean of
its last part. Nothing is saved of what Lightning resets before the resumed run goes on.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat_epoch_results as compat
from bt_lightning.lightning_plugin.merged_metrics import MergedMetrics
from bt_lightning.lightning_plugin.packed_tensors import nbytes_of, pack, unpack
from bt_lightning.lightning_plugin.torchmetrics_state import MetricObjects, metrics_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024**2
"""Of the states of metric objects, with one rank: they are copied while training waits."""
MOST_BYTES_OF_A_RANK = 16 * 1024**2
"""With several ranks: they travel through the process group's key-value store, 5 ms a megabyte."""


class MetricsInSaves:
    """The metrics of one fit, on every rank."""

    def __init__(self) -> None:
        self._objects: MetricObjects | None = None
        self._warned = False

    def begin(self, trainer: Trainer) -> None:
        """Called when the fit starts: find the metric objects, and how new ones look."""
        self._objects = MetricObjects(_roots(trainer))

    def collect(
        self, trainer: Trainer, *, epoch_ends: bool, new: Collection[int] = ()
    ) -> dict[str, Any]:
        """What a save of this moment needs of this rank; no tensor is read by the host.

        `new` are the identities of metrics that are to be new in the run that resumes.
        """
        if self._objects is None:
            return {}
        left_out = compat.logged_metrics_to_reset(trainer, epoch_ends=epoch_ends)
        if new:
            left_out += [part for part in trainer.lightning_module.modules() if id(part) in new]
        found: dict[str, Any] = {}
        if self._objects:
            found = self._objects.states(left_out)
        too_large = self._bound(found.get("metrics", {}), trainer.world_size)
        if not epoch_ends:
            found["results"] = compat.epoch_results(trainer, self._objects)
        return {**pack(found), "too_large": too_large} if any(found.values()) else {}

    def restore(self, trainer: Trainer, saved: Mapping[str, Any]) -> None:
        """Called after every hook of the training's start, which may reset metrics."""
        if not saved:
            return
        objects = MetricObjects(_roots(trainer))
        self._restore(trainer, objects, unpack(dict(saved)), saved["too_large"])

    def restore_of_all(self, trainer: Trainer, saved: Sequence[Mapping[str, Any]]) -> None:
        """As `restore`, with what each rank of another number of ranks had saved."""
        if not any(saved):
            return
        objects = MetricObjects(_roots(trainer))
        parts = [unpack(dict(each)) if each else {} for each in saved]
        merged = MergedMetrics(parts, objects, trainer.global_rank, trainer.world_size)
        too_large = sorted({name for each in saved if each for name in each["too_large"]})
        self._restore(trainer, objects, merged.found, too_large)
        left_out = [name for name in merged.left_out if name not in too_large]
        if left_out and trainer.is_global_zero:
            log.warning(
                "not exact: these metrics of an epoch begin anew, as what %d ranks had of them"
                " cannot be merged for %d: %s",
                len(saved),
                trainer.world_size,
                ", ".join(left_out),
            )

    def _restore(
        self, trainer: Trainer, objects: MetricObjects, found: Any, too_large: Sequence[str]
    ) -> None:
        unfit = objects.restore(found)
        if "results" in found:
            compat.restore_epoch_results(trainer, found["results"], objects)
        if unfit and trainer.is_global_zero:
            log.warning(
                "metrics have other states than those that were saved, and begin anew: %s",
                ", ".join(unfit),
            )
        if too_large and trainer.is_global_zero:
            log.warning(
                "not exact: these metrics begin anew in this epoch, as their states were too large"
                " to be saved: %s",
                ", ".join(too_large),
            )

    def _bound(self, states: dict[str, Any], ranks: int) -> list[str]:
        """Take the largest out of `states` until they are small enough; returns their names."""
        most = MOST_BYTES if ranks == 1 else MOST_BYTES_OF_A_RANK
        sizes = {name: nbytes_of(state) for name, state in states.items()}
        total, taken_out = sum(sizes.values()), []
        for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if total <= most:
                break
            total -= sizes[name]
            taken_out.append(name)
        for name in [n for n in states if n in taken_out or states[n].get("as") in taken_out]:
            del states[name]
        if taken_out and not self._warned:
            self._warned = True
            warnings.warn(
                f"the states of {', '.join(taken_out)} have"
                f" {sum(sizes[name] for name in taken_out):,} bytes and are not saved, as all"
                f" metrics of a rank may have {most:,}: a resume inside an epoch begins them anew."
                " A metric with `thresholds` or bins keeps counts instead of all predictions",
                stacklevel=2,
            )
        return taken_out


def _roots(trainer: Trainer) -> dict[str, Any]:
    """The module, and the metrics that callbacks hold."""
    roots: dict[str, Any] = {"": trainer.lightning_module}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, metric in metrics_of(callback).items():
            roots[f"{callback.state_key}.{name}"] = metric
    return roots
