"""The C library, loaded once: ctypes makes new classes for each load, which leave memory behind."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """Functions of the C library that this process runs with; `ctypes.get_errno` has the error."""
    return ctypes.CDLL(None, use_errno=True)
