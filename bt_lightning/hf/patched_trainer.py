"""Where the Trainer's code calls ours: `train` of the class, other methods while one object trains.

A Trainer that has no `BTTrainerCallback` runs the code of `transformers`, and nothing of ours.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

_MARK: Final = "_bt_lightning"
_run_dirs: set[str] = set()
"""Folders of Trainers that train with us: their checkpoints are not deleted by `transformers`."""


class Trains(Protocol):
    """Runs a training of a Trainer from its beginning to its end."""

    def run(
        self,
        trainer: Any,
        train: Callable[[str | None], Any],
        asked: str | bool | None,  # noqa: FBT001 - of the Trainer
    ) -> Any:
        """Call `train` with the path to resume from, and return what it returns."""


def patch_trainer(find: Callable[[Any], Trains | None]) -> None:
    """Let `Trainer.train` go through what `find` returns for a Trainer; idempotent."""
    module = importlib.import_module("transformers.trainer")
    original = module.Trainer.train
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def train(
        self: Any, resume_from_checkpoint: Any = None, trial: Any = None, *more: Any, **named: Any
    ) -> Any:
        found = find(self) if trial is None else None  # trials of a search are not resumed
        if found is None:
            return original(self, resume_from_checkpoint, trial, *more, **named)

        def go(path: str | None) -> Any:
            return original(self, path, trial, *more, **named)

        return found.run(self, go, resume_from_checkpoint)

    setattr(train, _MARK, True)
    setattr(module.Trainer, "train", train)  # noqa: B010 - mypy refuses to assign a method
    for name, nothing in (("rotate_checkpoints", None), ("sort_checkpoints", [])):
        if hasattr(module, name):  # before 5.2 these are methods
            _leave_ours(module, name, nothing)


def _leave_ours(module: ModuleType, name: str, nothing: Any) -> None:
    original = getattr(module, name)

    @functools.wraps(original)
    def of_others(output_dir: Any, *more: Any, **named: Any) -> Any:
        ours = os.fspath(output_dir) in _run_dirs
        return nothing if ours else original(output_dir, *more, **named)

    setattr(module, name, of_others)


@contextlib.contextmanager
def leaving_checkpoints(run_dir: str) -> Iterator[None]:
    """The checkpoints of this folder are ours to delete."""
    added = run_dir not in _run_dirs
    _run_dirs.add(run_dir)
    try:
        yield
    finally:
        if added:
            _run_dirs.discard(run_dir)


@contextlib.contextmanager
def replaced_methods(trainer: Any, methods: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Call these in place of the methods of one object, those of its subclass included."""
    before = {name: vars(trainer)[name] for name in methods if name in vars(trainer)}
    vars(trainer).update(methods)
    try:
        yield
    finally:
        for name in methods:
            vars(trainer).pop(name, None)
        vars(trainer).update(before)


def own_method(trainer: Any, name: str) -> Callable[..., Any]:
    """The method of its class, whatever is called in place of it."""
    return functools.partial(getattr(type(trainer), name), trainer)
