"""What is said at the first save: what only pickle saves, and what loads do not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.snapshot.pickle_leftovers import HYPER_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    snapshot: Snapshot, table: ClassTable, live_objects: LiveObjects | None, *, trusted: bool
) -> Iterator[str]:
    """Lines for the user, none if nothing is special; `trusted`: a restart unpickles anyway."""
    late = [pair for pair in snapshot.leftovers if _is_hyper(pair[0])]
    read = [pair for pair in snapshot.leftovers if not _is_hyper(pair[0])]
    if read and not trusted:
        yield f"saved with pickle, in leftovers.pt: {_named(read)}. {_RESUME}"
    if late:
        yield f"saved with pickle, in leftovers.pt: {_named(late)}. {_LOAD}"
    if snapshot.dropped:
        yield f"left out of the checkpoint, as it cannot be pickled: {_named(snapshot.dropped)}"
    strange = [] if trusted else _strange(snapshot, table, live_objects)
    if strange:
        yield (
            f"loading {_named(strange)} needs torch.serialization.add_safe_globals([...]) of these,"
            " or weights_only=False"
        )


def _strange(
    snapshot: Snapshot, table: ClassTable, live_objects: LiveObjects | None
) -> list[tuple[str, str]]:
    """(path, name) of each class and function that the tree names and a load will not know."""
    named = {**snapshot.classes, **snapshot.functions}
    found = {value: path for value, path in named.items() if not table.knows(value)}
    if live_objects is not None and found:  # a look at the whole module takes time: only if need be
        own = set(map(id, live_objects.names.values()))
        found = {v: path for v, path in found.items() if id(v) not in own and not _is_hyper(path)}
    return [(path, value.__qualname__) for value, path in found.items()]


def _is_hyper(path: str) -> bool:
    return path.partition(".")[0] in HYPER_PARAMETERS


def _named(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{path} ({kind})" for path, kind in pairs)
