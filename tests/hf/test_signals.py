"""SIGTERM to a Trainer: the next step is saved, and the run that goes on ends equal."""

from __future__ import annotations

import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = pytest.mark.matrix

TOLD = 143


def newest(folder):
    found = list_committed(folder)[0][0].path
    verify(found)
    return found.name


@pytest.mark.parametrize(
    ("moment", "step", "saved"),
    [
        ("on_step_end", 5, "interim-5"),
        ("on_step_begin", 2, "interim-3"),
        ("on_step_end", 4, "checkpoint-4"),  # the Trainer saves there itself
        ("on_step_end", 3, "interim-3"),  # the last step of an epoch: saved behind its end
        ("on_prediction_step", 6, "checkpoint-6"),
    ],
)
def test_the_step_is_saved_and_the_run_goes_on_from_it(
    run, undisturbed, tmp_path, moment, step, saved
):
    more = {"eval_strategy": "epoch", "per_device_train_batch_size": 24, "steps": 8}
    root = tmp_path / "ck"
    run("whole", folder=root, told=[moment, step, 0], codes=[TOLD], **more)
    assert newest(root) == saved
    assert "preempted" in [one["event"] for one in read_events(root)]
    wanted, found = undisturbed(**more), run("whole", folder=root, **more)
    assert (found["digest"], found["evaluated"]) == (wanted["digest"], wanted["evaluated"])


def test_all_ranks_leave_at_one_step(run, undisturbed, tmp_path):
    wanted = undisturbed(ranks=2)
    run("whole", ranks=2, folder=tmp_path / "ck", told=["on_step_end", 3, 1], codes=[TOLD, 0])
    assert newest(tmp_path / "ck").startswith(("interim-", "checkpoint-"))
    assert run("whole", ranks=2, folder=tmp_path / "ck")["digest"] == wanted["digest"]


def test_an_interval_saves_where_the_trainer_does_not(run, undisturbed, tmp_path):
    more = {"save_strategy": "no", "options": {"interval": 1e-3}}
    run("whole", folder=tmp_path / "ck", told=["on_step_end", 5, 0], codes=[TOLD], **more)
    assert newest(tmp_path / "ck") == "interim-5"
    wanted = undisturbed()
    assert run("whole", folder=tmp_path / "ck", **more)["digest"] == wanted["digest"]
    assert newest(tmp_path / "ck") in {"final-8", "interim-8"}
