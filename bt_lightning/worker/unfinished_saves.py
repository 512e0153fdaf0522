"""What a worker was told to commit and has not reported yet: the next one is told again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.part_messages import AwaitParts, MissPart
from bt_lightning.worker_messages import CommitImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    SaveMessage = CommitImage | MissPart | AwaitParts


class UnfinishedSaves:
    """The messages of open saves, by number; guarded by the caller's lock."""

    def __init__(self) -> None:
        self._messages: dict[int, SaveMessage] = {}

    def __bool__(self) -> bool:
        return bool(self._messages)

    def __iter__(self) -> Iterator[SaveMessage]:
        return iter(self._messages.values())

    def add(self, message: SaveMessage) -> None:
        """Add a save."""
        self._messages[message.number] = message

    def ended(self, number: int) -> bool:
        """Note an outcome; False if it was reported before."""
        return self._messages.pop(number, None) is not None

    def part_durable(self, number: int) -> bool:
        """Note that a part, or that it is missing, is durable; whether its arena is free by that.

        The arena may be used again, so a new worker is told only to wait for the other parts.
        """
        message = self._messages.get(number)
        if isinstance(message, MissPart):
            del self._messages[number]
        elif isinstance(message, CommitImage) and message.part is not None:
            self._messages[number] = AwaitParts(
                number=number, part=message.part, began=message.began
            )
            return True
        return False
