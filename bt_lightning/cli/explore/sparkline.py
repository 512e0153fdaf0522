"""Numbers as a line of blocks. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as a line of blocks; a value that is not finite is a gap; many share a block."""
    if not values or width <= 0:
        return ""
    per = max(1, math.ceil(len(values) / width))
    groups = [values[start : start + per] for start in range(0, len(values), per)]
    means = []
    for group in groups:
        known = [value for value in group if math.isfinite(value)]
        means.append(math.fsum(value / len(known) for value in known) if known else None)
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = high / 2 - low / 2  # halved: the whole may be more than a float holds
    return "".join(
        " "
        if mean is None
        else _BLOCKS[round((mean / 2 - low / 2) / span * (len(_BLOCKS) - 1)) if span else 0]
        for mean in means
    )
