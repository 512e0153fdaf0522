"""A torchmetrics object in a state as it was before it counted, to be known again by.

Such objects are parts of modules, and what the module's own ones counted is saved beside them; a
process that holds an equal one needs no pickle.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


def at_rest(value: object) -> torch.nn.Module | None:
    """A copy of the module `value` whose metrics have counted nothing; None if it has no metrics.

    No code of a metric runs but what copies it. torchmetrics is not imported: its objects are known
    by what they hold.
    """
    if not isinstance(value, torch.nn.Module) or not any(map(_is_metric, value.modules())):
        return None
    memo: dict[int, Any] = {}  # what a copy takes in the place of what metrics counted
    for part in value.modules():
        if _is_metric(part):
            _note_rest(vars(part), memo)
    try:
        resting = copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - it is saved all the same, and loaded by who trusts it
        return None
    for part in resting.modules():
        if _is_metric(part):
            vars(part).update(_update_count=0, _forward_cache=None, _computed=None)
    return resting


def _is_metric(part: torch.nn.Module) -> bool:
    held = vars(part)
    return isinstance(held.get("_defaults"), dict) and "_update_count" in held


def _note_rest(held: dict[str, Any], memo: dict[int, Any]) -> None:
    """As `torchmetrics.Metric.reset` leaves a metric; what it counted may hang on a graph."""
    for name, default in held["_defaults"].items():
        rest: Any = default.detach().clone() if isinstance(default, torch.Tensor) else []
        memo[id(held[name])] = rest
    for name in ("_forward_cache", "_computed"):
        memo[id(held.get(name))] = None
