"""The random generators of a process: Python's, torch's, numpy's, and that of a CUDA device."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


def generator_states(device: torch.device | None) -> dict[str, Any]:
    """The states of this process's generators; numpy's if it is imported, CUDA's of `device`."""
    version, internal, gauss = random.getstate()
    # one tensor is faster to save than 625 integers
    python = (version, torch.tensor(internal, dtype=torch.int64, device="cpu"), gauss)
    state: dict[str, Any] = {"python": python, "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        import numpy as np

        found = np.random.get_state(legacy=False)
        # a tensor: torch.load cannot load a numpy array with weights_only=True
        key = torch.from_numpy(found["state"]["key"].astype(np.int64))
        state["numpy"] = {**found, "state": {**found["state"], "key": key}}
    if device is not None:
        state["cuda"] = torch.cuda.get_rng_state(device)
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
