"""Reads the identity of a fit off a Trainer, its module and its data; runs none of their code."""

from __future__ import annotations

import inspect
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.checkpoints_of_fit import of_fit, of_newest_fit
from bt_lightning.fit_identity import FitIdentity
from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.compat_config import command_line
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.model_checkpoint_paths import is_default_dirpath
from bt_lightning.session.call_site import call_site, program_digest
from bt_lightning.session.fit_selection import FitRequest
from bt_lightning.session.value_digests import digest, shapes_digest, without_stamps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint

_WHERE: Final = frozenset(
    {
        *("accelerator", "ckpt_path", "checkpoint", "checkpoint_dir", "config", "debug", "device"),
        *("devices", "dirpath", "gpus", "job_id", "local_rank", "log_dir", "logdir", "name"),
        *("log_every_n_steps", "num_gpus", "num_nodes", "num_workers", "nodes", "out", "out_dir"),
        *("output", "output_dir", "pin_memory", "precision", "rank", "resume", "run_id"),
        *("run_name", "save_dir", "strategy", "verbose", "wandb", "workers", "world_size"),
    }
)
"""Names of hyperparameters that say where, how observed, and on which machines a fit runs."""
_LIMITS: Final = ("max_epochs", "max_steps", "accumulate_grad_batches")
_EARLY: Final = ("monitor", "patience", "min_delta", "mode", "stopping_threshold")
_MOST_HYPERPARAMETERS: Final = 400
_SEED_BELOW: Final = 2**32
"""torch draws a seed of 53 bits unless a script sets one."""


class FitsOfCallback:
    """The fits of one callback, one after the other."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._before: tuple[weakref.ref[Any], weakref.ref[Any]] | None = None
        self.folder = ""
        """Folder, below the root, of the checkpoints of the newest one."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has fitted nothing."""
        return {**vars(self), "_before": None}

    def request(self, trainer: Trainer, module: LightningModule) -> FitRequest:
        """Rank 0: what tells the fit that is being set up from the others of the job."""
        before = self._before
        goes_on = before is not None and before[0]() is trainer and before[1]() is module
        after = self.folder if goes_on else None
        return FitRequest(fit_identity(trainer, module), self._name, after)

    def of_one(self, trainer: Trainer, found: list[LocalCheckpoint]) -> list[LocalCheckpoint]:
        """Of the directory's checkpoints, those of one fit, for who asks for the last one.

        The last fit of this Trainer, else the one of the callback's name, else what saved last.
        """
        if self._before is not None and self._before[0]() is trainer:
            found = [one for one in found if one.manifest.fit_folder == self.folder]
        elif self._name:
            return of_fit(found, lambda one: one.manifest, self._name)
        return of_newest_fit(found, lambda one: one.manifest)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Every rank: the state is restored. Another fit of the two goes on where it stands."""
        self._before = (weakref.ref(trainer), weakref.ref(module))


def fit_identity(trainer: Trainer, module: LightningModule) -> FitIdentity:
    """The identity of the fit that is being set up; on rank 0, before anything is restored."""
    seed = torch.initial_seed()
    return FitIdentity(
        model=f"{type(module).__qualname__} {shapes_digest(module)}"[:512],
        hyperparameters=dict(_hyperparameters(trainer, module)),
        data=_data(trainer, module),
        writes=_folders(trainer),
        place=call_site(),
        limits=_limits(trainer),
        seed=str(seed) if seed < _SEED_BELOW else "",
        program=program_digest(command_line(trainer)),
    )


def _limits(trainer: Trainer) -> dict[str, str]:
    found = {name: repr(getattr(trainer, name, None)) for name in _LIMITS}
    early = trainer.early_stopping_callbacks
    if early:
        found["early_stopping"] = digest([{n: vars(one).get(n) for n in _EARLY} for one in early])
    return found


def _hyperparameters(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    """Names and digests: those that were saved, and attributes that are named as arguments are."""
    found: dict[str, Any] = {}
    for owner in (getattr(trainer, "datamodule", None), module):
        if owner is None:
            continue
        for name in _arguments(type(owner)):
            value = vars(owner).get(name)
            if isinstance(value, bool | int | float | str | list | tuple | dict):
                found[name] = value
        found.update(_flat(getattr(owner, "hparams_initial", None) or {}))
    for name in sorted(found, key=str)[:_MOST_HYPERPARAMETERS]:
        if str(name).rpartition(".")[2].lower() not in _WHERE:
            yield str(name)[:200], digest(found[name])


def _flat(values: Any) -> dict[str, Any]:
    """The entries of saved hyperparameters; those of a namespace or dictionary in them, by path."""
    flat: dict[str, Any] = {}
    for name, value in dict(values).items():
        inner = vars(value) if type(value).__name__ == "Namespace" else value
        if isinstance(inner, dict) and all(isinstance(key, str) for key in inner):
            flat.update({f"{name}.{key}": each for key, each in inner.items()})
        else:
            flat[str(name)] = value
    return flat


def _arguments(kind: type) -> list[str]:
    names: list[str] = []
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] in {"lightning", "pytorch_lightning", "torch"}:
            break
        init = vars(each).get("__init__")
        if inspect.isfunction(init):
            names += inspect.signature(init).parameters
    return names


def _data(trainer: Trainer, module: LightningModule) -> str:
    """A digest of the training data; empty if they are made by a hook and nothing holds them."""
    source = compat.train_data_source(trainer)
    if source is None:
        return ""
    if source is module or not hasattr(source, "trainer"):
        held: Any = source if source is not module else _datasets(vars(module))
    else:  # a datamodule, which has been set up
        held = _datasets(vars(source))
    return digest(held) if held else ""


def _datasets(attributes: dict[str, Any]) -> dict[str, Any]:
    """What a module or datamodule holds of data."""
    kinds = (torch.utils.data.Dataset, torch.utils.data.DataLoader)
    return {
        name: value
        for name, value in attributes.items()
        if isinstance(value, kinds) or hasattr(value, "_fingerprint")
    }


def _folders(trainer: Trainer) -> str:
    """Folders that the script gave its `ModelCheckpoint`s; loggers number theirs at each start."""
    found = [
        without_stamps(os.fspath(callback.dirpath))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, model_checkpoint_classes())
        and callback.dirpath is not None
        and not is_default_dirpath(callback)
    ]
    return digest(found) if found else ""
