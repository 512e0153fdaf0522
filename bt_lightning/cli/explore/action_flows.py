"""The actions of the explorer: each asks, runs a function of `manage` in a thread, says the result.

No action changes anything before it was confirmed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.cli.commands.protect_delete import now_in_utc, user_name
from bt_lightning.cli.explore.contents import verdict_rows
from bt_lightning.cli.explore.copy_flows import copy, download, export
from bt_lightning.cli.explore.dialogs import ChoiceDialog, ConfirmDialog, FormDialog
from bt_lightning.cli.explore.jobs_screen import JobsScreen
from bt_lightning.cli.explore.keys import ACTIONS, HELP
from bt_lightning.cli.explore.run_task import (
    listed,
    name_of,
    run_task,
    run_to_say,
    say,
    size_of,
)
from bt_lightning.cli.explore.tensor_rows import difference_rows
from bt_lightning.human_units import human_size
from bt_lightning.manage.compare_tensors import compare_with_norms
from bt_lightning.manage.delete import delete_items, kept_by_policy
from bt_lightning.manage.deployment import protect_for_person, unprotect_for_person
from bt_lightning.manage.freed_bytes import freed_bytes
from bt_lightning.manage.trash import trash_items
from bt_lightning.manage.verify import BYTES, verify_items

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bt_lightning.cli.explore.panes_screen import PanesScreen
    from bt_lightning.cli.explore.task_progress import TaskProgress
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.delete import Deletion

_URL_S = 3600
_TRASH_DAYS = 30
_TWO = 2


async def protect(screen: PanesScreen) -> None:
    """Protect, or take the protection away if all of them are protected."""
    items = screen.selected()
    if not items:
        return
    if all(item.protected for item in items):
        lines = [*listed(items), "", "Retention and `delete` may remove them then."]
        ask = ConfirmDialog("take the protection away?", lines)
        if await screen.app.push_screen_wait(ask):
            await _unprotect(screen, items)
        return
    free = [item for item in items if not item.protected]
    form = FormDialog(
        f"protect {name_of(free)}",
        [*listed(free), "", "Commands, jobs and retention will not delete them."],
        [("why; shown when somebody tries to delete it", "")],
    )
    typed = await screen.app.push_screen_wait(form)
    if typed is None:
        return

    def work(source: JobCheckpoints, task: TaskProgress) -> str:
        for item in free:
            task.on_bytes(0)
            protect_for_person(source, item, by=user_name(), why=typed[0], at=now_in_utc())
        return f"{name_of(free)}: protected"

    await run_to_say(screen, f"protect {name_of(free)}", 0, work)


async def _unprotect(screen: PanesScreen, items: Sequence[CheckpointItem]) -> None:
    def work(source: JobCheckpoints, task: TaskProgress) -> str:
        said = []
        for item in items:
            task.on_bytes(0)
            left = unprotect_for_person(source, item)
            if left is not None:
                said.append(f"{item.name}: still protected: {left.reason}")
        return "; ".join(said) or f"{name_of(items)}: no longer protected"

    await run_to_say(screen, f"unprotect {name_of(items)}", 0, work)


async def delete(screen: PanesScreen) -> None:
    """Say what goes, what it frees and what stays; delete when the word is typed."""
    items = screen.selected()
    if not items:
        return
    kept = kept_by_policy(items)
    going = [item for item in items if item.name not in kept]
    staying = [f"  {item.name}: kept: protected" for item in items if item.name in kept]
    if not going:
        await say(screen, "nothing to delete", [*staying, "", "p takes the protection away."])
        return
    freed = await run_task(
        screen, "look at what it frees", 0, lambda source, _: freed_bytes(source, going)
    )
    if freed is None:
        return
    parts = ((freed.on_disk, "on the disk"), (freed.in_store, "in the store"))
    frees = " and ".join(f"{human_size(size)} {where}" for size, where in parts if size)
    shared = f"; other checkpoints share {human_size(freed.shared)}" if freed.shared else ""
    lines = [*listed(going), *staying, "", f"This frees {frees or 'nothing'}{shared}."]
    chosen = await screen.app.push_screen_wait(
        ChoiceDialog(
            f"delete {name_of(going)}?",
            [
                ("n", "no"),
                ("t", f"put aside for {_TRASH_DAYS} days; `checkpoints trash restore` undoes it"),
                ("y", "delete for good"),
            ],
            lines,
        )
    )
    if chosen == 1:
        await _delete(screen, going, f"put aside for {_TRASH_DAYS} days", _put_aside)
    elif chosen == 2:  # noqa: PLR2004 - for good
        ask = ConfirmDialog(f"delete {name_of(going)} for good?", lines, "yes")
        if await screen.app.push_screen_wait(ask):
            await _delete(screen, going, "deleted", delete_items)
        else:
            screen.say("Nothing was deleted.")


def _put_aside(source: JobCheckpoints, items: Sequence[CheckpointItem]) -> Deletion:
    return trash_items(source, items, _TRASH_DAYS)


async def _delete(
    screen: PanesScreen,
    items: Sequence[CheckpointItem],
    word: str,
    remove: Callable[[JobCheckpoints, Sequence[CheckpointItem]], Deletion],
) -> None:
    done = await run_task(screen, f"delete {name_of(items)}", 0, lambda s, _: remove(s, items))
    if done is None:
        return
    parts = [f"{len(done.deleted)} {word}"] if done.deleted else []
    parts += [f"{len(done.asked)} requested from the running job"] if done.asked else []
    parts += [f"{', '.join(done.kept)} kept: protected"] if done.kept else []
    screen.say("; ".join(parts))


async def verify(screen: PanesScreen) -> None:
    """Read every byte; list the verdicts."""
    items = screen.selected()
    if not items:
        return

    def work(source: JobCheckpoints, task: TaskProgress) -> Any:
        return list(verify_items([(source, item) for item in items], BYTES, task.on_bytes))

    verdicts = await run_task(screen, f"verify {name_of(items)}", size_of(items), work)
    if verdicts is not None:
        damaged = sum(not verdict.whole for verdict in verdicts)
        said = f"{damaged} damaged" if damaged else "whole"
        screen.say(f"{name_of(items)}: {said}", "red" if damaged else "")
        screen.put_result(f"verify {name_of(items)}", verdict_rows(verdicts))


async def diff(screen: PanesScreen) -> None:
    """Compare with the marked checkpoint, else with the one before, by norms."""
    item = screen.item
    if item is None:
        return
    marked = [one for one in screen.items if one.name in screen.marked]
    order = item.manifest.order
    older = [one for one in screen.items if one.manifest.order < order]
    if len(marked) == _TWO:
        pair = marked
    elif len(marked) == 1 and marked != [item]:
        pair = [*marked, item]
    elif len(marked) > _TWO:
        await say(screen, "compare", ["Mark one or two checkpoints to compare, not more."])
        return
    elif older:
        pair = [max(older, key=lambda one: one.manifest.order), item]
    else:
        await say(screen, "compare", ["No checkpoint is before this: mark one with space."])
        return
    before, after = sorted(pair, key=lambda one: one.manifest.order)

    def work(source: JobCheckpoints, task: TaskProgress) -> Any:
        return compare_with_norms((source, before), (source, after), task.on_bytes)

    title = f"{before.name} -> {after.name}"
    found = await run_task(screen, title, 0, work)
    if found is not None:
        screen.say(f"{title}: {len(found)} tensors differ" if found else f"{title}: the same")
        screen.put_result(title, difference_rows(found))


async def url(screen: PanesScreen) -> None:
    """Show the URL of the chosen file, signed where the store signs."""
    item, path = screen.item, screen.chosen_path()
    entry = None if item is None or path is None else item.manifest.entry(path)
    if item is None or entry is None:
        await say(screen, "URL", ["Choose a file first: 2 lists them."])
        return
    found = await run_task(screen, "URL", 0, lambda s, _: s.url(item, entry.path, _URL_S))
    if found is not None:
        screen.say("")
        lasts = [f"It works for {_URL_S // 60} minutes."] if "?" in found else []
        await say(screen, entry.path, [found, "", *lasts])


async def jobs(screen: PanesScreen) -> None:
    """Switch to another job."""
    chosen = await screen.app.push_screen_wait(JobsScreen(screen.source))
    if chosen is not None:
        screen.say("reading ...")
        screen.refresh_list(chosen)


async def show_help(screen: PanesScreen) -> None:
    """Show the keys."""
    await say(screen, "keys", HELP)


async def list_actions(screen: PanesScreen) -> None:
    """Choose an action by its line."""
    options = [(key, does) for key, _, does in ACTIONS]
    chosen = await screen.app.push_screen_wait(
        ChoiceDialog(f"actions on {name_of(screen.selected())}", options)
        if screen.selected()
        else ChoiceDialog("actions", options)
    )
    if chosen is not None:
        await FLOWS[ACTIONS[chosen][1]](screen)


async def leave(screen: PanesScreen) -> None:
    """Quit; ask first if an action is under way."""
    if screen.under_way is not None:
        ask = ConfirmDialog(
            "quit?", [f"{screen.under_way.title} is under way, and is cancelled then."]
        )
        if not await screen.app.push_screen_wait(ask):
            return
    screen.app.exit()


FLOWS: Final[dict[str, Callable[[PanesScreen], Awaitable[None]]]] = {
    "protect": protect,
    "delete": delete,
    "download": download,
    "verify": verify,
    "copy": copy,
    "export": export,
    "diff": diff,
    "url": url,
    "jobs": jobs,
    "help": show_help,
    "actions": list_actions,
    "quit": leave,
}
