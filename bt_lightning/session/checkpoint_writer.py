"""Writes a state dictionary as a committed checkpoint directory, with facts for its manifest."""

from __future__ import annotations

import warnings
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import WEIGHTS
from bt_lightning.session.manifest_facts import EPOCHS, STEPS, first_count, package_versions
from bt_lightning.session.serving_files import ServingFiles
from bt_lightning.session.snapshot_writer import SnapshotWriter
from bt_lightning.session.unsafe_state_warnings import unsafe_state_warnings
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.state_files import EncodingCache, Snapshot, lay_out_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.restore.live_objects import LiveObjects

EXTRA = "bt_lightning"
"""Key of the state dictionary for this package's own entries."""


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
        self._warned = False

    def take(self, state: dict[str, Any], cache: EncodingCache | None = None) -> Snapshot:
        """Lay out `state` and the serving files; copies no tensor."""
        serving = self.serving
        snapshot = lay_out_files(state, serving.weights_prefix, cache, serving.tensors())
        snapshot.small_files.update(serving.constant)
        self._warn_once(snapshot)
        return snapshot

    def facts(self, state: dict[str, Any], snapshot: Snapshot) -> ManifestFacts:
        """The manifest's facts about `state`, without files and generation."""
        return ManifestFacts(
            step=first_count(state, *STEPS),
            epoch=first_count(state, *EPOCHS),
            created_at=datetime.now(timezone.utc).isoformat(),
            metrics=_extra(state, "metrics"),
            origin={
                **self.origin,
                "versions": dict(package_versions()),
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
            snapshot, ClassTable(self._allowed()), self.live_objects, trusted=self.trusted
        ):
            warnings.warn(text, stacklevel=4)


def _extra(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries that `BTLightning` added under `name`, if any."""
    extra = checkpoint.get(EXTRA)
    found = extra.get(name) if isinstance(extra, dict) else None
    return dict(found) if isinstance(found, dict) else {}
