"""Pickles the values that the tree cannot represent into `leftovers.pt`.

A load unpickles that file only with `weights_only=False`.
"""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.class_allowlist import class_name
from bt_lightning.snapshot.metrics_at_rest import at_rest
from bt_lightning.snapshot.state_pickle import SHARDED

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPARED = 4 << 20
"""Bytes of `leftovers.pt` above which no digests of its values are recorded."""
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
"""Entries of a Lightning checkpoint that a resume does not read and that may be incomplete."""


def type_name(value: object) -> str:
    """The name of a value's type in messages and manifests."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def pickle_leftovers(leftovers: dict[str, object]) -> tuple[bytes | None, list[str]]:
    """The bytes of `leftovers.pt`, and the paths of hyperparameters that cannot be pickled.

    Those are dropped, as Lightning does with a warning.

    Raises:
        UnsupportedStateError: another value can be neither encoded nor pickled.
    """
    if not leftovers:
        return None, []
    try:
        return _saved(leftovers), []
    except Exception:  # noqa: BLE001
        kept, dropped = {}, []
    for path, value in leftovers.items():
        try:
            _saved(value)
            kept[path] = value
        except Exception as error:
            if path.partition(".")[0] not in HYPER_PARAMETERS:
                msg = (
                    f"{path} is a {type_name(value)}, which can be neither encoded nor pickled"
                    f" ({type(error).__name__}: {error}): keep it out of the checkpoint"
                )
                raise UnsupportedStateError(msg) from error
            dropped.append(path)
    return (_saved(kept) if kept else None), dropped


def leftover_digests(leftovers: Mapping[str, object], size: int) -> dict[str, list[str]]:
    """Path -> class and digest of the pickle, for each leftover that a resume reads.

    A module with metrics has a third: the digest of what it was before they counted. A process
    that already has an equal object finds it by these and does not unpickle. Empty if
    `leftovers.pt` is large (`size` bytes), since each value is pickled once more.
    """
    if size > _COMPARED:
        return {}
    return {
        path: [class_name(type(value)), digest_of(value), *_digest_at_rest(value)]
        for path, value in leftovers.items()
        if path.partition(".")[0] not in HYPER_PARAMETERS
    }


def _digest_at_rest(value: object) -> list[str]:
    resting = at_rest(value)
    return [] if resting is None else [digest_of(resting)]


def digest_of(value: object) -> str:
    """XXH3-128 of the bytes that `torch.save` writes; raises what pickling `value` raises."""
    return xxhash.xxh3_128_hexdigest(_saved(value))


class _Pickler(pickle.Pickler):
    """Refuses what would lose bytes: one rank's part of a tensor, anywhere in the value."""

    def reducer_override(self, value: Any) -> Any:
        if type(value).__name__ in SHARDED:
            msg = f"it has a {type(value).__name__}, of which this rank has a part only"
            raise UnsupportedStateError(msg)
        return NotImplemented


_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler, dump=pickle.dump, dumps=pickle.dumps)
"""What `torch.save` needs of a module."""


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=_PICKLE)
    return buffer.getvalue()
