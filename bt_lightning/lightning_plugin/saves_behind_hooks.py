"""Makes the saves that a `ModelCheckpoint` decides on in a hook behind all hooks of that boundary.

What hooks that come later change (those of the module, and of callbacks behind it in the list)
belongs to the state of that boundary: a run that resumes does not call them again. The callback
decides, names and ranks in its own hook, as Lightning does; only what touches files waits.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat_hook_ends import acts_behind_hooks
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.save_last_link import LinkOrSave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

_DECIDING = (
    "_save_topk_checkpoint",
    "_save_last_checkpoint",
    "_save_monitor_checkpoint",
    "_save_none_monitor_checkpoint",
    "_update_best_and_save",
)
"""Methods that a subclass may wrap in a change of the weights, which must be in when it saves."""


class SavesBehindHooks:
    """The saves, links and removals of one `ModelCheckpoint`, in its order; on every rank."""

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback  # no bound methods of it: a spawned rank unpickles this
        self._link = LinkOrSave(callback)
        self._waiting: list[tuple[str, Callable[[], None]]] = []
        self._waits = False
        self._base = next(k for k in type(callback).__mro__ if k in model_checkpoint_classes())
        callback._save_checkpoint = self.save  # type: ignore[method-assign]
        callback._link_checkpoint = self.link  # type: ignore[method-assign]
        callback._remove_checkpoint = self.remove  # type: ignore[method-assign]

    @property
    def paths(self) -> list[str]:
        """Where a save that was decided on will be made."""
        return [path for path, _ in self._waiting]

    def is_stock(self, *methods: str) -> bool:
        """Whether these are Lightning's own."""
        kind = type(self._callback)
        return all(getattr(kind, name, None) is getattr(self._base, name, None) for name in methods)

    @contextmanager
    def waiting(self, trainer: Trainer, hook: str, *, unless: bool = False) -> Iterator[None]:
        """Let saves inside the context wait for `make`, if `hook` only decides on them.

        A `hook` or a method that a subclass wrote may have other weights in meanwhile, and with
        manual optimization `ModelCheckpoint` itself may bring those of `saved_models` in.
        """
        module = trainer.lightning_module
        swaps = not module.automatic_optimization and hasattr(module, "saved_models")
        before, self._waits = (
            self._waits,
            (
                acts_behind_hooks(trainer)
                and not unless
                and not swaps
                and self.is_stock(hook, *_DECIDING)
            ),
        )
        try:
            yield
        finally:
            self._waits = before

    def make(self) -> None:
        """Make what waits. If that fails, the rest is dropped: nothing is removed for it."""
        waiting, self._waiting = self._waiting, []
        for _, act in waiting:
            act()

    def forget(self) -> None:
        """Drop what waits, of a fit that failed."""
        self._waiting = []

    # methods of the callback

    def save(self, trainer: Trainer, filepath: str) -> None:
        """As `ModelCheckpoint._save_checkpoint`."""
        callback: Any = self._callback
        act = partial(type(callback)._save_checkpoint, callback, trainer, filepath)
        if not self._waits:
            act()
            return
        self._waiting.append((str(filepath), act))
        callback._last_global_step_saved = trainer.global_step
        callback._last_checkpoint_saved = filepath

    def link(self, trainer: Trainer, filepath: str, linkpath: str) -> None:
        """As `ModelCheckpoint._link_checkpoint`."""
        self._now_or_later(str(linkpath), partial(self._link, trainer, filepath, linkpath))

    def remove(self, trainer: Trainer, filepath: str) -> None:
        """As `ModelCheckpoint._remove_checkpoint`."""
        remove = type(self._callback)._remove_checkpoint
        self._now_or_later("", partial(remove, self._callback, trainer, filepath))

    def _now_or_later(self, path: str, act: Callable[[], None]) -> None:
        if self._waits:
            self._waiting.append((path, act))
        else:
            act()
