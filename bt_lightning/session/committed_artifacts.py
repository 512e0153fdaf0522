"""Who gets committed checkpoints as well, such as loggers."""

from __future__ import annotations

from typing import Protocol


class Artifacts(Protocol):
    """Hands committed checkpoints to others, such as loggers; called on the training thread."""

    @property
    def has_failures(self) -> bool:
        """Whether `failures` has something to return."""

    def hand_over(self, checkpoint_id: str | None = None) -> None:
        """Hand over the committed checkpoints of this id, or all."""

    def failures(self) -> list[Exception]:
        """The errors since the last call."""


class NoArtifacts:
    """Hands checkpoints to no one."""

    has_failures = False

    def hand_over(self, checkpoint_id: str | None = None) -> None:
        """Do nothing."""

    def failures(self) -> list[Exception]:
        """None."""
        return []
