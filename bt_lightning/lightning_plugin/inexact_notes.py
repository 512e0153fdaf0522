"""Says in one line, when a run resumes, why it cannot end exactly as the uninterrupted one."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.compat_dataloaders import iterates_by_itself, train_loaders
from bt_lightning.lightning_plugin.compat_hook_ends import is_behind_hooks
from bt_lightning.lightning_plugin.compat_validation import is_between_validation_batches
from bt_lightning.lightning_plugin.weight_change_watch import overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

_LIGHTNING = ("lightning.", "pytorch_lightning.")
_OF_THE_SAVE = {
    "accumulated": "gradients that were accumulated since the last step are in no checkpoint",
    "validating": "it was saved in the middle of a validation that is not made up for, as it comes"
    " by the clock or at an early stop, or changed weights or metrics that go on",
    "unvalidated": "it was saved between a batch and a validation that is not made up for, as it"
    " comes by the clock or at an early stop",
}


def notes_of_save(trainer: Trainer, *, validates: bool) -> list[str]:
    """What cannot be resumed exactly from a save of this moment; called on every rank.

    `validates`: whether a run that resumes from it begins with a validation.
    """
    found = []
    if compat.batches_to_step(trainer):
        found.append("accumulated")
    if trainer.validating:
        if is_between_validation_batches(trainer):
            found += [] if validates else ["validating"]
        elif not is_behind_hooks(trainer):
            found.append("on_validation_end")
    elif compat.is_behind_batch(trainer):
        if not is_behind_hooks(trainer):
            found.append("on_train_batch_end")
        if compat.validation_is_due(trainer) and not validates:
            found.append("unvalidated")
    return found


def mute_note_of_lightning() -> Callable[[], None]:
    """Let Lightning not say that a dataloader without a state makes results unreliable.

    It says so of every resume inside an epoch; `say_what_is_not_exact` says it where it is so.
    Call what this returns when the fit ends.
    """
    warnings.filterwarnings(
        "ignore", message="You're resuming from a checkpoint that ended before the epoch ended"
    )
    added = warnings.filters[0]

    def end() -> None:
        with contextlib.suppress(ValueError):  # someone else has put back the filters
            warnings.filters.remove(added)  # type: ignore[attr-defined]

    return end


def say_what_is_not_exact(trainer: Trainer, saved: dict[str, Any], *, has_position: bool) -> None:
    """Called on every rank, when the loaders exist and the hooks of the training's start ran.

    `has_position`: whether the train dataloader goes on in its samples without a state of its own.
    """
    notes = [*_notes(trainer, saved, has_position=has_position)]
    if notes and trainer.is_global_zero:
        log.warning("this resume is not exact: %s", "; ".join(notes))


def _notes(trainer: Trainer, saved: dict[str, Any], *, has_position: bool) -> Iterator[str]:
    module = trainer.lightning_module
    kinds = saved.get("notes", [])
    yield from (_OF_THE_SAVE[kind] for kind in kinds if kind in _OF_THE_SAVE)
    for hook in ("on_train_batch_end", "on_validation_end"):
        if hook in kinds and overrides(module, hook):
            name = f"{type(module).__name__}.{hook}"
            yield f"{name} runs behind the save that was made in it, so not for the last batch"
    yield from _of_lightning(trainer)
    if vars(trainer).get("reload_dataloaders_every_n_epochs") and not saved["knows_reload"]:
        yield "when dataloaders were reloaded (reload_dataloaders_every_n_epochs) is not known"
    if saved["epoch_end"]:
        return
    yield from notes_inside_epoch(trainer, has_position=has_position)


def notes_inside_epoch(trainer: Trainer, *, has_position: bool) -> Iterator[str]:
    """Why a resume inside an epoch is not exact, though one at its end may be."""
    if compat.iterates_at_train_start(trainer):
        yield "Lightning before 2.6 resumes otherwise inside an epoch"
    loaders = train_loaders(trainer)
    plain = {type(each).__name__ for each in loaders if not hasattr(each, "load_state_dict")}
    if plain and not has_position:
        names = ", ".join(sorted(plain))
        yield f"{names} has no state, and no order that is known: this epoch's data begin anew"
    else:
        own = {type(each).__name__ for each in loaders if iterates_by_itself(each)}
        yield from (f"{name} iterates by a method of its own, which may draw" for name in own)
    if any(getattr(each, "num_workers", 0) for each in loaders):
        yield "random numbers that a dataset draws in workers of its loader are other ones"
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for owner in (trainer.lightning_module, *callbacks):
        kind = type(owner)
        if not kind.__module__.startswith("bt_lightning.") and _starts_epochs(owner):
            yield f"{kind.__name__}.on_train_epoch_start does not run again inside an epoch"


def _of_lightning(trainer: Trainer) -> Iterator[str]:
    """What Lightning itself does otherwise after a resume."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(base.__name__ == "ModelPruning" for each in callbacks for base in type(each).__mro__):
        yield "ModelPruning saves neither its masks nor what they hide: pruned weights train again"


def _starts_epochs(owner: object) -> bool:
    """Whether the user wrote an `on_train_epoch_start`; what those of Lightning set is restored."""
    kinds = type(owner).__mro__
    found = next((kind for kind in kinds if "on_train_epoch_start" in vars(kind)), None)
    return found is not None and not found.__module__.startswith(
        ("lightning.", "pytorch_lightning.")
    )
