"""Times in ISO 8601, as records have them; parsed alike by every Python."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

_MOMENT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 9998


def moment(text: str) -> datetime:
    """Parse a time in ISO 8601: date, `T`, time to the second or finer, and zone.

    Raises:
        ValueError: `text` is no such time, or its year is not in 1970 to 9998.
    """
    found = _MOMENT.fullmatch(text)
    if found is None:
        msg = f"expected a time such as 2030-01-02T03:04:05+00:00, found {text[:50]!r}"
        raise ValueError(msg)
    day, clock, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone  # Python 3.10 knows no Z, and no other fractions
    time = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '')[:6]:0<6}{zone}")
    if not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        msg = f"the year of {text[:50]!r} is not in {_FIRST_YEAR} to {_LAST_YEAR}"
        raise ValueError(msg)
    return time
