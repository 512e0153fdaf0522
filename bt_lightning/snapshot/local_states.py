"""Refuses optimizer states that are one rank's own, and do not say so.

An optimizer of a script may work on the local parts of DTensors and keep plain tensors beside them.
Nothing tells these from tensors that all ranks have alike, of which a checkpoint has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.local_shards import is_dtensor, local_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def refuse_local_states(
    weights: Mapping[str, Any], optimizers: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse plain tensors of the shape of this rank's part of their parameter, which is sharded.

    Called on each rank, for a structure of the state that is not known yet.

    Args:
        weights: name -> parameter or buffer.
        optimizers: the state of each optimizer, by names of parameters.

    Raises:
        UnsupportedStateError: there is one; names it.
    """
    for number, optimizer in enumerate(optimizers):
        for name, entry in optimizer.get("state", {}).items():
            weight = weights.get(name)
            if weight is None or not is_dtensor(weight) or not isinstance(entry, dict):
                continue
            whole, part = tuple(weight.shape), tuple(local_part(weight).shape)
            if whole == part:
                continue
            for key, value in entry.items():
                if type(value) is torch.Tensor and tuple(value.shape) == part:
                    msg = (
                        f"optimizer {number} keeps {key} of {name} {list(whole)} as a plain tensor"
                        f" {list(part)}, as this rank's part of the parameter: expected a DTensor,"
                        " of which all ranks save their parts. Make it by torch.zeros_like of the"
                        " parameter, or by DTensor.from_local"
                    )
                    raise UnsupportedStateError(msg)
