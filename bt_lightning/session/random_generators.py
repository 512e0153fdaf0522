"""The random generators of a process: Python's, torch's, numpy's, and that of a CUDA device."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def generator_states(device: torch.device | None) -> dict[str, Any]:
    """The states of this process's generators; numpy's if it is imported, CUDA's of `device`."""
    return storable_states(copied_states(device))


def copied_states(device: torch.device | None) -> dict[str, Any]:
    """As `generator_states`, in the form of the generators: for where it must be quick."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        import numpy as np

        state["numpy"] = np.random.get_state(legacy=False)
    if device is not None:
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def storable_states(copied: dict[str, Any]) -> dict[str, Any]:
    """What `copied_states` returned, of values that `torch.load` loads with `weights_only`."""
    version, internal, gauss = copied["python"]
    # one tensor is faster to save than 625 integers
    python = (version, torch.tensor(internal, dtype=torch.int64, device="cpu"), gauss)
    state = {**copied, "python": python}
    if "numpy" in copied:
        import numpy as np

        found = copied["numpy"]
        key = torch.from_numpy(found["state"]["key"].astype(np.int64))
        state["numpy"] = {**found, "state": {**found["state"], "key": key}}
    return state


def restore_generators(state: dict[str, Any], device: torch.device | None) -> None:
    """Restore the states that `generator_states` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(torch.as_tensor(internal).tolist()), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state:
        import numpy as np

        inner = state["numpy"]["state"]
        key = inner["key"].cpu().numpy().astype(np.uint32)
        np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    if device is not None and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
