"""What tells values and training data apart, without running code of the script."""

from __future__ import annotations

import argparse
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from bt_lightning.session.call_site import call_site, program_digest
from bt_lightning.session.value_digests import digest, without_stamps


class Files(Dataset[Any]):
    """Opens its file at the first read, as datasets of HDF5 do."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.reads = 0

    def __len__(self) -> int:
        raise AssertionError

    def __getitem__(self, index: int) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        ("fold-1", "fold-2"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (None, 0),
        (Path("data/1"), Path("data/2")),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (np.arange(9), np.arange(1, 10)),
        (argparse.Namespace(lr=1.0), argparse.Namespace(lr=2.0)),
        (Files(["a"]), Files(["b"])),
        (Subset(Files(["a"]), [0, 1]), Subset(Files(["a"]), [0, 2])),
        (ConcatDataset.__new__(ConcatDataset), Files([])),
        (range(3), range(4)),
    ],
)
def test_what_differs_has_another_digest(one: object, other: object) -> None:
    assert digest(one) != digest(other)


def test_one_index_of_a_large_subset_tells_it_from_another() -> None:
    base = TensorDataset(torch.zeros(4))
    indices = list(range(1_000_000))
    other = [*indices[:500_000], 7, *indices[500_001:]]
    assert digest(Subset(base, indices)) != digest(Subset(base, other))
    assert digest(Subset(base, indices)) == digest(Subset(base, torch.tensor(indices)))


def test_what_a_script_makes_anew_at_each_start_is_left_out() -> None:
    for one, other in (
        (datetime.now(timezone.utc).isoformat(), "2031-02-03T04:05:06"),
        (f"runs/{uuid.uuid4()}/x", f"runs/{uuid.uuid4()}/x"),
        ("outputs/2026-01-02/03-04-05", "outputs/2027-11-12/13-14-15"),
        ("run_20260102_030405", "run_20270102_030405"),
        (repr(object()), repr(object())),
        (1.76e9, 1.77e9),
    ):
        assert digest(one) == digest(other)
    assert without_stamps("checkpoints/fold-12/x") == "checkpoints/fold-12/x"


def test_a_dataset_that_training_changed_is_the_one_that_was_first_seen() -> None:
    data = Files(["a"])
    before = digest(DataLoader(Subset(data, [0, 1])))
    data.reads, data.names = 8, ["b"]
    assert digest(DataLoader(Subset(data, [0, 1]))) == before
    assert digest(data) != digest(Files(["b"]))


def test_objects_that_hold_each_other_come_to_an_end() -> None:
    one: dict[str, Any] = {}
    one["self"] = [one, {"again": one}]
    digest(one)
    digest([[] for _ in range(1_000_000)])


def test_two_processes_come_to_the_same_digest() -> None:
    value = "{'a': {'x', 'y', 'z'}, 'b': [1.5, None, b'x'], 'c': frozenset({'p', 'q'})}"
    code = f"from bt_lightning.session.value_digests import digest\nprint(digest({value}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert digest(eval(value)) == other


def here(token: str = "") -> str:
    return call_site()


def test_a_place_is_told_by_its_lines_not_by_their_numbers() -> None:
    places = [here() for _ in range(2)]
    assert places[0] == places[1]
    assert here() != places[0]
    assert places[0].startswith("test_value_digests.py:here ")


def test_no_text_of_a_script_is_in_its_place() -> None:
    assert "hf_s3kr3t" not in here(token="hf_s3kr3t")


def test_a_script_is_told_by_its_bytes_and_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text("x = 1\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])
    first = program_digest()
    assert program_digest() == first
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "2"])
    assert program_digest() != first
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])
    script.write_text("x = 2\n")
    assert program_digest() != first
    script.unlink()
    assert program_digest() == ""


def test_what_callbacks_and_loggers_have_counted_tells_nothing_apart():
    """Of hyperparameters that hold what a package gives to its Trainer, as neuralforecast's do."""
    from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
    from lightning.pytorch.loggers import CSVLogger

    def options(counted):
        stopping, bar = EarlyStopping("loss"), RichProgressBar()
        logger = CSVLogger(f"logs-{counted}", version=counted)
        stopping.wait_count, bar.seen = counted, counted
        return {"callbacks": [stopping, bar], "logger": logger, "max_steps": 3}

    assert digest(options(0)) == digest(options(1))
    assert digest(options(0)) != digest({**options(0), "max_steps": 4})
    assert digest(options(0)) != digest({**options(0), "callbacks": []})
