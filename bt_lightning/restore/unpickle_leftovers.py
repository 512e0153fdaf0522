"""What stands for values that only pickle could save: unpickled if asked, else held, or a hole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UnsafeLoadError
from bt_lightning.restore.unloaded_value import UnloadedValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.restore.live_objects import LiveObjects


class Leftovers:
    """Of one checkpoint; `beside` is what stands in `trainer.json` beside the tree.

    `unpickled` are the values of `leftovers.pt`, by path; None: nobody asked to read them.
    """

    def __init__(
        self,
        beside: Mapping[str, Any],
        unpickled: Mapping[str, object] | None,
        held: LiveObjects | None = None,
    ) -> None:
        dropped, pickled = beside.get("dropped"), beside.get("pickled")
        self._dropped = dropped if isinstance(dropped, list) else []
        self._pickled = pickled if isinstance(pickled, dict) else {}
        self._unpickled = unpickled
        self._held = held

    def value(self, path: str) -> object:
        """The value at `path` of the state.

        Raises:
            UnsafeLoadError: only pickle has it, and nobody asked for that.
            KeyError: `leftovers.pt` lacks it.
        """
        if path in self._dropped:
            return UnloadedValue(path, "it could not be pickled when the checkpoint was saved")
        if self._unpickled is not None:
            return self._unpickled[path]
        match self._pickled.get(path):
            case [str(kind), str(digest)] if self._held is not None:
                found = self._held.equal(kind, digest)
                if found is not None:
                    return found
        msg = (
            f"{path} could not be saved without pickle and lies in leftovers.pt: load with"
            " weights_only=False if you trust the file. A job does so for its own checkpoints by"
            " BT_WEIGHTS_ONLY=0 or `bt-lightning run --trust-checkpoints`"
        )
        raise UnsafeLoadError(msg)
