"""What the training process knows of its checkpoints, wherever they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest


class KnownCheckpoints:
    """Generations of ids that are committed, on the disk or in the store; training thread only."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int]] = {}

    def __contains__(self, checkpoint_id: str) -> bool:
        return checkpoint_id in self._found

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self._found)

    def add(self, manifest: Manifest) -> None:
        """A generation of an id is committed."""
        self._found.setdefault(manifest.checkpoint_id, {})[manifest.digest] = manifest.generation

    def generation(self, checkpoint_id: str) -> int:
        """The newest generation of an id; 0 if there is none."""
        return max(self._found.get(checkpoint_id, {}).values(), default=0)

    def drop(self, manifest: Manifest) -> None:
        """One generation of an id is to go."""
        digests = self._found.get(manifest.checkpoint_id, {})
        digests.pop(manifest.digest, None)
        if not digests:
            self._found.pop(manifest.checkpoint_id, None)

    def forget(self, checkpoint_id: str) -> list[str]:
        """Digests of all generations of an id, which is to go."""
        return list(self._found.pop(checkpoint_id, {}))
