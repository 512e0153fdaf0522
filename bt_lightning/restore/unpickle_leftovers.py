"""Restores the values that only pickle could save (leftovers of the tree).

They come from `leftovers.pt` if the caller trusts it; otherwise from equal objects of the process,
or the load fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import UnsafeLoadError
from bt_lightning.restore.unloaded_value import UnloadedValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.restore.live_objects import LiveObjects


class Leftovers:
    """The leftovers of one checkpoint; `document` is the content of `trainer.json`.

    `unpickled` are the values of `leftovers.pt`, by path; None if the caller does not trust it.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        unpickled: Mapping[str, object] | None,
        live_objects: LiveObjects | None = None,
    ) -> None:
        dropped, pickled = document.get("dropped"), document.get("pickled")
        self._dropped = dropped if isinstance(dropped, list) else []
        self._pickled = pickled if isinstance(pickled, dict) else {}
        self._unpickled = unpickled
        self._live_objects = live_objects

    def value(self, path: str) -> object:
        """The value at `path` of the state.

        Raises:
            UnsafeLoadError: only `leftovers.pt` has it, and the caller does not trust that file.
            KeyError: `leftovers.pt` lacks it.
        """
        if path in self._dropped:
            return UnloadedValue(path, "it could not be pickled when the checkpoint was saved")
        if self._unpickled is not None:
            return self._unpickled[path]
        match self._pickled.get(path):
            case [str(kind), str(digest), *resting] if self._live_objects is not None:
                equal = self._live_objects.find_equal(kind, digest)
                if equal is None and resting:
                    equal = self._live_objects.find_equal_at_rest(kind, resting[0])
                if equal is not None:
                    return equal
        msg = (
            f"{path} could not be saved without pickle and lies in leftovers.pt: load with"
            " weights_only=False if you trust the file. A job does so for its own checkpoints by"
            " BT_WEIGHTS_ONLY=0 or `bt-lightning run --trust-checkpoints`"
        )
        raise UnsafeLoadError(msg)
