"""Of a job's checkpoints, those of one of its fits. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bt_lightning.manifest import Manifest

T = TypeVar("T")


def of_newest_fit(found: Iterable[T], manifest_of: Callable[[T], Manifest]) -> list[T]:
    """Of the checkpoints of one job, those of the fit that saved last, in the order given.

    Steps are counted by fit, so of several fits the clock says which is the newest. What another
    program wrote counts where nothing is our own; of that first what training can resume from.
    """
    each = list(found)
    own = [one for one in each if manifest_of(one).format is None]
    each = own or [one for one in each if manifest_of(one).resumable] or each
    newest = max(each, key=lambda one: manifest_of(one).created, default=None)
    fit = None if newest is None else manifest_of(newest).fit
    return [one for one in each if manifest_of(one).fit == fit]


def of_fit(found: Iterable[T], manifest_of: Callable[[T], Manifest], fit: str) -> list[T]:
    """Those of the fit with this id or name, in the order given."""
    return [one for one in found if fit in manifest_of(one).fit_names]
