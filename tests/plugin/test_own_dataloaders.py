"""Dataloaders that packages make in their own way: what is exact stays so, the rest is said."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from functools import partial
from importlib.metadata import version
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from bt_lightning.localdir.event_log import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 is not exact inside an epoch")
STOP = 13
EPOCHS = 3


class AtOnce(torch.utils.data.Dataset):
    """Reads a batch by one call, as of a sparse matrix."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        return torch.tensor(indices)[:, None].expand(-1, 8) / 32 + 0.1 * torch.randn(1, 8)


class Zipped(DataLoader):
    """Two dataloaders in one, as scvi's `ConcatDataLoader`: it asks no sampler of its own."""

    def __init__(self, longer: DataLoader, shorter: DataLoader) -> None:
        self.both = longer, shorter
        super().__init__(longer)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.both[0])

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        longer, shorter = self.both
        return (one + other for one, other in zip(longer, cycle(shorter), strict=False))


class Ahead(DataLoader):
    """Goes by its own batch sampler, in an `__iter__` of its own."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class Drawn(Sampler[int]):
    """A permutation of numpy's global generator."""

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(32).tolist())  # noqa: NPY002


class Shuffling:
    """Shuffles what it shuffled before, as chemprop's `SeededSampler`, which is no `Sampler`."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.indices = generator, np.arange(32)

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.generator, torch.Generator):
            order = torch.randperm(32, generator=self.generator).numpy()
            self.indices[:] = self.indices[order]
        else:
            self.generator.shuffle(self.indices)
        return iter(self.indices.tolist())


class Counting(Sampler[int]):
    """Counts its epochs by itself."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return 32

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(32).tolist())


class Noisy(torch.utils.data.Dataset):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.augment = {"by": [np.random.default_rng(3)]}

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = self.augment["by"][0].normal(0, 0.1, 8)
        return torch.full((8,), index / 32) + torch.from_numpy(noise).float()


def batches_at_once(*, shuffle: bool) -> DataLoader:
    rows = AtOnce()
    inner = RandomSampler(rows) if shuffle else SequentialSampler(rows)
    return DataLoader(rows, batch_size=None, sampler=BatchSampler(inner, 4, drop_last=False))


def ahead(runs: ModuleType) -> DataLoader:
    return Ahead(runs.Numbers(), batch_size=4)


def zipped(runs: ModuleType) -> DataLoader:
    one = DataLoader(runs.Numbers(), batch_size=4, shuffle=True)
    other = DataLoader(runs.Numbers(length=16), batch_size=4, shuffle=True)
    return Zipped(one, other)


def drawn(runs: ModuleType) -> DataLoader:
    return DataLoader(runs.Numbers(), batch_size=4, sampler=Drawn())


def fit(
    runs: ModuleType,
    root: Path,
    loader: DataLoader,
    *,
    stop_at: int | None = None,
    end: Any = None,
    **bt: Any,
) -> Any:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning import BTLightning

    L.seed_everything(1)
    saves = ModelCheckpoint(every_n_train_steps=None if bt else 1, save_top_k=0 if bt else -1)
    callback = BTLightning(dir=root, **bt)
    trainer = runs.trainer(root, callback, saves, max_epochs=EPOCHS)
    module = runs.Net(stop_at, runs.stop if end is None else partial(end, callback))
    try:
        trainer.fit(module, loader)
    except runs.StoppedError:
        return None
    return runs.outcome(trainer)


KNOWN = {
    "batches at once": lambda: batches_at_once(shuffle=True),
    "batches at once, in order": lambda: batches_at_once(shuffle=False),
}


@needs_26
@pytest.mark.parametrize("kind", KNOWN)
def test_a_run_that_ends_inside_an_epoch_ends_as_the_whole_one(
    runs: ModuleType, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(runs, tmp_path / "whole", KNOWN[kind]())
    fit(runs, tmp_path / "two", KNOWN[kind](), stop_at=STOP)
    assert fit(runs, tmp_path / "two", KNOWN[kind]()) == whole
    assert "not exact" not in caplog.text


@needs_26
@pytest.mark.parametrize("kind", [zipped, drawn])
def test_what_is_not_exact_inside_an_epoch_is_said(
    runs: ModuleType, tmp_path: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fit(runs, tmp_path, kind(runs), stop_at=STOP)
    fit(runs, tmp_path, kind(runs))
    name = type(kind(runs)).__name__
    assert re.search(f"not exact: {name} has no state, and no order that is known", caplog.text)


HOLDING = {
    "numpy": lambda: Shuffling(np.random.default_rng(0)),
    "numpy's Mersenne Twister": lambda: Shuffling(np.random.Generator(np.random.MT19937(0))),
    "numpy's older one": lambda: Shuffling(np.random.RandomState(0)),
    "Python": lambda: Shuffling(random.Random(0)),
    "torch": lambda: Shuffling(torch.Generator().manual_seed(0)),
    "a count": Counting,
}


@pytest.mark.parametrize("kind", HOLDING)
def test_what_a_sampler_of_ones_own_draws_from_goes_on_at_the_end_of_an_epoch(
    runs: ModuleType, tmp_path: Path, kind: str
) -> None:
    def loader() -> DataLoader:
        return DataLoader(runs.Numbers(), batch_size=4, sampler=HOLDING[kind]())

    whole = fit(runs, tmp_path / "whole", loader(), interval=1e-6)
    fit(runs, tmp_path / "two", loader(), stop_at=STOP, interval=1e-6)
    assert fit(runs, tmp_path / "two", loader(), interval=1e-6) == whole


@needs_26
def test_what_a_dataset_of_ones_own_draws_from_goes_on_inside_an_epoch(
    runs: ModuleType, tmp_path: Path
) -> None:
    def loader() -> DataLoader:
        return DataLoader(Noisy(), batch_size=4, shuffle=True)

    whole = fit(runs, tmp_path / "whole", loader())
    fit(runs, tmp_path / "two", loader(), stop_at=STOP)
    assert fit(runs, tmp_path / "two", loader()) == whole


@needs_26
def test_a_dataloader_that_iterates_by_a_method_of_its_own_keeps_its_place(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When it makes the iterator within, and so draws, only it knows."""
    fit(runs, tmp_path, ahead(runs), stop_at=STOP)
    fit(runs, tmp_path, ahead(runs))
    assert "Ahead iterates by a method of its own" in caplog.text
    assert "no order that is known" not in caplog.text


@pytest.mark.parametrize("kind", [ahead, zipped, drawn])
def test_saves_at_an_interval_wait_for_the_end_of_an_epoch_where_only_that_is_exact(
    runs: ModuleType, tmp_path: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A save is due after each batch."""
    whole = fit(runs, tmp_path / "whole", kind(runs), interval=1e-6)
    fit(runs, tmp_path / "two", kind(runs), stop_at=STOP, interval=1e-6)
    (saved,) = (tmp_path / "two").glob("interim-*")
    assert saved.name == f"interim-{runs.BATCHES}"
    assert fit(runs, tmp_path / "two", kind(runs), interval=1e-6) == whole
    assert "not exact" not in caplog.text


@needs_26
def test_saves_at_an_interval_wait_for_nothing_where_they_are_exact(
    runs: ModuleType, tmp_path: Path
) -> None:
    fit(runs, tmp_path, runs.loader(), stop_at=STOP, interval=1e-6)
    saves = [one for one in read_events(tmp_path) if one["event"] == "save"]
    assert any(one["step"] % runs.BATCHES for one in saves)


def test_the_save_of_a_signal_waits_for_the_end_of_an_epoch_where_only_that_is_exact(
    runs: ModuleType, tmp_path: Path
) -> None:
    """There is time for it: steps take milliseconds, and a save was measured."""
    whole = fit(runs, tmp_path / "whole", drawn(runs), interval=1e-6)

    def end(callback: Any) -> None:
        session, until = callback._session.writer, time.monotonic() + 60
        while session.timings.save_s is None:
            assert time.monotonic() < until
            session.process_events(0.1)
            session.poll()
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(runs, tmp_path / "two", drawn(runs), stop_at=STOP, end=end, interval=1e-6, grace=60)
    (saved,) = (tmp_path / "two").glob("interim-*")
    assert saved.name == f"interim-{2 * runs.BATCHES}"
    assert fit(runs, tmp_path / "two", drawn(runs), interval=1e-6) == whole
