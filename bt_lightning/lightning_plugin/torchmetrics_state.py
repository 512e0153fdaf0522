"""The states of torchmetrics objects, which are in no state dictionary unless made persistent.

What counts as the state of a metric: what it declared with `add_state`, how often it was updated,
and plain attributes that changed since the fit began (`Running` and `MinMaxMetric` have some).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import MetricTracker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NO_STATE = frozenset(
    (
        "training",
        "_computed",
        "_forward_cache",
        "_is_synced",
        "_should_unsync",
        "_to_sync",
        "_update_count",
    )
)
"""Attributes of every metric that follow from others, or are saved by their own name."""


class MetricObjects:
    """The metrics below some roots (a module, and metrics that callbacks hold), by their names."""

    def __init__(self, roots: Mapping[str, torch.nn.Module]) -> None:
        self._metrics: dict[str, Metric] = {}
        self._collections: dict[str, MetricCollection] = {}
        self._trackers: dict[str, MetricTracker] = {}
        for prefix, root in roots.items():
            self._add(prefix, root)
        self._first = {name: _plain(metric) for name, metric in self._metrics.items()}

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def name_of(self, metric: object) -> str | None:
        """The name of `metric`, if it is one of these."""
        return next((name for name, found in self._metrics.items() if found is metric), None)

    def get(self, name: str | None) -> Metric | None:
        """The metric of that name, if there is one."""
        return self._metrics.get(name) if name is not None else None

    def states(self, left_out: Iterable[object]) -> dict[str, Any]:
        """The states of all that differ from a new metric, but those `left_out` and their parts."""
        self._look_again()
        without = {id(part) for metric in left_out for part in _parts(metric)}
        leaders = self._leaders()
        steps = {name: tracker.n_steps for name, tracker in self._trackers.items()}
        found: dict[str, Any] = {}
        for name, metric in self._metrics.items():
            state = None if id(metric) in without else self._state(name, metric, leaders)
            if state is not None:
                found[name] = state
        found = {name: state for name, state in found.items() if state.get("as", name) in found}
        return {"metrics": found, "tracked": steps} if found else {}

    def restore(self, saved: Mapping[str, Any]) -> list[str]:
        """Set the states that `states` returned; returns the names of those that do not fit.

        Metrics that are not there any more are passed over.
        """
        for name, steps in saved.get("tracked", {}).items():
            tracker = self._trackers.get(name)
            while tracker is not None and tracker.n_steps < steps:
                tracker.increment()
        self._look_again()
        states = saved.get("metrics", {})
        unfit = []
        for name, metric in self._metrics.items():
            state = states.get(name)
            if state is not None and "as" in state:  # the leader of its compute group
                state = states.get(state["as"])
            if state is not None and not _set_state(metric, state):
                unfit.append(name)
        return unfit

    def _add(self, prefix: str, root: torch.nn.Module) -> None:
        for name, module in root.named_modules(prefix=prefix):
            if isinstance(module, MetricTracker):
                self._trackers[name] = module
            elif isinstance(module, MetricCollection):
                self._collections[name] = module
            elif isinstance(module, Metric):
                self._metrics[name] = module

    def _look_again(self) -> None:
        """Find the metrics that a tracker made since, by each `increment`."""
        for name, tracker in list(self._trackers.items()):
            self._add(name, tracker)

    def _leaders(self) -> dict[str, str]:
        """The metrics that share the state of another one, which alone is updated."""
        found = {}
        for prefix, collection in self._collections.items():
            for first, *others in collection.compute_groups.values():
                found.update({f"{prefix}.{other}": f"{prefix}.{first}" for other in others})
        return found

    def _state(self, name: str, metric: Metric, leaders: dict[str, str]) -> dict[str, Any] | None:
        if name in leaders:
            return {"as": leaders[name]}
        first = self._first.get(name, {})
        plain = {k: v for k, v in _plain(metric).items() if _differs(v, first.get(k))}
        count = vars(metric).get("_update_count", 0)
        if not count and not plain:
            return None
        synced = metric._cache if vars(metric).get("_is_synced") else None  # of this rank alone
        states = synced or {key: getattr(metric, key) for key in metric._defaults}
        return {"states": states, "count": count, "plain": plain}


def update_counts(module: torch.nn.Module) -> dict[int, int]:
    """How often each metric below `module` was updated, by its identity."""
    found = (part for part in module.modules() if isinstance(part, Metric))
    return {id(metric): vars(metric).get("_update_count", 0) for metric in found}


def metrics_of(owner: object) -> dict[str, Metric]:
    """The metrics that are attributes of `owner`, a callback."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, Metric)}


def _parts(metric: object) -> Iterable[object]:
    return metric.modules() if isinstance(metric, Metric) else ()


def _plain(metric: Metric) -> dict[str, Any]:
    kinds = (bool, int, float, str, torch.Tensor)
    return {
        name: value
        for name, value in vars(metric).items()
        if isinstance(value, kinds) and name not in _NO_STATE and name not in metric._defaults
    }


def _differs(value: object, first: object) -> bool:
    if isinstance(value, torch.Tensor) or isinstance(first, torch.Tensor):
        return value is not first
    return type(value) is not type(first) or value != first


def _set_state(metric: Metric, saved: Mapping[str, Any]) -> bool:
    """Whether `metric` has the same states, and was given what `saved` says."""
    states, defaults = saved["states"], metric._defaults
    if set(states) != set(defaults) or not all(
        map(_fits, states.values(), map(defaults.get, states))
    ):
        return False
    for name, value in states.items():
        setattr(metric, name, _own(value, _home(metric, value)))
    for name, value in saved["plain"].items():
        setattr(metric, name, _own(value, metric.device))
    vars(metric).update(_update_count=saved["count"], _computed=None)
    return True


def _fits(value: object, default: object) -> bool:
    if isinstance(default, torch.Tensor):
        same = isinstance(value, torch.Tensor) and value.shape == default.shape
        return same or (isinstance(value, torch.Tensor) and default.numel() == 1)
    return isinstance(value, list) == isinstance(default, list)


def _home(metric: Metric, value: object) -> torch.device:
    on_cpu = isinstance(value, list) and getattr(metric, "compute_on_cpu", False)
    return torch.device("cpu") if on_cpu else metric.device


def _own(value: Any, device: torch.device) -> Any:
    """A copy, since metrics may change their states in place."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    return [_own(item, device) for item in value] if isinstance(value, list) else value
