"""How much memory a process can still allocate."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_LIMIT_AND_USE: Final = ("memory.max", "memory.current")


def memory_available(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that this process can still allocate, by the kernel and by its cgroup (version 2).

    None if neither is readable.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        found += [1024 * int(parts[1]) for parts in lines if parts[0] == "MemAvailable:"]
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((cgroup / name).read_text().strip() for name in _LIMIT_AND_USE)
        cache = [line.split() for line in (cgroup / "memory.stat").read_text().splitlines()]
        reclaimable = sum(int(size) for name, size in cache if name == "inactive_file")
        found.append(int(limit) - int(used) + reclaimable)  # "max" raises ValueError: no limit
    return min(found) if found else None
