"""Explains by names, shapes and classes why a checkpoint does not fit a model or its optimizers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.lightning_plugin.searched_values import SEARCHED, searched_values
from bt_lightning.lightning_plugin.trainer_checks import scalars
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.value_digests import COMPILED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.session.base_of_run import BaseOfRun

log = logging.getLogger(__name__)

_SHOWN = 8
OPTIMIZERS = "optimizers"
"""Key under which `BTLightning` saves the classes of the optimizers."""


def explain_weights(
    trainer: Trainer,
    module: LightningModule,
    path: str,
    base: BaseOfRun,
    *,
    strict: bool | None,
) -> None:
    """Called on every rank: explain the differences if the next load of weights is not complete.

    A load that fails raises `CheckpointMismatchError`; one that leaves weights out logs a warning.
    What the checkpoint left out comes from the module, by `base`.
    """
    strategy = trainer.strategy
    original = strategy.load_model_state_dict
    expected = module.strict_loading if strict is None else strict

    def load_model_state_dict(checkpoint: Mapping[str, Any], **_: object) -> None:
        vars(strategy).pop("load_model_state_dict", None)
        whole = base.completed(checkpoint, module, ranks_of(trainer), strict=expected)
        saved = whole["state_dict"]
        try:
            original(whole, strict=expected)
        except RuntimeError as error:
            own = module.state_dict()
            problems = differences(saved, own, strict=expected)
            if not problems:
                raise
            msg = (
                f"the checkpoint {path} holds the weights of another model:\n  "
                + "\n  ".join(problems + compiled_differently(saved, own))
                + "\nTrain the model that wrote it, give BT_CHECKPOINT_DIR another directory, or"
                " pass strict=False to load what has the same name and shape"
            )
            raise CheckpointMismatchError(msg) from error
        base.loaded(checkpoint)
        if not expected and trainer.is_global_zero:
            for line in compiled_differently(saved, module.state_dict()):
                log.warning("not all weights of %s were loaded: %s", path, line)

    vars(strategy)["load_model_state_dict"] = load_model_state_dict


def explain_optimizers(trainer: Trainer, path: str) -> None:
    """Called on every rank: check the next load of optimizer states for other optimizer classes.

    It raises `CheckpointMismatchError` if an optimizer would fail with the state at its first step.
    """
    strategy = trainer.strategy
    original = strategy.load_optimizer_state_dict

    def load_optimizer_state_dict(checkpoint: Mapping[str, Any]) -> None:
        vars(strategy).pop("load_optimizer_state_dict", None)
        extra, states = checkpoint.get(EXTRA), checkpoint["optimizer_states"]
        names = extra.get(OPTIMIZERS) if isinstance(extra, dict) else None
        saved = [str(name) for name in names] if isinstance(names, list) else []
        try:
            original(checkpoint)
        except (KeyError, AttributeError, TypeError) as error:  # some optimizers check the state
            _compare(strategy.optimizers, states, saved, path, error)
            raise
        _compare(strategy.optimizers, states, saved, path)
        own = optimizer_names(strategy.optimizers)
        if trainer.is_global_zero and saved and saved != own:
            log.warning(
                "the checkpoint %s was saved with the optimizers %s, and this run has %s: entries"
                " of their states that have the same name are taken over",
                path,
                ", ".join(saved),
                ", ".join(own) or "none",
            )

    vars(strategy)["load_optimizer_state_dict"] = load_optimizer_state_dict


def _compare(
    optimizers: Sequence[torch.optim.Optimizer],
    states: Sequence[Mapping[str, Any]],
    saved: Sequence[str],
    path: str,
    cause: Exception | None = None,
) -> None:
    problems = []
    for number, (optimizer, state) in enumerate(zip(optimizers, states, strict=False)):
        known = saved[number] if number < len(saved) else None
        if known != type(optimizer).__qualname__:
            problems += _missing_options(optimizer, state, known)
    if problems:
        msg = (
            f"the checkpoint {path} holds the state of another optimizer:\n  "
            + "\n  ".join(problems)
            + "\nTrain with the optimizer that wrote it; or begin a new run with its weights:"
            " BTLightning(resume='weights', load_dir=...), in another BT_CHECKPOINT_DIR"
        )
        raise CheckpointMismatchError(msg) from cause


def undo_explanations(trainer: Trainer) -> None:
    """Undo `explain_weights` and `explain_optimizers` if the loads did not happen; idempotent."""
    for name in ("load_model_state_dict", "load_optimizer_state_dict"):
        vars(trainer.strategy).pop(name, None)


def save_facts(trainer: Trainer) -> dict[str, Any]:
    """Entries that a save adds to the state: metrics, classes of optimizers, what was searched."""
    return {
        SEARCHED: searched_values(trainer),
        "metrics": scalars(trainer.callback_metrics),
        OPTIMIZERS: optimizer_names(trainer.optimizers),
    }


def optimizer_names(optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """The names of the optimizers' classes."""
    return [type(optimizer).__qualname__ for optimizer in optimizers]


def _missing_options(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], saved: str | None
) -> list[str]:
    """A line about the options that an optimizer needs and the loaded state lacks, if any.

    If the class that saved the state is unknown, only if the state also has unknown options: the
    state may come from an older version of the same class.
    """
    needs = set(optimizer.defaults)
    missing = sorted({str(n) for group in optimizer.param_groups for n in needs - set(group)})
    brought = {str(name) for group in state["param_groups"] for name in group}
    unknown = sorted(brought - needs - {"params", "initial_lr", "param_names"})
    if not missing or (saved is None and not unknown):
        return []
    line = (
        f"{type(optimizer).__qualname__} needs {', '.join(missing)}; what was saved, by"
        f" {saved or 'another class'}, has {', '.join(unknown) or 'nothing'} instead"
    )
    return [line]


def compiled_differently(saved: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Lines about names that differ only by the prefix of `torch.compile`."""
    have, want = set(saved), set(expected)
    lines = []
    for these, those, was, now in (
        (have, want, "were compiled when it was saved", "are not now"),
        (want, have, "are compiled now", "were not when it was saved"),
    ):
        parts = sorted(
            {
                name.partition(COMPILED)[0].rstrip(".") or "the whole module"
                for name in these - those
                if COMPILED in name and name.replace(COMPILED, "") in _plain(those)
            }
        )
        if parts:
            shown = ", ".join(parts[:_SHOWN])
            lines.append(
                f"{shown} {was}, and {now}: torch.compile(module) puts `{COMPILED}` into the"
                " names of what it wraps. Wrap the same parts, or compile in place, which leaves"
                " names as they are: module.compile()"
            )
    return lines


def _plain(names: Iterable[str]) -> set[str]:
    return {name.replace(COMPILED, "") for name in names}


def differences(
    saved: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, strict: bool
) -> list[str]:
    """Lines about how two sets of weights differ; missing and unknown names only if `strict`."""
    shapes = [
        f"{name}: saved {_shape(saved[name])}, the model has {_shape(expected[name])}"
        for name in expected
        if name in saved
        and None not in (_shape(saved[name]), _shape(expected[name]))
        and _shape(saved[name]) != _shape(expected[name])
    ]
    lines = _some("another shape", shapes)
    if strict:
        lines += _some(
            "missing in the checkpoint", [name for name in expected if name not in saved]
        )
        lines += _some("unknown to the model", [name for name in saved if name not in expected])
    return lines


def _shape(value: object) -> list[int] | None:
    try:
        shape = getattr(value, "shape", None)
    except RuntimeError:  # a lazy parameter has no shape yet
        return None
    return None if shape is None else list(shape)


def _some(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{title} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"]
