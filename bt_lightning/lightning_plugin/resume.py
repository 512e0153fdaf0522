"""Resuming: one decision on rank 0, carried out where Lightning reads the checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.lightning_plugin import compat_resume
from bt_lightning.lightning_plugin.sight import see_alike

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.lightning_plugin.sight import Chosen

log = logging.getLogger(__name__)

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run starts from, the same on every rank."""

    path: str | None
    digest: str | None
    warm: bool
    """Take the weights only: a new run begins at step 0."""
    folder: str | None = None
    """Where it is read from in the store, if the disk has no room for it."""
    asked: bool = True
    """Whether the user named the path that a fit starts from, in its `ckpt_path`: that is taken."""
    mark: str | None = None
    """What rank 0 made in the checkpoint directory, for the others to see."""
    error: Exception | None = None
    """Why there is no decision: raised on every rank."""


def arrange(
    trainer: Trainer,
    module: LightningModule,
    decision: Decision,
    *,
    strict: bool | None,
    on_chosen: Callable[[str | None], Chosen],
) -> None:
    """Carry out `decision` when Lightning starts to resume; the user's `ckpt_path` wins over it.

    `on_chosen` is told the path that the run really resumes from, on every rank.
    """

    def choose(load: Callable[[Any], None], selected: str | None) -> None:
        user_path = selected if decision.asked else None
        path = user_path or decision.path
        chosen = on_chosen(None if path is None else str(path))
        see_alike(trainer, None if path is None else str(path), chosen, decision.mark)
        if path is None:
            load(None)
            return
        _compare_at_load(trainer, module, str(path), strict=strict)
        if user_path or not decision.warm:
            load(path)
            return
        load(None)
        log.info("taking the weights, and nothing else, of %s", path)
        compat_resume.restore_weights_only(trainer, dict(trainer.strategy.load_checkpoint(path)))

    compat_resume.wrap_resume_start(trainer, choose)


def forget(trainer: Trainer) -> None:
    """Undo what `arrange` left when a fit ended before it was used."""
    compat_resume.unwrap_resume_start(trainer)
    vars(trainer.strategy).pop("load_model_state_dict", None)


def _compare_at_load(
    trainer: Trainer, module: LightningModule, path: str, *, strict: bool | None
) -> None:
    """Explain a failure to load the weights by the names and shapes that differ."""
    strategy = trainer.strategy
    original = strategy.load_model_state_dict

    wanted = module.strict_loading if strict is None else strict

    def load_model_state_dict(checkpoint: Mapping[str, Any], **_: object) -> None:
        vars(strategy).pop("load_model_state_dict", None)
        try:
            original(checkpoint, strict=wanted)
        except RuntimeError as error:
            saved, own = checkpoint["state_dict"], module.state_dict()
            problems = differences(saved, own, strict=wanted)
            if not problems:
                raise
            msg = (
                f"the checkpoint {path} holds the weights of another model:\n  "
                + "\n  ".join(problems)
                + "\nTrain the model that wrote it, give BT_CHECKPOINT_DIR another directory, or"
                " pass strict=False to load what has the same name and shape"
            )
            raise CheckpointMismatchError(msg) from error

    vars(strategy)["load_model_state_dict"] = load_model_state_dict


def differences(
    saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], *, strict: bool
) -> list[str]:
    """Lines that say how two sets of weights differ; other names count only if `strict`."""
    shapes = [
        f"{name}: saved {_shape(saved[name])}, the model has {_shape(wanted[name])}"
        for name in wanted
        if name in saved
        and None not in (_shape(saved[name]), _shape(wanted[name]))
        and _shape(saved[name]) != _shape(wanted[name])
    ]
    lines = _some("another shape", shapes)
    if strict:
        lines += _some("missing in the checkpoint", [name for name in wanted if name not in saved])
        lines += _some("unknown to the model", [name for name in saved if name not in wanted])
    return lines


def _shape(value: object) -> list[int] | None:
    try:
        shape = getattr(value, "shape", None)
    except RuntimeError:  # a lazy parameter has none yet
        return None
    return None if shape is None else list(shape)


def _some(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"]
