"""Writes a state dictionary as a committed checkpoint directory, with facts for its manifest."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import BASE, WEIGHTS
from bt_lightning.session.manifest_facts import EPOCHS, STEPS, first_count, process_facts
from bt_lightning.session.serving_files import ServingFiles
from bt_lightning.session.snapshot_writer import SnapshotWriter
from bt_lightning.session.unsafe_state_warnings import unsafe_state_warnings
from bt_lightning.snapshot.base_table import BaseChangedError
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.state_files import EncodingCache, Snapshot, lay_out_files
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.restore.live_objects import LiveObjects
    from bt_lightning.session.frozen_base import FrozenBase
    from bt_lightning.snapshot.base_table import LeftOut

EXTRA = "bt_lightning"
"""Key of the state dictionary for this package's own entries."""
_LAST = ("signal", "end")
"""Reasons of interim saves behind which nothing is trained."""


class CheckpointWriter(SnapshotWriter[dict[str, Any]]):
    """Writes checkpoints; used on the training thread of the rank that writes.

    Args:
        allowed: returns classes and functions, besides the built-in ones, that loads may restore.
    """

    def __init__(self, allowed: Callable[[], tuple[object, ...]] = tuple) -> None:
        self._allowed = allowed
        self.serving = ServingFiles()
        """Files that are added to each checkpoint for model serving."""
        self.origin: dict[str, Any] = {}
        """Facts for the manifest that are not in a state dictionary."""
        self.live_objects: LiveObjects | None = None
        """Objects of the process that a restart can use instead of unpickling."""
        self.trusted = False
        """Whether a restart of this job will unpickle its checkpoints."""
        self.base: FrozenBase | None = None
        """The weights of the module that trains which are not stored."""
        self._warned = False

    def take(self, state: dict[str, Any], cache: EncodingCache | None = None) -> Snapshot:
        """Lay out `state` and the serving files; copies no tensor."""
        serving = self.serving
        left_out = self._left_out(state, at_once=cache is None)
        if left_out is not None:
            state = _without(state, left_out)
        names = serving.names(state.get(WEIGHTS_KEY))
        snapshot = lay_out_files(state, names, cache, serving.tensors(names))
        if left_out is not None:
            snapshot = replace(snapshot, left_out=left_out)
            snapshot.small_files[BASE] = left_out.table.content
        if left_out is None or serving.adapter is not None:
            snapshot.small_files.update(serving.constant)  # or it would look like a whole model
        self._warn_once(snapshot)
        return snapshot

    def _left_out(self, state: dict[str, Any], *, at_once: bool) -> LeftOut | None:
        """The weights that are not stored; verified `at_once`, or if no other save may come."""
        if self.base is None:
            return None
        left_out = self.base.take(state)
        if left_out is None or not (at_once or _extra(state, "origin").get("interim") in _LAST):
            return left_out
        with contextlib.suppress(BaseChangedError):
            left_out.verify()
            return left_out
        return self.base.take(state)

    def facts(self, state: dict[str, Any], snapshot: Snapshot) -> ManifestFacts:
        """The manifest's facts about `state`, without files and generation."""
        return ManifestFacts(
            step=first_count(state, *STEPS),
            epoch=first_count(state, *EPOCHS),
            created_at=datetime.now(timezone.utc).isoformat(),
            metrics=_extra(state, "metrics"),
            origin={
                **self.origin,
                **_base_facts(snapshot),
                **process_facts(),
                **_extra(state, "origin"),
            },
            resumable=self.resumable(state),
            weights_prefix=(
                self.serving.weights_prefix if WEIGHTS in snapshot.tensor_files else ""
            ),
            leftovers=(*snapshot.leftovers, *snapshot.dropped),
        )

    def step(self, state: dict[str, Any]) -> int | None:
        """The optimizer step that Lightning counts."""
        return state.get("global_step")

    def resumable(self, state: dict[str, Any]) -> bool:
        """Whether `state` has more than weights."""
        return "optimizer_states" in state

    def _warn_once(self, snapshot: Snapshot) -> None:
        """At the first save, warn about state that a load cannot restore by default."""
        if self._warned:
            return
        self._warned = True
        for text in unsafe_state_warnings(
            snapshot, lambda: ClassTable(self._allowed()), self.live_objects, trusted=self.trusted
        ):
            warnings.warn(text, stacklevel=4)


def _without(state: dict[str, Any], left_out: LeftOut) -> dict[str, Any]:
    """`state` with fewer weights; neither it nor its weights are changed."""
    weights = state[WEIGHTS_KEY]
    stored = OrderedDict(item for item in weights.items() if item[0] not in left_out.tensors)
    vars(stored).update(getattr(weights, "__dict__", {}))  # `_metadata`: versions of modules
    return {**state, WEIGHTS_KEY: stored}


def _base_facts(snapshot: Snapshot) -> dict[str, Any]:
    if snapshot.left_out is None:
        return {}
    table = snapshot.left_out.table
    return {"base": table.facts, **({"base_model": table.name} if table.name else {})}


def _extra(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries that `BTLightning` added under `name`, if any."""
    extra = checkpoint.get(EXTRA)
    found = extra.get(name) if isinstance(extra, dict) else None
    return dict(found) if isinstance(found, dict) else {}
