"""An adapter for the Trainer of `transformers`, and for those built on it, as TRL's.

The Trainer decides when to save and which files a checkpoint has; its own code writes them, into a
folder from which what is large is taken as a snapshot. In: a Trainer with a `BTTrainerCallback`. It
must never leave a Trainer changed that has none. Start reading at `callback`, then `training`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.hf.callback import BTTrainerCallback as BTTrainerCallback


def __getattr__(name: str) -> object:
    if name != "BTTrainerCallback":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from bt_lightning.hf.callback import BTTrainerCallback

    return BTTrainerCallback
