"""The committed checkpoints that the training process knows, on the disk or in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.retention import TierCheckpoint

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest


class KnownCheckpoints:
    """Committed generations by checkpoint id; used on the training thread only."""

    def __init__(self) -> None:
        self._generations: dict[str, dict[str, TierCheckpoint]] = {}

    def __contains__(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._generations

    def __bool__(self) -> bool:
        """Whether any checkpoint is known."""
        return bool(self._generations)

    @property
    def newest(self) -> list[TierCheckpoint]:
        """The newest generation of each id, with that as its place."""
        each = self._generations.values()
        return [max(one.values(), key=lambda found: found.order) for one in each]

    def add(self, manifest: Manifest) -> None:
        """Add a committed generation."""
        of_id = self._generations.setdefault(manifest.checkpoint_id, {})
        of_id[manifest.digest] = TierCheckpoint.of(manifest.checkpoint_id, manifest)

    def generation(self, checkpoint_id: str) -> int:
        """The newest known generation of an id; 0 if there is none."""
        of_id = self._generations.get(checkpoint_id, {}).values()
        return max((one.generation for one in of_id), default=0)

    def drop(self, manifest: Manifest) -> None:
        """Remove one generation, which will be deleted."""
        digests = self._generations.get(manifest.checkpoint_id, {})
        digests.pop(manifest.digest, None)
        if not digests:
            self._generations.pop(manifest.checkpoint_id, None)

    def forget(self, checkpoint_id: str) -> list[str]:
        """Remove an id, which will be deleted, and return the digests of its generations."""
        return list(self._generations.pop(checkpoint_id, {}))
