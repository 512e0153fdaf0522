"""Facts of this machine: its directory, its GPUs and the user's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.job_caches import jobs_cache
from bt_lightning.runtime.job_plan import MachineFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEVICES: Final = Path("/proc/driver/nvidia/gpus")


def this_machine(environ: Mapping[str, str]) -> MachineFacts:
    """The directory, the GPUs that CUDA shows to this process, and the user's cache."""
    return MachineFacts(Path.cwd(), _num_gpus(environ), jobs_cache(environ))


def _num_gpus(environ: Mapping[str, str]) -> int:
    """GPUs that the driver lists, up to the first invalid entry of CUDA_VISIBLE_DEVICES."""
    try:
        found = len(list(_DEVICES.iterdir()))
    except OSError:
        return 0
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    entries = [entry.strip() for entry in visible.split(",")]
    hidden = next((at for at, entry in enumerate(entries) if entry in {"", "-1"}), len(entries))
    return min(found, hidden)
