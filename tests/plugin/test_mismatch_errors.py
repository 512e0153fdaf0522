"""A checkpoint meets another model or another optimizer: said before anything is trained."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from pathlib import Path


def net(runs: Any, optimizer: Any, **options: Any) -> Any:
    """A maker of modules that train with `optimizer`."""

    class Other(runs.Net):
        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters(), lr=1e-2, **options)

    return Other


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize(
    ("before", "now", "needs"),
    [("SGD", "Adam", "betas"), ("Adam", "SGD", "dampening"), ("RMSprop", "Adagrad", "lr_decay")],
)
def test_the_state_of_another_optimizer_is_refused_by_name(
    runs: Any, tmp_path: Path, before: str, now: str, needs: str, stock: bool
) -> None:
    """Stock fails at the first step, with a bare KeyError."""
    kind, options = OPTIMIZERS[before]
    more = {"callbacks": [], "enable_checkpointing": False} if stock else {}
    run = runs.fit(tmp_path, make=net(runs, kind, **options), max_epochs=1, **more)
    path = None
    if stock:
        path = tmp_path / "stock.ckpt"
        run.trainer.save_checkpoint(path)
    kind, options = OPTIMIZERS[now]
    with pytest.raises(CheckpointMismatchError, match="state of another optimizer") as caught:
        runs.fit(tmp_path, make=net(runs, kind, **options), ckpt_path=path)
    message = str(caught.value)
    assert f"{now} needs" in message
    assert needs in message
    assert "resume='weights'" in message
    if not stock:
        assert f"by {before}" in message


def test_optimizers_that_know_each_others_state_go_on_with_a_word(
    runs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs.fit(tmp_path, make=net(runs, torch.optim.Adam), max_epochs=1)
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        again = runs.fit(tmp_path, make=net(runs, torch.optim.AdamW), max_epochs=2)
    assert again.first_step == 8
    assert "saved with the optimizers Adam, and this run has AdamW" in caplog.text


def test_a_key_that_a_newer_class_of_the_same_name_has_is_no_misfit(
    runs: Any, tmp_path: Path
) -> None:
    class Mine(torch.optim.SGD):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if newer:
                self.defaults["added"] = 1

    newer = False
    runs.fit(tmp_path, make=net(runs, Mine), max_epochs=1)
    newer = True
    assert runs.fit(tmp_path, make=net(runs, Mine), max_epochs=2).first_step == 8


def compiled(runs: Any, *parts: str) -> Any:
    """A maker of modules some of whose parts have the names that `torch.compile` gives."""

    class Compiled(runs.Net):
        def __init__(self) -> None:
            super().__init__()
            for part in parts:  # nothing is compiled before it runs, and this backend does nothing
                holder, _, name = f"self.{part}".rpartition(".")
                owner = self if holder == "self" else self.get_submodule(holder[5:])
                setattr(owner, name, torch.compile(getattr(owner, name), backend="eager"))

    Compiled.__qualname__ = runs.Net.__qualname__  # a script compiles it, or not
    return Compiled


@pytest.mark.parametrize("was_compiled", [True, False])
def test_a_compiled_module_and_a_plain_one_are_told_apart(
    runs: Any, tmp_path: Path, was_compiled: bool
) -> None:
    makes = [compiled(runs, "net"), runs.Net]
    before, now = makes if was_compiled else makes[::-1]
    runs.fit(tmp_path, make=before, max_epochs=1)
    with pytest.raises(CheckpointMismatchError, match="another model") as caught:
        runs.fit(tmp_path, make=now)
    expected = (
        "net were compiled when it was saved, and are not now"
        if was_compiled
        else "net are compiled now, and were not when it was saved"
    )
    assert expected in str(caught.value)
    assert "module.compile()" in str(caught.value)


def test_not_to_be_strict_does_not_hide_that_nothing_was_loaded(
    runs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs.fit(tmp_path, make=compiled(runs, "net"), max_epochs=1)
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        runs.fit(tmp_path, bt={"strict": False}, max_epochs=1)
    assert "not all weights of" in caplog.text
    assert "net were compiled when it was saved" in caplog.text
