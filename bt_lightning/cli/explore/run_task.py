"""One action in another thread, with its progress under the panes, its cancelling and its error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from bt_lightning.cli.explore.background import READ_ERRORS, reason
from bt_lightning.cli.explore.dialogs import MessageDialog
from bt_lightning.cli.explore.task_progress import CancelledByUserError, TaskProgress
from bt_lightning.human_units import human_size
from bt_lightning.manage.jobs_beside import for_another_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.cli.explore.panes_screen import PanesScreen
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

_MOST_NAMED = 8
Found = TypeVar("Found")


async def run_task(
    screen: PanesScreen,
    title: str,
    total: int,
    work: Callable[[JobCheckpoints, TaskProgress], Found],
) -> Found | None:
    """Run `work` in a thread; None: it failed, or was cancelled, and that is said.

    `total` are the bytes that it reads; 0 if it reads few. Checkpoints are listed again after it.
    One action runs at a time.
    """
    if screen.under_way is not None:
        await say(screen, "wait", [f"{screen.under_way.title} is under way. ctrl+x cancels it."])
        return None
    task, source = TaskProgress(title, total), for_another_thread(screen.source)
    screen.under_way, found = task, None
    screen.say(task.line(screen.size.width - 2))
    try:
        found = await asyncio.to_thread(work, source, task)
        screen.say("")
    except CancelledByUserError:
        screen.say(f"{title}: cancelled")
    except READ_ERRORS as error:
        screen.say(f"{title}: failed")
        screen.under_way = None
        await say(screen, f"{title}: failed", [reason(error)], is_error=True)
    finally:
        task.cancel()  # if the application ends, the thread must end as well
        screen.under_way = None
        if screen.is_attached:
            screen.refresh_list()
    return found


async def say(
    screen: PanesScreen, title: str, lines: Sequence[str], *, is_error: bool = False
) -> None:
    """Say something until a key is pressed."""
    await screen.app.push_screen_wait(MessageDialog(title, lines, is_error=is_error))


async def run_to_say(
    screen: PanesScreen,
    title: str,
    total: int,
    work: Callable[[JobCheckpoints, TaskProgress], str],
) -> None:
    """Run a task that ends with a line to say."""
    said = await run_task(screen, title, total, work)
    if said is not None:
        screen.say(said)


def name_of(items: Sequence[CheckpointItem]) -> str:
    """The name of one checkpoint, or how many there are."""
    return items[0].name if len(items) == 1 else f"{len(items)} checkpoints"


def listed(items: Sequence[CheckpointItem]) -> list[str]:
    """Their names and sizes, and how many more there are."""
    lines = [f"  {i.name}  {human_size(i.manifest.size)}" for i in items[:_MOST_NAMED]]
    more = len(items) - _MOST_NAMED
    return [*lines, f"  ... and {more:,} more"] if more > 0 else lines


def size_of(items: Sequence[CheckpointItem]) -> int:
    """Bytes of all of them."""
    return sum(item.manifest.size for item in items)
