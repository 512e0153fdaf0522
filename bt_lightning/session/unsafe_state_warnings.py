"""Warnings at the first save about state that a load does not restore by default.

That is state that only pickle can save, and classes that are not on the allowlist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.snapshot.pickle_leftovers import HYPER_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.snapshot.class_allowlist import ClassTable
    from bt_lightning.snapshot.state_files import Snapshot

_RESUME = (
    "A restart takes each from the script's own module if that holds an equal one, else it ends"
    " with UnsafeLoadError. To let it unpickle them: BT_WEIGHTS_ONLY=0, `bt-lightning run"
    " --trust-checkpoints`, or weights_only=False"
)
_LOAD = "A resume does not need them. Only weights_only=False loads them elsewhere"


def unsafe_state_warnings(
    snapshot: Snapshot,
    table: Callable[[], ClassTable],
    live_objects: LiveObjects | None,
    *,
    trusted: bool,
) -> Iterator[str]:
    """The texts of the warnings, if any; with `trusted`, a restart unpickles without asking.

    `table` makes the allowlist of a load, in a millisecond: only for a tree that names a class.
    """
    hyperparameters = [pair for pair in snapshot.leftovers if _is_hyper(pair[0])]
    resumed = [pair for pair in snapshot.leftovers if not _is_hyper(pair[0])]
    if resumed and not trusted:
        yield f"saved with pickle, in leftovers.pt: {_named(resumed)}. {_RESUME}"
    if hyperparameters:
        yield f"saved with pickle, in leftovers.pt: {_named(hyperparameters)}. {_LOAD}"
    if snapshot.dropped:
        yield f"left out of the checkpoint, as it cannot be pickled: {_named(snapshot.dropped)}"
    unknown = [] if trusted else _unknown(snapshot, table, live_objects)
    if unknown:
        yield (
            f"loading {_named(unknown)} needs torch.serialization.add_safe_globals([...]) of these,"
            " or weights_only=False"
        )


def _unknown(
    snapshot: Snapshot, table: Callable[[], ClassTable], live_objects: LiveObjects | None
) -> list[tuple[str, str]]:
    """(path, name) of each class and function in the tree that a load will not allow."""
    named = {**snapshot.classes, **snapshot.functions}
    if not named:
        return []
    known = table()
    found = {value: path for value, path in named.items() if not known.knows(value)}
    if live_objects is not None and found:  # a look at the whole module takes time: only if need be
        own = set(map(id, live_objects.names.values()))
        found = {v: path for v, path in found.items() if id(v) not in own and not _is_hyper(path)}
    return [(path, value.__qualname__) for value, path in found.items()]


def _is_hyper(path: str) -> bool:
    return path.partition(".")[0] in HYPER_PARAMETERS


def _named(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{path} ({kind})" for path, kind in pairs)
