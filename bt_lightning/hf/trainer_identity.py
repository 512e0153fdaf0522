"""Reads the identity of a training off a Trainer; runs no code of the script."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.fit_identity import FitIdentity
from bt_lightning.session.call_site import call_site, program_digest
from bt_lightning.session.fit_selection import FitRequest
from bt_lightning.session.value_digests import digest, shapes_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOW: Final = (
    *("adam_", "label_smoothing", "learning_rate", "lr_scheduler", "max_grad_norm", "neftune"),
    *("optim", "warmup", "weight_decay"),
)
"""Beginnings of names of arguments that say how is trained."""
_LIMITS: Final = ("num_train_epochs", "max_steps", "gradient_accumulation_steps")
_PLAIN = (bool, int, float, str, list, tuple, dict)
_WHERE: Final = ("dir", "path", "name", "device", "seed", "num_proc", "workers", "token", "url")
"""Ends of names of arguments, of Trainers built on it, that say where and with what it runs."""


def fit_request(trainer: Any, name: str) -> FitRequest:
    """Rank 0: what tells the training that is to begin from the others of the job."""
    model, args = trainer.model, trainer.args
    shapes = shapes_digest(model) if model is not None else ""  # made in `train` by `model_init`
    identity = FitIdentity(
        model=f"{type(model).__qualname__} {shapes}"[:512] if shapes else "",
        hyperparameters=dict(_hyperparameters(trainer)),
        data=digest(trainer.train_dataset) if trainer.train_dataset is not None else "",
        place=call_site(),
        limits={each: repr(getattr(args, each, None)) for each in _LIMITS},
        seed=str(args.seed),
        program=program_digest(),
    )
    return FitRequest(identity, name)


def _hyperparameters(trainer: Any) -> Iterator[tuple[str, str]]:
    """Names and digests: how the optimizer is made, and what a Trainer built on it adds."""
    from transformers import TrainingArguments

    args, common = trainer.args, {each.name for each in fields(TrainingArguments)}
    yield "trainer", digest(type(trainer).__qualname__)
    for each in sorted(fields(args), key=lambda field: field.name):
        value, known = getattr(args, each.name, None), each.name in common
        said = each.name.startswith(_HOW) if known else not each.name.endswith(_WHERE)
        if said and isinstance(value, _PLAIN):
            yield each.name, digest(value)
