"""The commands that write checkpoints elsewhere: download, copy, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
def download(
    checkpoints: tuple[str, ...],
    target: Target,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    target_directory: Path,
) -> None:
    """Download checkpoints to a directory, verified; continues an interrupted download.

    CHECKPOINTS are ids, `latest` (the default), or bt:// URLs. Each appears complete, as a folder
    of its name. In a GLOB, `*` does not match a `/`, `**` does: `*.safetensors` selects files at
    the top, `**/*.safetensors` also those in folders.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import human_size, printable
    from bt_lightning.manage.download_copy import download_item, wanted

    for source, item in some_checkpoints(target, checkpoints or ("latest",)):
        entries = wanted(item.manifest, include, exclude)
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
    from bt_lightning.cli.render.text import human_size, printable
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
@click.option("--to", type=click.Choice(["ckpt", "hf"]), required=True, help="Format to write.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write; a directory for hf.",
)
@click.option(
    "--trust-pickle", is_flag=True, help="Load pickled objects for a ckpt, which may run code."
)
def export(checkpoint: str, target: Target, to: str, output: Path, trust_pickle: bool) -> None:
    """Write a checkpoint as Lightning's .ckpt, or as a Hugging Face folder.

    `hf` writes the weights and the configuration and tokenizer files that were saved; the state
    that only training needs is left out.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import human_size, printable
    from bt_lightning.errors import CheckpointExistsError
    from bt_lightning.localdir.atomic_directory import sweep_temporaries, temporary, tidy
    from bt_lightning.localdir.directory_writable_check import check_root
    from bt_lightning.localdir.fsync import sync_directory
    from bt_lightning.localdir.rename_noreplace import rename_new
    from bt_lightning.manage.download_copy import download_item, serving_entries

    source, item = one_checkpoint(target, checkpoint)
    output = output.expanduser().absolute()
    if output.exists():
        msg = f"{output} is there already: move it, or name another"
        raise CheckpointExistsError(msg)
    entries = list(item.manifest.files) if to == "ckpt" else serving_entries(item.manifest)
    root = check_root(output.parent)
    sweep_temporaries(root)  # of an export that was killed
    size = sum(entry.size for entry in entries)
    with temporary(root) as scratch:
        with progress(item.name, size) as on_bytes:
            made = download_item(source, item, scratch, entries, on_bytes)
        assert made is not None, "a new directory holds nothing yet"
        if to == "ckpt":
            from bt_lightning.restore.export_ckpt import write_ckpt

            folder, made = made, scratch / "made.ckpt"
            left_out = write_ckpt(folder, made, trust_pickle=trust_pickle)
            if left_out:
                click.echo(
                    f"Without the {left_out} frozen tensors of the base, which the checkpoint left"
                    " out: load it with strict=False into a model that has them",
                    err=True,
                )
            size = made.stat().st_size
        try:
            rename_new(made, output)
        except FileExistsError as error:
            msg = f"{output} was created by another process meanwhile: it was not changed"
            raise CheckpointExistsError(msg) from error
        sync_directory(root)
    tidy(root)
    click.echo(printable(f"{output}: {human_size(size)} of {item.name}"))
