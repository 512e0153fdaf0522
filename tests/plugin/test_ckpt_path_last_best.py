"""`ckpt_path="last"` and `"best"` in a process that saved nothing, and `last` after a break-off."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import BTLightning, resume_path
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

EVALUATE = """
import json, sys
import plugin_runs as runs
from bt_lightning import BTLightning, resume_path

root, word, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for verb in ("validate", "test"):
    module = runs.Net()
    trainer = runs.trainer(root, BTLightning(dir=root), runs.ModelCheckpoint(**options))
    getattr(trainer, verb)(module, runs.validation(), ckpt_path=word)
    print(json.dumps(runs.digest(module.state_dict())), flush=True)
"""


def trained(runs: ModuleType, root: Path, save: dict[str, Any], *scores: float) -> dict[int, str]:
    """Digests of the weights by step, of a run that logs one of the `scores` an epoch."""
    digests: dict[int, str] = {}

    class Scored(runs.Net):
        def validation_step(self, batch: Any, index: int) -> None:
            self.log("score", scores[self.trainer.current_epoch])

        def on_train_epoch_end(self) -> None:
            digests[self.trainer.global_step] = runs.digest(self.state_dict())

    runs.fit(root, make=Scored, save=save, max_epochs=len(scores))
    return digests


@pytest.mark.parametrize(
    ("word", "save", "step"),
    [
        ("last", {"save_last": True}, 24),
        ("last", {"save_last": "link", "filename": "a-{step}"}, 24),
        ("last", {"save_top_k": -1}, 24),
        ("best", {"monitor": "score", "save_top_k": 2, "save_last": True}, 16),
        ("best", {"monitor": "score", "mode": "max", "save_top_k": -1}, 8),
        ("best", {}, 24),
    ],
)
def test_another_process_evaluates_what_was_trained(
    runs: ModuleType, tmp_path: Path, scripts: Any, word: str, save: Any, step: int
) -> None:
    digests = trained(runs, tmp_path / "run", save, 3.0, 1.0, 2.0)
    found = scripts.run(EVALUATE, tmp_path / "run", word, json.dumps(save))
    lines = [json.loads(line) for line in found.out.splitlines() if line.startswith('"')]
    assert lines == [digests[step]] * 2


def test_the_newest_of_several_lasts_is_meant_and_a_link_that_leads_nowhere_is_none(
    runs: ModuleType, tmp_path: Path
) -> None:
    from bt_lightning.lightning_plugin.ckpt_path_last_best import resolve_last_or_best

    runs.fit(tmp_path, save={"save_top_k": -1, "save_last": "link"}, max_epochs=2)
    (tmp_path / "last-v1").symlink_to("checkpoint-8")
    trainer = runs.trainer(tmp_path, BTLightning(dir=tmp_path), runs.ModelCheckpoint())
    assert resolve_last_or_best(trainer, "last") == str(tmp_path / "checkpoint-16")
    (tmp_path / "last").unlink()
    (tmp_path / "last").symlink_to("checkpoint-99")
    assert resolve_last_or_best(trainer, "last") == str(tmp_path / "checkpoint-8")
    (tmp_path / "last-v1").unlink()
    assert resolve_last_or_best(trainer, "last") == str(tmp_path / "checkpoint-16")


def test_words_of_a_model_checkpoint_elsewhere_are_lightnings(
    runs: ModuleType, tmp_path: Path
) -> None:
    from bt_lightning.lightning_plugin.ckpt_path_last_best import resolve_last_or_best

    runs.fit(tmp_path / "root", max_epochs=1)
    elsewhere = runs.ModelCheckpoint(dirpath=tmp_path / "elsewhere", save_last=True)
    trainer = runs.trainer(tmp_path, BTLightning(dir=tmp_path / "root"), elsewhere)
    assert resolve_last_or_best(trainer, "last") is None
    assert resolve_last_or_best(trainer, "best") is None


@pytest.mark.parametrize("last", [True, "link"])
def test_a_resumed_run_goes_on_with_the_last_of_the_run_that_broke_off(
    runs: ModuleType, tmp_path: Path, last: Any
) -> None:
    """The first checkpoint knows of no `last` yet: its run broke off before the second."""
    save = {"every_n_train_steps": 8, "save_last": last}
    assert runs.fit(tmp_path, make=partial(runs.Net, 9), save=save).stopped
    if last is True:  # the run resumes from the other one of the same step
        (newest, other) = list_committed(tmp_path.resolve())[0]
        assert newest.manifest.step == other.manifest.step
    assert runs.fit(tmp_path, save=save, max_epochs=2).first_step == 8
    assert [path.name for path in tmp_path.glob("last*")] == ["last"]
    assert read_manifest(tmp_path / "last").step == 16


SEVERAL = """
import json, os, sys
import lightning as L
import plugin_runs as runs
from bt_lightning import BTLightning, resume_path

root, verb = sys.argv[1:]
os.environ["BT_CHECKPOINT_DIR"] = root
for width, epochs in ((8, 3), (16, 2)):
    L.seed_everything(width, verbose=False)
    net, called = runs.Net(), {"max_epochs": epochs, "num_sanity_val_steps": 0}
    net.save_hyperparameters({"width": width})
    made = runs.trainer(root, BTLightning(dir=root), runs.ModelCheckpoint(), **called)
    if verb == "fit":
        made.fit(net, runs.loader(), runs.validation(), ckpt_path="last")
        print(json.dumps([made.global_step, runs.digest(net.state_dict()), resume_path()]))
    for word in ("last", "best"):
        made.validate(net, runs.validation(), ckpt_path=word, verbose=False)
        print(json.dumps(runs.digest(net.state_dict())), flush=True)
"""


def test_of_several_fits_a_trainer_means_its_own_and_another_process_the_one_that_saved_last(
    runs: ModuleType, tmp_path: Path, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path.resolve() / "root"
    done = scripts.run(SEVERAL, root, "fit")
    said = [json.loads(line) for line in done.out.splitlines() if line.startswith(("[", '"'))]
    (first, *words), (second, *others) = said[:3], said[3:]
    assert first[0] == 24
    assert second[0] == 16, "it did not go on with the first one's"
    assert [*words, *others] == [first[1]] * 2 + [second[1]] * 2
    assert [first[2], second[2]] == [str(root / "checkpoint-24"), str(root / "fit-2/checkpoint-16")]
    lines = [
        line for line in scripts.run(SEVERAL, root, "look").out.splitlines() if line[:1] == '"'
    ]
    assert [json.loads(line) for line in lines] == [second[1]] * 4
    monkeypatch.setenv("BT_CHECKPOINT_DIR", str(root))
    for fit, path in (("fit-2", "fit-2/checkpoint-16"), ("", "checkpoint-24")):
        assert resume_path(fit=fit) == str(root / path)
    assert resume_path(fit="fold-9") is None
    monkeypatch.setenv("BT_FIT_NAME", "fit-2")
    assert resume_path() == str(root / "fit-2/checkpoint-16")
