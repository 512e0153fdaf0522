"""The frozen base of one run, on every rank: noted, compared where a run resumes, watched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.restore.weights_without_base import WeightsWithoutBase
from bt_lightning.session.frozen_base import FrozenBase
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from bt_lightning.session.checkpoint_writer import CheckpointWriter
    from bt_lightning.session.ranks import Ranks
    from bt_lightning.session.save_tracking import Saves


class BaseOfRun:
    """`note`, `completed` and `loaded` for each load of weights, `begin`; every rank calls all.

    Only the rank that writes has the base, and only its base counts: DDP gives it to the others.

    Args:
        save_frozen: as of `BTLightning`.
    """

    def __init__(self, save_frozen: bool | None) -> None:  # noqa: FBT001
        self._save_frozen = save_frozen
        self._base: FrozenBase | None = None
        self._to_look_at = False

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has another module."""
        return {**self.__dict__, "_base": None}

    def note(self, module: torch.nn.Module, writer: CheckpointWriter, ranks: Ranks) -> None:
        """The module is complete, and no checkpoint is applied to it yet."""

        def look() -> None:
            self._base = FrozenBase(module, self._save_frozen)

        self._base = None
        ranks.from_slow_zero(look)
        writer.base = self._base

    def completed(
        self,
        checkpoint: Mapping[str, Any],
        module: torch.nn.Module,
        ranks: Ranks,
        *,
        strict: bool = True,
    ) -> Mapping[str, Any]:
        """`checkpoint`, whose weights are to be loaded, with those that it left out.

        Raises:
            CheckpointMismatchError: rank 0's module has another base.
        """
        weights = checkpoint.get(WEIGHTS_KEY)
        if not isinstance(weights, WeightsWithoutBase):
            return checkpoint

        def check() -> None:
            assert self._base is not None  # since `note`
            self._base.check(weights, strict=strict)

        ranks.from_slow_zero(check)
        return {**checkpoint, WEIGHTS_KEY: weights.filled(module)}

    def loaded(self, checkpoint: Mapping[str, Any]) -> None:
        """The weights of `checkpoint`, as it was read, are loaded."""
        weights = checkpoint.get(WEIGHTS_KEY) or {}
        left_out = weights.table.tensors if isinstance(weights, WeightsWithoutBase) else {}
        if self._base is not None:
            self._base.restored(weights, left_out)

    def begin(self) -> None:
        """All is restored, and training begins."""
        if self._base is not None:
            self._base.begin()
        self._to_look_at = self._base is not None

    def look(self, saves: Saves | None) -> None:
        """A step is over; once: find beside training what each step writes to, before a save."""
        if self._to_look_at and self._base is not None and saves is not None:
            self._to_look_at = False
            saves.saver.verify_early(self._base.look())
