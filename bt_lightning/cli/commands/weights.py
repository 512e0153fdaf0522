"""The command that materialises the `weights:` of a Truss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.groups import Group
from bt_lightning.cli.target_options import format_option, store_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.weights.blob_cache import BlobCache
    from bt_lightning.weights.pull import Pulled, Resolved


_DIGESTS = {"size": "size only"}
_SHOWN = 6


@click.group(cls=Group)
def weights() -> None:
    """Bring the weights that a Truss names to this machine."""


@weights.command()
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Folder that stands in for / of each mount_location.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="BT_WEIGHTS_CACHE",
    show_envvar=True,
    show_default="~/.cache/bt_lightning/weights",
    help="Folder that keeps files by their SHA-256.",
)
@store_option
@click.option(
    "--secrets",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/secrets"),
    show_default=True,
    help="Folder of secrets, a file each.",
)
@click.option("--replace", is_flag=True, help="Replace what others wrote at a mount_location.")
@click.option("--dry-run", is_flag=True, help="List what would be pulled; write nothing.")
@format_option
def pull(
    config: Path,
    root: Path,
    cache: Path | None,
    store: str | None,
    secrets: Path,
    replace: bool,
    dry_run: bool,
    output_format: str,
) -> None:
    """Pull the weights of CONFIG, a config.yaml or a config.py, each to its mount_location.

    Sources: bt:// (in --store), hf://, s3://, gs://, r2://, cw://, azure://, https:// and file://.
    Each location appears at once, whole and verified; an interrupted pull continues. Files are hard
    links to the cache where it is on the same volume, else copies. A secret that a source names is
    a file in --secrets, or $TRUSS_SECRET_<name>.
    """
    from bt_lightning.cli.render.progress_bar import progress
    from bt_lightning.cli.render.text import printable
    from bt_lightning.weights.blob_cache import BlobCache
    from bt_lightning.weights.pull import PullPlaces, pull_weights, resolve_weights
    from bt_lightning.weights.source_secrets import Secrets
    from bt_lightning.weights.weights_list import read_weights

    def notice(text: str) -> None:
        click.secho(printable(text), fg="yellow", err=True)

    places = PullPlaces(
        root=root.expanduser().absolute(),
        cache=_cache(cache),
        store_url=store,
        secrets=Secrets(secrets.expanduser(), os.environ),
    )
    found = [resolve_weights(one, places, notice) for one in read_weights(config)]
    blobs = BlobCache(places.cache)
    if dry_run:
        _render_planned(found, blobs, output_format)
    else:
        _render(pull_weights(found, blobs, progress, replace=replace), output_format)


def _cache(given: Path | None) -> Path:
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.store.catalog.cache_folder import user_cache

    if given is not None:
        return given.expanduser().absolute()
    own = user_cache(os.environ)
    if own is None:
        msg = "there is no home directory to keep weights in: name a folder with --cache"
        raise InvalidSettingError(msg)
    return own / "weights"


def _render(pulled: Sequence[Pulled], output_format: str) -> None:
    from bt_lightning.human_units import human_size

    records: list[dict[str, object]] = []
    blocks = []
    for one in pulled:
        digests = sorted(one.verified.items())
        by = ", ".join(f"{_DIGESTS.get(name, name)} ({count})" for name, count in digests)
        came = f"{human_size(one.downloaded)} downloaded" if one.downloaded else "all in the cache"
        blocks.append(
            (
                f"{one.location}: {'pulled' if one.mounted else 'there already, whole'}",
                one.source,
                f"{_files(one.files)}, {human_size(one.size)}, {came}; verified by {by}",
            )
        )
        records.append(
            {
                "mount_location": str(one.location),
                "source": one.source,
                "files": one.files,
                "size_bytes": one.size,
                "downloaded_bytes": one.downloaded,
                "verified": one.verified,
                "new": one.mounted,
            }
        )
    _print(records, blocks, output_format)


def _render_planned(found: Sequence[Resolved], cache: BlobCache, output_format: str) -> None:
    from bt_lightning.human_units import human_size

    records: list[dict[str, object]] = []
    blocks = []
    for one in found:
        known = [file for file in one.files if cache.known(file.identity, file.size) is not None]
        cached = sum(file.size for file in known)
        size = f"{human_size(one.size)}, {human_size(cached)} of it in the cache"
        shown = [f"{file.path} ({human_size(file.size)})" for file in one.files[:_SHOWN]]
        more = len(one.files) - len(shown)
        blocks.append(
            (
                f"{one.mount.location}: would be pulled",
                one.source.name,
                f"{_files(len(one.files))}, {size}",
                *([", ".join(shown) + (f" and {more:,} more" if more else "")] if shown[0] else []),
            )
        )
        records.append(
            {
                "mount_location": str(one.mount.location),
                "source": one.source.name,
                "files": len(one.files),
                "size_bytes": one.size,
                "cached_bytes": cached,
                "paths": [file.path for file in one.files],
            }
        )
    _print(records, blocks, output_format)


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _print(
    records: Sequence[dict[str, object]], blocks: Sequence[tuple[str, ...]], output_format: str
) -> None:
    from bt_lightning.cli.render.table_csv_json import as_csv, as_json
    from bt_lightning.cli.render.text import printable

    if output_format == "json":
        as_json({"weights": list(records)})
    elif output_format == "csv":
        shown = [name for name in records[0] if not isinstance(records[0][name], dict | list)]
        as_csv(shown, [[record[name] for name in shown] for record in records])
    else:
        for first, *others in blocks:
            click.echo(printable(first))
            for line in others:
                click.echo(printable(f"  {line}"))
