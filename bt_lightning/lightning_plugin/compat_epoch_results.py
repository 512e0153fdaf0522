"""Private names of Lightning for the values that `self.log` collects over an epoch."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.torchmetrics_state import MetricObjects

log = logging.getLogger(__name__)

_SUMS = ("value", "cumulated_batch_size")


def logged_metrics_to_reset(trainer: Trainer, *, epoch_ends: bool) -> list[object]:
    """The metric objects that Lightning resets next: those logged in what ends here."""
    loop = trainer.fit_loop.epoch_loop
    ending = [loop.val_loop._results] if trainer.validating else []
    if epoch_ends:
        ending.append(loop._results)
    return [item.value for results in ending for item in results.values() if not item.is_tensor]


def epoch_results(trainer: Trainer, objects: MetricObjects) -> dict[str, Any]:
    """What `self.log` has collected in this epoch of training, by its key."""
    return {
        key: _saved(item, objects)
        for key, item in trainer.fit_loop.epoch_loop._results.items()
        if not item.has_reset
    }


def _saved(item: Any, objects: MetricObjects) -> dict[str, Any]:
    sync = item.meta.sync
    meta = {f.name: getattr(item.meta, f.name) for f in fields(item.meta) if f.name != "_sync"}
    meta["reduce_fx"] = item.meta.reduce_fx.__name__
    return {
        "meta": meta,
        "sync": [sync.should, sync.rank_zero_only, sync.op],
        "object": None if item.is_tensor else (objects.name_of(item.value) or ""),
        "count": vars(item).get("_update_count", 0),
        "sums": {name: getattr(item, name) for name in _SUMS if name in item._defaults},
        "last": item._forward_cache,
    }


def restore_epoch_results(
    trainer: Trainer, saved: Mapping[str, Any], objects: MetricObjects
) -> None:
    """Let the epoch that goes on have collected what `epoch_results` returned."""
    loop = trainer.fit_loop.epoch_loop
    results: Any = loop._results
    device = trainer.strategy.root_device
    for key, item in saved.items():
        restored = _restored(trainer, item, objects, device)
        if restored is not None:
            results[key] = restored
    # not the first batch of an epoch, at which `log` resets what it has collected
    ready = loop.batch_progress.current.ready
    trainer._logger_connector._first_loop_iter = None if ready == 0 else ready == 1


def _restored(
    trainer: Trainer, saved: Mapping[str, Any], objects: MetricObjects, device: torch.device
) -> Any:
    module: Any = sys.modules[type(trainer.fit_loop.epoch_loop._results).__module__]
    value = objects.get(saved["object"])
    if saved["object"] is not None and value is None:
        return None  # the script has no such metric any more
    should, rank_zero_only, op = saved["sync"]
    reduce: Any = trainer.strategy.reduce
    sync = module._Sync(fn=reduce, _should=should, rank_zero_only=rank_zero_only, _op=op)
    meta = module._Metadata(**saved["meta"])
    meta.sync = sync
    item = module._ResultMetric(meta, value is None)
    if value is not None:
        item.value = value
    for name, total in saved["sums"].items():
        setattr(item, name, total.to(device, copy=True))
    last = saved["last"]
    item._forward_cache = last.to(device) if isinstance(last, torch.Tensor) else last
    vars(item)["_update_count"] = saved["count"]
    of_all = trainer.global_rank if saved.get("of_all") else None
    item.meta = _as_next_logged(meta, item, of_all)
    return item


def _as_next_logged(meta: Any, item: Any, of_all: int | None) -> Any:
    """`meta`, which takes over what the next `log` of this name says, and never differs from it.

    Lightning refuses a `log` with other arguments than before; a script may have changed since.
    `of_all` is the rank of this process if each of several has what one had: if the next `log` says
    that ranks are reduced, one of them keeps it, and else what it has is not that of its own.
    """
    kind: Any = type(meta)

    class RestoredMetadata(kind):  # type: ignore[misc]  # of this Lightning
        def __ne__(self, other: object) -> bool:
            return not self == other

        def __eq__(self, other: object) -> bool:
            before = (self.reduce_fx, self.metric_attribute, self.on_epoch)
            self.__dict__.update(vars(other))
            self.__class__ = kind
            if of_all is not None and not self.metric_attribute:
                _keep_one(item, of_all)
            if before != (self.reduce_fx, self.metric_attribute, self.on_epoch):
                item.__init__(self, self.metric_attribute is None)  # it collects anew
            return True

        __hash__ = None  # type: ignore[assignment]  # as the dataclass

    meta.__class__ = RestoredMetadata
    return meta


def _keep_one(item: Any, rank: int) -> None:
    """Let rank 0 alone keep what was summed up, if it is reduced over ranks; else let it go."""
    reduced = item.meta.sync.should and not item.meta.sync.rank_zero_only
    if rank == 0 and reduced:
        if "cumulated_batch_size" in item._defaults:  # its mean over ranks is taken
            item.cumulated_batch_size = item.cumulated_batch_size.float()
        return
    for name, default in item._defaults.items():
        fresh = default.to(getattr(item, name).device, copy=True)
        setattr(item, name, fresh.float() if name == "cumulated_batch_size" else fresh)
    if rank == 0:
        log.warning(
            "not exact: %r begins anew in this epoch, as one rank had it of all samples, and it is"
            " not reduced over the ranks (sync_dist)",
            item.meta.name,
        )
