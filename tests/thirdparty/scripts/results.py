"""What a script came to, so that two runs of it can be compared bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def report(**results: Any) -> None:
    """Write a digest or the value of each result to `results.json`."""
    shown = {name: _shown(value) for name, value in results.items()}
    Path("results.json").write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n")


def _shown(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(key): _shown(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return value if isinstance(value, str | int | bool | None) else repr(value)
