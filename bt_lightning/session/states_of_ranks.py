"""Brings the state of each rank to rank 0, which saves it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = "rank"
"""Key of this package's entries for what is this rank's own, in a save of parts."""
RANKS = "ranks"
"""Key of this package's entries for what each rank had so, in rank order, in what is loaded."""


def states_of_ranks(
    mine: dict[str, Any], exchange: Callable[[bytes], list[bytes] | None]
) -> list[dict[str, Any]] | None:
    """Called on every rank: the states of all, in rank order, on rank 0; None elsewhere.

    `exchange` is `FitRanks.exchange`: only ranks of this training write what is unpickled here.

    Raises:
        RankLostError: a rank is gone or did not send its state in time.
    """
    payloads = exchange(pickle.dumps(on_cpu(mine)))
    return None if payloads is None else [pickle.loads(payload) for payload in payloads]


def on_cpu(value: Any) -> Any:
    """`value` for a process that has not this one's device."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return value
