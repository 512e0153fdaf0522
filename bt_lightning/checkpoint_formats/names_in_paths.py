"""Step, epoch and metrics as people and frameworks write them into names. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

_PAIR: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9_./-]*?)=(-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?=$|[^0-9.])"
)
_STEP: Final = re.compile(
    r"(?:^|[^a-zA-Z])(?:global_?step|steps?|iter(?:ation)?|ckpt|checkpoint)[-_=]?(\d{1,15})(?!\d)",
    re.IGNORECASE,
)
_EPOCH: Final = re.compile(r"(?:^|[^a-zA-Z])(?:epoch|ep)[-_=]?(\d{1,9})(?!\d)", re.IGNORECASE)
_BARE: Final = re.compile(r"\d{1,15}")


def step_of_name(name: str) -> int:
    """The step in a name such as `checkpoint-8`, `step=8`, `global_step8` or `8`; 0 without one."""
    found = _STEP.search(name)
    if found:
        return int(found[1])
    return int(name) if _BARE.fullmatch(name) else 0


def epoch_of_name(name: str) -> int:
    """The epoch in a name such as `epoch=3-step=8`; 0 without one."""
    found = _EPOCH.search(name)
    return int(found[1]) if found else 0


def metrics_of_name(name: str) -> dict[str, float]:
    """The metrics in a name such as `epoch=3-val_loss=0.25`, as Lightning writes them."""
    pairs: dict[str, float] = {}
    for key, text in _PAIR.findall(name):
        metric = key.lstrip("-_./")
        if metric not in {"epoch", "step", "global_step", "v"} and math.isfinite(float(text)):
            pairs[metric] = float(text.rstrip("."))
    return pairs
