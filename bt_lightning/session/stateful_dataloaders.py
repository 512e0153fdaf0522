"""Restores torchdata's `StatefulDataLoader`, inside an epoch and behind one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENDED = "_iterator_finished"
"""Key of its state: whether the iterator had come to its end."""


def is_stateful_dataloader(value: object) -> bool:
    """Whether it is torchdata's; asked by name, as nobody need have it."""
    return any(kind.__name__ == "StatefulDataLoader" for kind in type(value).__mro__)


def is_behind_epoch(state: Any) -> bool:
    """Whether a state of one was taken when its iterator had ended."""
    return isinstance(state, dict) and bool(state.get(_ENDED))


def begin_after_epoch(loader: Any, state: Any) -> None:
    """Restore a loader to its state at the end of an epoch: the next iterator begins a new one.

    Its sampler has its own generator, which continues from epoch to epoch. Creating and dropping
    an iterator leaves the loader as in the interrupted run.
    """
    loader.load_state_dict(state)
    iter(loader)
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if sampler is not None and getattr(sampler, "next_yielded", None) is not None:
            sampler.next_yielded = None  # torchdata's distributed sampler was exhausted


def after_next_iterator(loader: Any, act: Callable[[], None]) -> None:
    """Run `act` once, when the next iterator of `loader` has been made.

    A run that resumes inside an epoch makes an iterator, and draws for it, where the interrupted
    run had one. A class of the instance's own is the only way to see a call of `iter`.
    """
    kind = type(loader)

    def make(self: Any) -> Iterator[Any]:
        self.__class__ = kind
        found: Iterator[Any] = iter(self)
        act()
        return found

    loader.__class__ = type(
        kind.__name__, (kind,), {"__iter__": make, "__module__": kind.__module__}
    )
