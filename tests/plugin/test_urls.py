"""Every path that `fit(ckpt_path=...)` takes, `load_from_checkpoint` takes, and the other way."""

from __future__ import annotations

import functools
import http.server
import threading
import uuid
from typing import TYPE_CHECKING, Any

import fsspec
import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from bt_lightning import BTCheckpointIO, BTLightning, CheckpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "limit_train_batches": 2,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
}


class Data(BoringDataModule):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


class Model(BoringModel):
    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()


class _Files(http.server.SimpleHTTPRequestHandler):
    """Knows no ranges, lists folders as pages, and answers what it has not with a page, too."""

    def log_message(self, *_: Any) -> None:
        pass


class _Pages(_Files):
    """Answers what it has not with a page, as sites do that are one program in the browser."""

    def send_error(self, *_: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html></html>")


def _serve(handler: Any, folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Holds `ours` and `stock.ckpt`, of the same training, and no cache of anybody else's."""
    folder = tmp_path / "shelf"
    trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=1, **QUIET)
    trainer.fit(Model(0.25), Data(7))
    trainer.save_checkpoint(folder / "stock.ckpt")
    trainer.strategy.checkpoint_io = BTCheckpointIO()
    trainer.save_checkpoint(folder / "ours")
    return folder


@pytest.fixture(params=["disk", "file", "memory", "web", "site"])
def where(request: pytest.FixtureRequest, shelf: Path) -> Iterator[str]:
    """What names the folder of `ours` and `stock.ckpt`."""
    if request.param in {"web", "site"}:
        yield from _serve(_Files if request.param == "web" else _Pages, shelf)
    elif request.param == "memory":
        place = f"memory://{uuid.uuid4().hex}"
        files = fsspec.filesystem("memory")
        files.put(str(shelf), place, recursive=True)
        yield place
        files.rm(place, recursive=True)
    else:
        yield {"disk": "", "file": "file://"}[request.param] + str(shelf)


@pytest.fixture(autouse=True)
def _own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning reads stock files of the web through torch's cache of the user."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


def _steps_after(trainer: L.Trainer, path: str) -> int:
    trainer.fit(Model(), Data(), ckpt_path=path)
    return trainer.global_step


@pytest.mark.parametrize("name", ["ours", "stock.ckpt"])
@pytest.mark.filterwarnings("ignore:You are using `torch.load`")
def test_modules_data_and_fits_take_the_same_paths(where: str, name: str, tmp_path: Path) -> None:
    path = f"{where}/{name}"
    assert Model.load_from_checkpoint(path).hparams == {"rate": 0.25}
    assert Data.load_from_checkpoint(path).hparams == {"size": 7}
    options = {"default_root_dir": tmp_path, "max_epochs": 2, **QUIET}
    alone = L.Trainer(plugins=[BTCheckpointIO()], **options)
    assert _steps_after(alone, path) == 4
    callback = BTLightning(dir=tmp_path / "ck")
    assert _steps_after(L.Trainer(callbacks=[callback], **options), path) == 4


def test_what_is_tested_with_a_url_is_what_lies_there(where: str, tmp_path: Path) -> None:
    trainer = L.Trainer(callbacks=[BTLightning(dir=tmp_path / "ck")], **QUIET)
    model = Model()
    trainer.validate(model, Data(), ckpt_path=f"{where}/ours", verbose=False)
    saved = BTCheckpointIO().load_checkpoint(f"{where}/ours")["state_dict"]
    assert all((model.state_dict()[name] == tensor).all() for name, tensor in saved.items())


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_nothing_is_said_to_be_not_found_in_the_words_of_lightning(
    kind: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "none") if kind == "disk" else "memory://nowhere/none"
    with pytest.raises(CheckpointNotFoundError, match=r"Checkpoint file not found: .*none"):
        BTCheckpointIO().load_checkpoint(path)
    trainer = L.Trainer(callbacks=[BTLightning(dir=tmp_path / "ck")], **QUIET)
    with pytest.raises(FileNotFoundError, match=r"Checkpoint file not found: .*none"):
        trainer.validate(Model(), Data(), ckpt_path=path)
    with pytest.raises(FileNotFoundError):
        Model.load_from_checkpoint(path)


def test_a_chain_of_filesystems_is_read_as_fsspec_reads_it(shelf: Path, tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    files = fsspec.filesystem("memory")
    files.put(str(shelf), place, recursive=True)
    path = f"simplecache::{place}/stock.ckpt"
    try:
        assert Model.load_from_checkpoint(path).hparams == {"rate": 0.25}
        assert BTCheckpointIO().load_checkpoint(path)["global_step"] == 2
    finally:
        files.rm(place, recursive=True)


def test_a_damaged_copy_on_a_web_server_is_named(shelf: Path) -> None:
    from bt_lightning import CheckpointCorruptError

    file = shelf / "ours" / "trainer.json"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for url in _serve(_Files, shelf):
        with pytest.raises(CheckpointCorruptError, match=r"trainer\.json"):
            Model.load_from_checkpoint(f"{url}/ours")
