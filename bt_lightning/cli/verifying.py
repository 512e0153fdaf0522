"""Verifying checkpoints, a line for each: whole, or damaged and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.committed import list_committed, verify
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest


def verify_all(places: tuple[str, ...] | Path, store: str | None) -> bool:
    """Verify the checkpoints at these paths and URLs, or all under a directory; False if any fails.

    Raises:
        InvalidSettingError: a `bt://` URL is none, or there is no store for it.
        StoreError: the store refused: that says nothing of a checkpoint.
    """
    good = True
    if isinstance(places, Path):
        found, refused = list_committed(places)
        for item in refused:
            good = False
            click.secho(f"damaged  {item.reason}", fg="red")
        places = tuple(str(checkpoint.path) for checkpoint in found)
        if not places and good:
            click.echo("nothing is committed there")
    for place in places:
        try:
            name, manifest = _verified(place, store)
        except (CheckpointCorruptError, CheckpointNotFoundError) as error:
            good = False
            click.secho(f"damaged  {error}", fg="red")
        else:
            click.echo(f"whole    {name}  step {manifest.step}, {manifest.size:,} bytes")
    return good


def _verified(place: str, store: str | None) -> tuple[str, Manifest]:
    if not is_bt(place):
        return place, verify(Path(place))
    from bt_lightning.store.checked import verify_stored
    from bt_lightning.store.tree import find_checkpoint, open_bt_store

    opened = open_bt_store(store, None)
    found = find_checkpoint(opened, place)
    verify_stored(opened, found.place.base, found.manifest.files)
    return f"{place} ({found.place.job}/{found.place.folder})", found.manifest
