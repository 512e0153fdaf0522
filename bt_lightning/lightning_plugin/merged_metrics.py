"""Merges the metrics of an unfinished epoch of all ranks, for a run on another number of ranks.

Rank 0 gets what all ranks had together, the others get what a new epoch begins with: a reduction
over the ranks then gives what it would have given. That holds for what is reduced by a sum, an
extreme or by appending, and for the means of `self.log`, which are sums and their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchmetrics.utilities import data as reductions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torchmetrics import Metric

    from bt_lightning.lightning_plugin.torchmetrics_state import MetricObjects

_EXTREMES = {"max": torch.maximum, "min": torch.minimum}
_NEW = {"max": -torch.inf, "min": torch.inf}
"""What `self.log` begins with; a sum begins with 0."""


class MergedMetrics:
    """The metrics of all ranks of a checkpoint, as one rank of this run gets them.

    Args:
        parts: what `MetricsInSaves.collect` found, of each rank of the checkpoint.
        objects: the metric objects of this run.
        rank: of this process.
        ranks: of this run.
    """

    def __init__(
        self, parts: Sequence[Mapping[str, Any]], objects: MetricObjects, rank: int, ranks: int
    ) -> None:
        self._objects, self._rank, self._ranks = objects, rank, ranks
        self.left_out: list[str] = []
        """Names of what cannot be merged, and begins anew."""
        found: dict[str, Any] = {"metrics": self._common(parts, "metrics", self._object)}
        found["tracked"] = parts[0].get("tracked", {})
        self._merged = {name for name, state in found["metrics"].items() if "as" not in state}
        if any("results" in part for part in parts):
            found["results"] = self._common(parts, "results", self._logged)
        self.found = found
        """As `MetricsInSaves.collect` found it."""

    def _common(
        self,
        parts: Sequence[Mapping[str, Any]],
        kind: str,
        merge: Callable[[str, list[dict[str, Any]]], dict[str, Any] | None],
    ) -> dict[str, Any]:
        """What every rank has and can be merged, by name."""
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part.get(kind, {})):
            states = [part[kind][name] for part in parts if name in part.get(kind, {})]
            merged = merge(name, states) if len(states) == len(parts) else None
            if merged is None:
                self.left_out.append(name)
            else:
                found[name] = merged
        return found

    def _object(self, name: str, states: list[dict[str, Any]]) -> dict[str, Any] | None:
        metric = self._objects.get(name)
        if metric is None:
            return {}  # the script has no such metric any more
        if "as" in states[0]:
            return states[0]
        if any("as" in state or not _same(state["plain"], states[0]["plain"]) for state in states):
            return None
        try:
            merged = {
                key: self._reduced(metric, key, [state["states"][key] for state in states])
                for key in states[0]["states"]
            }
        except (KeyError, _CannotMergeError):
            return None
        return {**states[0], "states": merged, "count": max(state["count"] for state in states)}

    def _reduced(self, metric: Metric, key: str, values: list[Any]) -> Any:
        """The state of this rank, by the reduction over ranks that the metric declared."""
        reduce, default = metric._reductions.get(key), metric._defaults[key]
        if isinstance(default, list):
            if reduce is not reductions.dim_zero_cat:
                raise _CannotMergeError
            return [one for value in values for one in value] if self._rank == 0 else []
        if reduce not in _TENSORS:
            raise _CannotMergeError
        if self._rank:
            return default.clone()
        stacked = torch.stack(values)
        if reduce is reductions.dim_zero_sum:
            # each further rank adds what a new metric has
            return stacked.sum(0) - (self._ranks - 1) * default.to(stacked)
        return stacked.amax(0) if reduce is reductions.dim_zero_max else stacked.amin(0)

    def _logged(self, _: str, items: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What `self.log` has summed up: only where it is reduced over the ranks."""
        first = items[0]
        if first["object"] is not None:
            return first if first["object"] in self._merged else None
        should, rank_zero_only, op = first["sync"]
        how = first["meta"]["reduce_fx"]
        reduced = (should and not rank_zero_only and op == how) or self._ranks == 1
        if not first["meta"]["on_epoch"]:
            return first
        if not reduced and len(items) == 1 and not rank_zero_only:
            return {**first, "of_all": True}  # on one rank nothing says whether it is reduced
        if not reduced or how not in ("mean", "sum", "max", "min"):
            return None
        sums = {key: self._sum(how, [item["sums"][key] for item in items]) for key in first["sums"]}
        if self._ranks > 1 and "cumulated_batch_size" in sums:
            # Lightning takes the mean over ranks of it, in integers if it is one
            sums["cumulated_batch_size"] = sums["cumulated_batch_size"].float()
        return {**first, "sums": sums}

    def _sum(self, how: str, values: list[torch.Tensor]) -> torch.Tensor:
        if self._rank:
            return torch.full_like(values[0], _NEW.get(how, 0))
        total = values[0]
        for value in values[1:]:
            total = _EXTREMES[how](total, value) if how in _EXTREMES else total + value
        return total


_TENSORS = (reductions.dim_zero_sum, reductions.dim_zero_max, reductions.dim_zero_min)


class _CannotMergeError(Exception):
    """A state is reduced over ranks in another way."""


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if set(one) != set(other):
        return False
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )
