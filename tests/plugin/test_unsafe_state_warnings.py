"""State that needs pickle: a restart takes it from the script, or says before what it will need."""

from __future__ import annotations

import pytest

from bt_lightning.settings import Settings

SCRIPT = """
import sys, warnings
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Scaler:  # as scikit-learn's: attributes, and no way to encode it
    def __init__(self, rows):
        self.mean, self.seen = rows.mean(0).numpy(), {"n": len(rows)}


def loss_of(x):
    return x.pow(2).mean()


class Net(L.LightningModule):
    def __init__(self, scaler, loss, criterion):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(8, 1)
        self.counting = Scaler(torch.zeros(1, 8))

    def training_step(self, batch, index):
        self.counting.seen["n"] += CHANGES
        return self.hparams.loss(self.net(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["scaler"] = self.hparams.scaler
        checkpoint["criterion"] = self.hparams.criterion
        checkpoint["counting"] = self.counting

    def on_load_checkpoint(self, checkpoint):
        self.counting = checkpoint["counting"]
        assert type(checkpoint["criterion"]) is torch.nn.MSELoss
        assert checkpoint["scaler"].seen == {"n": 32}
        print("scaler is its own:", checkpoint["scaler"] is self.hparams.scaler)


if __name__ == "__main__":
    warnings.simplefilter("default")
    CHANGES, epochs = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(3)
    rows = torch.randn(32, 8)
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False,
                        enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Net(Scaler(rows), loss_of, torch.nn.MSELoss()),
                DataLoader(TensorDataset(rows), batch_size=8))
    print("step", trainer.global_step)
"""


@pytest.fixture
def start(scripts, tmp_path, environ):
    """Start the script, as a job would, and return what it said."""
    script = scripts.write(SCRIPT)
    environ.setenv("BT_LIGHTNING", "1")
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "root"))

    def run(changes: int, epochs: int, *, rc: int = 0) -> str:
        done = scripts.run(script, changes, epochs, code=rc)
        return done.out + done.err

    return run


def test_a_restart_takes_what_equals_its_own(start):
    """Neither a switch nor a change of the script: the object that was pickled is there again."""
    said = start(0, 1)
    assert "leftovers.pt: scaler (__main__.Scaler), counting (__main__.Scaler)." in said
    assert said.count("A restart takes each from the script's own module if that holds") == 1
    again = start(0, 2)
    assert "scaler is its own: True" in again
    assert "step 8" in again


def test_a_restart_that_needs_trust_says_so_at_the_first_save_and_takes_the_switch(start, environ):
    assert "BT_WEIGHTS_ONLY=0, `bt-lightning run --trust-checkpoints`" in start(1, 1)
    said = start(1, 2, rc=1)
    assert "UnsafeLoadError: counting could not be saved without pickle" in said
    environ.setenv("BT_WEIGHTS_ONLY", "0")
    again = start(1, 2)
    assert "step 8" in again
    assert "A restart takes each" not in again


def test_trust_of_a_job_is_for_its_own_checkpoints(start, environ, tmp_path):
    """What a platform laid beside it may be anybody's."""
    start(1, 1)
    environ.setenv("BT_LOAD_CHECKPOINT_DIR", str(tmp_path / "root"))
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "other"))
    environ.setenv("BT_WEIGHTS_ONLY", "0")
    assert "UnsafeLoadError" in start(1, 2, rc=1)
    environ.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "step 8" in start(1, 2)


@pytest.mark.parametrize(
    ("text", "found"), [("0", False), ("1", True), ("false", False), ("True", True), ("", None)]
)
def test_the_variable_is_read(text, found):
    assert Settings.from_environ({"BT_WEIGHTS_ONLY": text}).weights_only is found
