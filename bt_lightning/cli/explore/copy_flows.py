"""The actions that write checkpoints elsewhere: download, copy, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from bt_lightning.cli.explore.dialogs import ChoiceDialog, FormDialog
from bt_lightning.cli.explore.run_task import listed, name_of, run_to_say, size_of
from bt_lightning.human_units import human_size
from bt_lightning.manage.download_copy import copy_item, download_item
from bt_lightning.manage.export import ExportForm, export_item
from bt_lightning.store.catalog.bt_url_tree import open_bt_store

if TYPE_CHECKING:
    from bt_lightning.cli.explore.panes_screen import PanesScreen
    from bt_lightning.cli.explore.task_progress import TaskProgress
    from bt_lightning.manage.checkpoint_items import JobCheckpoints

_FORMS: Final[tuple[tuple[Literal["hf", "ckpt", "dcp"], str, str], ...]] = (
    ("hf", "h", "a folder as Hugging Face's, for servers"),
    ("ckpt", "c", "a .ckpt file as Lightning writes it"),
    ("dcp", "d", "a directory of torch.distributed.checkpoint"),
)


def _here(name: str = "") -> str:
    return str(Path.cwd() / name)


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


async def download(screen: PanesScreen) -> None:
    """Download to a directory, verified."""
    items = screen.selected()
    if not items:
        return
    lines = [
        *listed(items),
        "",
        f"{human_size(size_of(items))}, verified; each becomes a folder.",
    ]
    form = FormDialog(f"download {name_of(items)}", lines, [("to the directory", _here())])
    typed = await screen.app.push_screen_wait(form)
    if not typed or not typed[0]:
        return
    target = _absolute(typed[0])

    def work(source: JobCheckpoints, task: TaskProgress) -> str:
        there = 0
        for item in items:
            task.on_bytes(0)
            done = download_item(source, item, target, item.manifest.files, task.on_bytes)
            there += done is None
        besides = f"; {there} there already, whole" if there else ""
        return f"{name_of(items)}: in {target}, verified{besides}"

    await run_to_say(screen, f"download {name_of(items)}", size_of(items), work)


async def copy(screen: PanesScreen) -> None:
    """Copy to another store, project or job."""
    items = screen.selected()
    if not items:
        return
    form = FormDialog(
        f"copy {name_of(items)}",
        [*listed(items), "", f"{human_size(size_of(items))}; every byte is verified."],
        [
            ("to the store, as s3://bucket/prefix", ""),
            ("project there", items[0].project),
            ("job there", items[0].job),
        ],
    )
    typed = await screen.app.push_screen_wait(form)
    if not typed or not typed[0]:
        return
    url, project, job = typed

    def work(source: JobCheckpoints, task: TaskProgress) -> str:
        store = open_bt_store(url, None)
        place = ""
        for item in items:
            task.on_bytes(0)
            names = (project or item.project, job or item.job)
            place = copy_item(source, item, store, names, task.on_bytes)
        where = place.rpartition("/")[0]
        return f"{name_of(items)} -> {store.name}/{where}: {human_size(size_of(items))}"

    await run_to_say(screen, f"copy {name_of(items)}", size_of(items), work)


async def export(screen: PanesScreen) -> None:
    """Write the chosen checkpoint in another form. Pickled objects are not loaded."""
    item = screen.item
    if item is None:
        return
    options = [(key, f"{name}: {does}") for name, key, does in _FORMS]
    chosen = await screen.app.push_screen_wait(ChoiceDialog(f"export {item.name} as", options))
    if chosen is None:
        return
    name = _FORMS[chosen][0]
    leaf = item.name.replace("/", "-")
    made = f"{leaf}.ckpt" if name == "ckpt" else f"{leaf}-{name}"
    typed = await screen.app.push_screen_wait(
        FormDialog(f"export {item.name}", [], [("to the new path", _here(made))])
    )
    if not typed or not typed[0]:
        return
    output = _absolute(typed[0])

    def work(source: JobCheckpoints, task: TaskProgress) -> str:
        done = export_item(source, item, ExportForm(name), output, task.of)
        lacks = "".join(f"; without {one}" for one in done.left_out)
        return f"{output}: {human_size(done.size)} of {item.name}{lacks}"

    await run_to_say(screen, f"export {item.name}", item.manifest.size, work)
