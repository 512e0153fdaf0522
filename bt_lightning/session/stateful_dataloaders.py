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


def load_state(loader: Any, state: Any) -> bool:
    """Restore a loader; returns whether its next iterator goes on inside an epoch.

    It does not if `state` was taken when the iterator had ended. The loader makes that one again
    before the next: it is asked for its state, so that it does so now, with its draws.
    """
    loader.load_state_dict(state)
    if isinstance(state, dict) and state.get(_ENDED):
        loader.state_dict()
        _begin_sampler(loader)
        return False
    return True


def begin_after_epoch(loader: Any, state: Any) -> None:
    """Restore a loader to its state at the last batch: the next iterator begins a new epoch.

    For loops that never ask it for more than that batch. Its sampler has its own generator, which
    continues from epoch to epoch. Creating and dropping an iterator leaves the loader as in the
    interrupted run.
    """
    loader.load_state_dict(state)
    iter(loader)
    _begin_sampler(loader)


def _begin_sampler(loader: Any) -> None:
    """Let torchdata's distributed sampler, which was exhausted, begin."""
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        sampler = getattr(owner, "sampler", None)
        if sampler is not None and getattr(sampler, "next_yielded", None) is not None:
            sampler.next_yielded = None


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
