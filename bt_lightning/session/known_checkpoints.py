"""The committed checkpoints that the training process knows, on the disk or in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest


class KnownCheckpoints:
    """Committed generations by checkpoint id; used on the training thread only."""

    def __init__(self) -> None:
        self._generations: dict[str, dict[str, int]] = {}

    def __contains__(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._generations

    def __bool__(self) -> bool:
        """Whether any checkpoint is known."""
        return bool(self._generations)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all that are known."""
        return frozenset(self._generations)

    def add(self, manifest: Manifest) -> None:
        """Add a committed generation."""
        self._generations.setdefault(manifest.checkpoint_id, {})[manifest.digest] = (
            manifest.generation
        )

    def generation(self, checkpoint_id: str) -> int:
        """The newest known generation of an id; 0 if there is none."""
        return max(self._generations.get(checkpoint_id, {}).values(), default=0)

    def drop(self, manifest: Manifest) -> None:
        """Remove one generation, which will be deleted."""
        digests = self._generations.get(manifest.checkpoint_id, {})
        digests.pop(manifest.digest, None)
        if not digests:
            self._generations.pop(manifest.checkpoint_id, None)

    def forget(self, checkpoint_id: str) -> list[str]:
        """Remove an id, which will be deleted, and return the digests of its generations."""
        return list(self._generations.pop(checkpoint_id, {}))
