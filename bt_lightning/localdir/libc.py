"""The C library through ctypes, loaded once: each load makes new classes, which leak memory."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process; `ctypes.get_errno` returns the error of a call."""
    return ctypes.CDLL(None, use_errno=True)
