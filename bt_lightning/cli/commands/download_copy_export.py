"""The commands that write checkpoints elsewhere: download, copy, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from bt_lightning.cli.target_options import one_checkpoint, some_checkpoints, target_options

if TYPE_CHECKING:
    from bt_lightning.manage.find_target import Target

_target_option = click.option(
    "--target-directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="the current directory",
    help="Directory to write to.",
)


@click.command()
@click.argument("checkpoints", nargs=-1)
@target_options
@_target_option
@click.option("--include", multiple=True, metavar="GLOB", help="Only these files.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files.")
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of a sharded checkpoint, what this rank needs: its shard and what all share. Without the"
    " rest these are files, and no checkpoint that loads.",
)
def download(
    checkpoints: tuple[str, ...],
    target: Target,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rank: int | None,
    target_directory: Path,
) -> None:
    """Download checkpoints to a directory, verified; continues an interrupted download.

    CHECKPOINTS are ids, `latest` (the default), or bt:// URLs. Each appears complete, as a folder
    of its name. In a GLOB, `*` does not match a `/`, `**` does: `*.safetensors` selects files at
    the top, `**/*.safetensors` also those in folders.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size
    from bt_lightning.manage.download_copy import download_item, wanted
    from bt_lightning.manage.rank_download import entries_of_rank

    for source, item in some_checkpoints(target, checkpoints or ("latest",)):
        entries = wanted(item.manifest, include, exclude)
        if rank is not None:
            entries = entries_of_rank(source, item, rank, entries)
        size = sum(entry.size for entry in entries)
        with progress(item.name, size) as on_bytes:
            final = download_item(source, item, target_directory, entries, on_bytes)
        if final is None:
            click.echo(f"{printable(item.name)}: is there already, whole")
        else:
            said = f"{final}: {len(entries)} files, {human_size(size)}, verified"
            click.echo(printable(said))


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
@click.option("--to", required=True, metavar="URL", help="Store to copy to.")
@click.option("--to-project", metavar="NAME", help="Project there; by default the same.")
@click.option("--to-job-id", metavar="ID", help="Job there; by default the same.")
def copy(
    checkpoints: tuple[str, ...],
    target: Target,
    to: str,
    to_project: str | None,
    to_job_id: str | None,
) -> None:
    """Copy checkpoints to another store, or to another job of this one; every byte is verified.

    Within one store the server copies the bytes, if it can. A copy appears when it is complete; the
    next call starts an interrupted one again.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size
    from bt_lightning.manage.download_copy import copy_item
    from bt_lightning.store.catalog.bt_url_tree import open_bt_store

    store = open_bt_store(to, None)
    for source, item in some_checkpoints(target, checkpoints):
        names = (to_project or item.project, to_job_id or item.job)
        with progress(item.name, item.manifest.size) as on_bytes:
            place = copy_item(source, item, store, names, on_bytes)
        size = human_size(item.manifest.size)
        click.echo(printable(f"{item.name} -> {store.name}/{place}: {size}"))


@click.command()
@click.argument("checkpoint", default="latest")
@target_options
@click.option(
    "--to", type=click.Choice(["ckpt", "dcp", "hf"]), required=True, help="Format to write."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write; a directory for hf and dcp.",
)
@click.option(
    "--trust-pickle", is_flag=True, help="Load pickled objects for a ckpt, which may run code."
)
@click.option(
    "--max-shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=50.0,
    show_default=True,
    metavar="GB",
    help="Tensors of one file, for hf from a sharded checkpoint.",
)
def export(
    checkpoint: str,
    target: Target,
    to: Literal["ckpt", "dcp", "hf"],
    output: Path,
    trust_pickle: bool,
    max_shard_size: float,
) -> None:
    """Write a checkpoint as Lightning's .ckpt, as a Hugging Face folder, or for torch's DCP.

    `hf` writes the weights and the configuration and tokenizer files that were saved; the state
    that only training needs is left out. `dcp` writes weights and optimizer states for `dcp.load`.
    Shards of several ranks become whole tensors for `hf` and `ckpt`, and stay shards for `dcp`.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_size
    from bt_lightning.manage.export import ExportForm, export_item

    source, item = one_checkpoint(target, checkpoint)
    form = ExportForm(to, trust_pickle, int(max_shard_size * 1e9))
    made = output.expanduser().absolute()
    done = export_item(source, item, form, made, lambda size: progress(item.name, size))
    for lacks in done.left_out:
        click.echo(printable(f"Without {lacks}"), err=True)
    click.echo(printable(f"{output}: {human_size(done.size)} of {item.name}"))
