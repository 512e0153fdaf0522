"""A time limit for a store's first answer: its client's own limits add up to minutes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.errors import StoreTransientError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def within_store_timeout(limit_s: float, ask: Callable[[], T], store: str) -> T:
    """Call `ask` on a thread of its own; return or raise what it does.

    Raises:
        StoreTransientError: it has not ended within `limit_s` seconds; the thread goes on.
    """
    answers: list[T] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            failures.append(error)

    thread = threading.Thread(target=call, daemon=True, name="bt_lightning first question")
    thread.start()
    thread.join(limit_s)
    if failures:
        raise failures[0]
    if answers:
        return answers[0]
    msg = f"{store} has not answered within {limit_s:.0f} s"
    raise StoreTransientError(msg)
