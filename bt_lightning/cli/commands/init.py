"""The command that writes a starter: a Lightning script and the config.py of its job."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_TRAIN, _CONFIG = "train.py", "config.py"


@click.command("init")
@click.argument("directory", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--target-directory",
    type=click.Path(file_okay=False, path_type=Path),
    hidden=True,
    help="As DIRECTORY.",
)
@click.option("--project", metavar="NAME", help="Project of the job; by default the folder's name.")
@click.option(
    "--image",
    default="pytorch/pytorch:2.7.0-cuda12.8-cudnn9-runtime",
    show_default=True,
    help="Image that Baseten runs it in.",
)
@click.option(
    "--accelerator", default="H100:1", show_default=True, metavar="NAME:COUNT", help="GPUs there."
)
@click.option("--force", is_flag=True, help="Replace files of these names.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask: take the defaults.")
def init(
    directory: Path | None,
    target_directory: Path | None,
    project: str | None,
    image: str,
    accelerator: str,
    force: bool,
    yes: bool,
) -> None:
    """Write a starter into DIRECTORY: train.py, and the config.py that runs it.

    The script trains a small network, with one line of bt_lightning in it, and runs anywhere. The
    config is what `bt-lightning run` and `truss train push` take. Asks where and for which project
    only on a terminal, and only what is not told.
    """
    from bt_lightning.cli.render.starter_files import config_file, training_script
    from bt_lightning.cli.render.text import printable
    from bt_lightning.errors import CheckpointExistsError, InvalidSettingError

    asks = sys.stdin.isatty() and not yes
    folder = directory or target_directory
    if folder is None:
        folder = Path(click.prompt("Directory", default="bt-train") if asks else "bt-train")
    if project is None:
        name = folder.absolute().name or "bt-train"
        project = str(click.prompt("Project", default=name)) if asks else name
    kind, _, count = accelerator.partition(":")
    if not kind.isidentifier() or not (count or "1").isdigit() or int(count or 1) < 1:
        msg = f"--accelerator is {accelerator!r}: expected a name and a number, as H100:2"
        raise InvalidSettingError(msg)
    files = {
        _TRAIN: training_script(),
        _CONFIG: config_file(project, image, kind, int(count or 1)),
    }
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        msg = f"{folder} has {' and '.join(there)} already: name another folder, or --force"
        raise CheckpointExistsError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    click.echo(printable(f"{folder}/train.py and {folder}/config.py are written. Next:"))
    for line in (
        f"cd {folder}",
        "bt-lightning run config.py             # here; again with --job-id goes on with it",
        "bt-lightning checkpoints list          # what it saved",
        "truss train push config.py             # on Baseten",
    ):
        click.echo(printable(f"  {line}"))
