"""A `ModelCheckpoint` with a folder of its own, whose files a restart may not find."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

FROM_THE_STOP = 20
"""Steps of two epochs and a half."""


def fit(runs: ModuleType, root: Path, folder: Path, *, stop_at: int | None = None) -> Any:
    """Its validation gets worse with each epoch; we save at the end of each."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning import BTLightning

    class Worse(runs.Net):
        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val", float(self.current_epoch))

    L.seed_everything(1)
    own = ModelCheckpoint(folder, "{epoch}", monitor="val", save_top_k=1)
    ours = ModelCheckpoint(save_top_k=-1, every_n_epochs=1)
    trainer = runs.trainer(root, BTLightning(dir=root / "ck"), own, ours, max_epochs=4)
    try:
        trainer.fit(Worse(stop_at), runs.loader(), runs.validation())
    except runs.StoppedError:
        assert stop_at is not None
    return own


def test_what_is_gone_is_not_the_best_any_more(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a script that empties its folder at each start, or on another disk."""
    own = tmp_path / "own"
    fit(runs, tmp_path, own, stop_at=FROM_THE_STOP)
    shutil.rmtree(own)
    best = fit(runs, tmp_path, own)
    assert Path(best.best_model_path).is_file()
    assert best.best_model_score == 2  # of the first epoch that ends after the restart
    assert f"since they are gone: {own / 'epoch=0.ckpt'}" in caplog.text


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_what_is_there_stays_the_best(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(runs, tmp_path, tmp_path / "own", stop_at=FROM_THE_STOP)
    best = fit(runs, tmp_path, tmp_path / "own")
    assert Path(best.best_model_path) == tmp_path / "own" / "epoch=0.ckpt"
    assert "gone" not in caplog.text


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_folder_named_by_the_time_of_the_start_is_gone_on_with(
    runs: ModuleType, tmp_path: Path
) -> None:
    """As scvi names that of its `SaveCheckpoint`."""
    fit(runs, tmp_path, tmp_path / "2026-11-29_15-14-25_val", stop_at=FROM_THE_STOP)
    best = fit(runs, tmp_path, tmp_path / "2026-11-30_08-00-01_val")
    assert Path(best.best_model_path) == tmp_path / "2026-11-29_15-14-25_val" / "epoch=0.ckpt"
    assert best.best_model_score == 0
