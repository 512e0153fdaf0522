"""Checkpoints without the weights that do not train: small, exact, and never silently wrong."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning import BTCheckpointIO, BTLightning, CheckpointMismatchError
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.session.frozen_base import FrozenBase
from bt_lightning.snapshot.base_table import BaseTable

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = pytest.mark.matrix

WIDTH = 256
FROZEN = {
    *(f"backbone.{layer}.weight" for layer in range(4)),
    *(f"backbone.{layer}.bias" for layer in (0, 1, 3)),
}
LARGE = {"backbone.2.weight", "backbone.3.weight"}
SAVE = {"every_n_train_steps": 4, "save_top_k": -1}
"""Resumes begin at an epoch's end: those inside one are exact with Lightning 2.6 only."""


@pytest.fixture(scope="module")
def tuned(runs: ModuleType) -> Any:
    class Tuned(runs.Net):
        """A head on a frozen backbone, which each start makes of its own seed."""

        def __init__(self, *args: Any, base: int = 5, freeze: bool = True, **more: Any) -> None:
            super().__init__(*args, **more)
            with torch.random.fork_rng():
                torch.manual_seed(base)
                self.backbone = torch.nn.Sequential(
                    torch.nn.Linear(8, WIDTH),
                    torch.nn.BatchNorm1d(WIDTH),
                    torch.nn.Linear(WIDTH, WIDTH, bias=False),
                    torch.nn.Linear(WIDTH, WIDTH),
                )
            self.backbone.requires_grad_(not freeze)
            head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(WIDTH, 1))
            self.net = torch.nn.Sequential(self.backbone, head)

        def configure_optimizers(self) -> Any:
            wanted = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(wanted, lr=self.lr)

    return Tuned


def size(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def stored(path: Path) -> set[str]:
    return set(BTCheckpointIO().load_checkpoint(path)["state_dict"])


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def bt(**more: Any) -> dict[str, Any]:
    return {"save_frozen": False, **more}


def test_disk_and_store_have_what_trains(runs: Any, tuned: Any, tmp_path: Path) -> None:
    whole = runs.fit(tmp_path / "whole", make=tuned, save=SAVE, max_epochs=1)
    store = tmp_path / "store"
    small = runs.fit(
        tmp_path / "small", make=tuned, save=SAVE, max_epochs=1, bt=bt(store=store.as_uri())
    )
    assert small.outcome == whole.outcome, "saving changed the training"
    (full,) = (tmp_path / "whole").glob("*-8")
    (part,) = (tmp_path / "small").glob("*-8")
    (sent,) = store.rglob("*-8")
    base = sum(p.nbytes for n, p in small.module.state_dict().items() if n in FROZEN)
    twice = 2 * base  # `backbone` and `net.0` are one
    names = stored(full) - stored(part)
    assert {name.replace("net.0.", "backbone.") for name in names} == FROZEN
    assert size(full) - size(part) > 0.98 * base
    assert size(part) < 60_000 < base < twice
    assert size(sent) == size(part)
    facts = read_manifest(part).origin["base"]
    assert (facts["tensors"], facts["size"]) == (len(names), twice)
    assert len(facts["digest"]) == 32
    assert "base" not in read_manifest(full).origin


def test_a_resumed_run_ends_as_the_uninterrupted_one(runs: Any, tuned: Any, tmp_path: Path) -> None:
    """Statistics of a frozen BatchNorm are no parameters: they change, and are stored."""
    whole = runs.fit(tmp_path / "whole", make=tuned, save=SAVE, bt=bt())
    for stop_at in (3, 9, 18):
        runs.fit(tmp_path / "run", seed=1, make=lambda at=stop_at: tuned(at), save=SAVE, bt=bt())
    again = runs.fit(tmp_path / "run", seed=1, make=tuned, save=SAVE, bt=bt())
    assert again.first_step == 16
    assert again.outcome == whole.outcome


def test_another_base_is_an_error_that_says_what_differs(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    runs.fit(tmp_path, make=lambda: tuned(9), save=SAVE, bt=bt())
    other = tuned(base=6)
    before = runs.digest(other.state_dict())
    with pytest.raises(CheckpointMismatchError) as caught:
        runs.fit(tmp_path, make=lambda: other, save=SAVE, bt=bt())
    said = str(caught.value)
    assert "other values (10): backbone.0.bias, backbone.0.weight, backbone.2.weight" in said
    assert "the same seed" in said
    assert runs.digest(other.state_dict()) == before, "something was applied"
    assert runs.fit(tmp_path, make=tuned, save=SAVE, bt=bt()).first_step == 8


def test_every_reader_gets_a_whole_model(runs: Any, tuned: Any, tmp_path: Path) -> None:
    """`test`, `load_from_checkpoint`, and a checkpoint of weights alone."""
    save = {**SAVE, "save_weights_only": True}
    run = runs.fit(tmp_path, make=tuned, save=save, bt=bt(), max_epochs=1)
    path = tmp_path / "checkpoint-8"
    loaded = tuned.load_from_checkpoint(path)
    assert set(loaded.state_dict()) == set(run.module.state_dict())
    weights = BTCheckpointIO().load_checkpoint(path)["state_dict"]
    assert same(loaded.state_dict(), weights.completed(run.module))
    with pytest.raises(CheckpointMismatchError, match="other values"):
        tuned.load_from_checkpoint(path, base=6)
    run.trainer.test(ckpt_path="best", dataloaders=runs.validation(), verbose=False)
    for more in ([BTLightning(dir=tmp_path)], []):
        tester = runs.trainer(tmp_path / "other", *more, plugins=[BTCheckpointIO()])
        module = tuned()
        tester.test(module, runs.validation(), ckpt_path=str(path), verbose=False)
        assert same(module.state_dict(), loaded.state_dict())


def test_what_is_unfrozen_is_stored_from_then_on(runs: Any, tuned: Any, tmp_path: Path) -> None:
    """Killed before, at and behind the epoch that unfreezes; each resume is exact."""
    from lightning.pytorch.callbacks import BackboneFinetuning

    def fit(root: Path, stop_at: int | None = None) -> Any:
        return runs.fit(
            root,
            BackboneFinetuning(1, lambda _: 1.5, 0.1, train_bn=False),
            make=lambda: tuned(stop_at, freeze=False),
            save={"every_n_epochs": 1, "save_top_k": -1},
            bt=bt(),
            max_epochs=4,
        )

    whole = fit(tmp_path / "whole")
    assert not LARGE & stored(tmp_path / "whole" / "checkpoint-8")
    assert stored(tmp_path / "whole" / "checkpoint-16") >= FROZEN
    for stop_at in (10, 17, 26):
        fit(tmp_path / "run", stop_at)
    again = fit(tmp_path / "run")
    assert again.first_step == 24
    assert again.outcome == whole.outcome


class Teacher:
    """Makes of `tuned` a module that averages its student into a teacher that does not train."""

    def __init__(self, tuned: Any, write: Any) -> None:
        class Distilled(tuned):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.student = torch.nn.Linear(WIDTH, WIDTH)
                self.teacher = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False)

            def loss(self, batch: Any) -> Any:
                hidden = self.backbone(batch)
                distance = (self.student(hidden) - self.teacher(hidden)).pow(2).mean()
                return super().loss(batch) + distance

            def on_train_batch_end(self, *_: Any) -> None:
                write(self.teacher.weight, self.student.weight)

        self.make = Distilled


def averaged(teacher: Any, student: Any) -> None:
    with torch.no_grad():
        teacher.mul_(0.9).add_(student, alpha=0.1)


def unseen(teacher: Any, student: Any) -> None:
    """As DINO and MoCo do: the version counter stays."""
    teacher.data.mul_(0.9).add_(student.data, alpha=0.1)


@pytest.mark.parametrize("write", [averaged, unseen])
def test_what_is_written_to_though_it_is_frozen_is_stored(
    runs: Any, tuned: Any, tmp_path: Path, write: Any
) -> None:
    made = Teacher(tuned, write).make
    whole = runs.fit(tmp_path / "whole", make=made, save=SAVE, bt=bt())
    every = [path for path in (tmp_path / "whole").iterdir() if "checkpoint-" in path.name]
    assert len(every) == 6
    assert all("teacher.weight" in stored(path) for path in every)
    assert not any(LARGE & stored(path) for path in every)
    runs.fit(tmp_path / "run", make=lambda: made(17), save=SAVE, bt=bt())
    again = runs.fit(tmp_path / "run", make=made, save=SAVE, bt=bt())
    assert again.first_step == 16
    assert again.outcome == whole.outcome


def test_a_save_that_would_lose_a_write_is_given_up(runs: Any, tuned: Any, tmp_path: Path) -> None:
    """A write that leaves no trace, between the look behind the first step and the last save."""

    class Late(tuned):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.global_step == 7:
                self.backbone[2].weight.data.mul_(0.5)

    save = {"every_n_train_steps": 8, "save_top_k": -1}
    with pytest.warns(UserWarning, match=r"given up: it left out weights .* backbone.2"):
        run = runs.fit(tmp_path, make=Late, save=save, bt=bt(), max_epochs=1)
    (found,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert found.name == "final-8", "the state of the end is lost"
    assert "backbone.2.weight" in stored(found)
    weights = BTCheckpointIO().load_checkpoint(found)["state_dict"].completed(run.module)
    assert same(weights, run.module.state_dict())


def test_a_base_may_be_stored_and_left_out_in_turn(runs: Any, tuned: Any, tmp_path: Path) -> None:
    whole = runs.fit(tmp_path / "whole", make=tuned, save=SAVE)
    for stop_at, frozen in ((9, True), (17, False), (17, True)):
        runs.fit(
            tmp_path / "run",
            make=lambda at=stop_at: tuned(at),
            save=SAVE,
            bt={"save_frozen": frozen},
        )
    assert [
        bool(FROZEN & stored(next((tmp_path / "run").glob(f"*-{step}")))) for step in (4, 8, 12, 16)
    ] == [True, True, False, False]
    again = runs.fit(tmp_path / "run", make=tuned, save=SAVE, bt=bt())
    assert again.outcome == whole.outcome


def test_a_small_head_is_stored_though_nobody_trains_it(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    """Drawn anew by each start, and by no seed: without it nothing could go on."""
    heads = []

    class WithHead(tuned):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.trained = torch.nn.Linear(WIDTH, WIDTH)
            self.head = torch.nn.Linear(WIDTH, 2).requires_grad_(requires_grad=False)
            with torch.random.fork_rng():
                torch.seed()
                self.head.weight.normal_()
            heads.append(self.head.weight)

    runs.fit(tmp_path, make=lambda: WithHead(9), save=SAVE, bt=bt())
    runs.fit(tmp_path, make=WithHead, save=SAVE, bt=bt())
    assert torch.equal(heads[0], heads[1])


def test_memory_that_something_trains_is_stored(runs: Any, tuned: Any, tmp_path: Path) -> None:
    """Two parameters on one storage, of which one is frozen; and a copy with other memory."""

    class Shared(tuned):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.seen = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            frozen = torch.nn.Parameter(self.seen.weight.data, requires_grad=False)
            self.register_parameter("alias", frozen)

        def loss(self, batch: Any) -> Any:
            return super().loss(batch) + self.seen(self.backbone(batch)).pow(2).mean()

        def on_save_checkpoint(self, checkpoint: Any) -> None:
            weights = checkpoint["state_dict"]
            weights["backbone.3.weight"] = weights["backbone.3.weight"] + 1

    run = runs.fit(tmp_path, make=Shared, save=SAVE, bt=bt(), max_epochs=1)
    weights = BTCheckpointIO().load_checkpoint(tmp_path / "checkpoint-8")["state_dict"]
    assert {"alias", "seen.weight", "backbone.3.weight"} <= set(weights)
    assert "backbone.2.weight" not in weights
    changed = weights["backbone.3.weight"] - run.module.backbone[3].weight
    assert torch.allclose(changed, torch.ones(()))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_precision_converts_the_base_as_well(
    runs: Any, tuned: Any, tmp_path: Path, precision: str
) -> None:
    def fit(root: Path, stop_at: int | None = None) -> Any:
        return runs.fit(
            root,
            make=lambda: Floats(stop_at),
            save=SAVE,
            bt=bt(),
            precision=precision,
            max_epochs=2,
        )

    class Floats(tuned):
        def loss(self, batch: Any) -> Any:
            return super().loss(batch.to(self.net[1][1].weight.dtype))

        def validation_step(self, batch: Any, index: int) -> None:
            return None

    whole = fit(tmp_path / "whole")
    assert not FROZEN & stored(next((tmp_path / "whole").glob("*-8")))
    fit(tmp_path / "run", 9)
    again = fit(tmp_path / "run")
    assert again.first_step == 8
    assert again.outcome == whole.outcome


def test_by_default_every_weight_is_stored(
    runs: Any, tuned: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bt_lightning"):
        runs.fit(tmp_path, make=tuned, save=SAVE, max_epochs=1)
    assert stored(tmp_path / "checkpoint-8") >= FROZEN
    assert "leave out" not in caplog.text


def test_a_save_outside_of_a_fit_looks_before_it_returns(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    run = runs.fit(tmp_path, make=tuned, save=SAVE, bt=bt(), max_epochs=1)
    run.module.backbone[2].weight.data.mul_(2)
    run.trainer.save_checkpoint(tmp_path / "later")
    weights = BTCheckpointIO().load_checkpoint(tmp_path / "later")["state_dict"]
    assert torch.equal(weights["backbone.2.weight"], run.module.backbone[2].weight)
    assert "backbone.3.weight" not in weights


def test_without_an_arena_too(runs: Any, tuned: Any, tmp_path: Path) -> None:
    whole = runs.fit(tmp_path / "whole", make=tuned, save=SAVE, bt=bt())
    with pytest.warns(UserWarning, match="not enough host memory"):
        runs.fit(tmp_path / "run", make=lambda: tuned(9), save=SAVE, bt=bt(arena_memory=0))
    assert not FROZEN & stored(tmp_path / "run" / "checkpoint-8")
    again = runs.fit(tmp_path / "run", make=tuned, save=SAVE, bt=bt())
    assert again.outcome == whole.outcome


def test_weights_of_another_job_are_begun_with(runs: Any, tuned: Any, tmp_path: Path) -> None:
    run = runs.fit(tmp_path / "a", make=tuned, save=SAVE, bt=bt(), max_epochs=1)
    warm = bt(resume="weights", load_dir=tmp_path / "a")
    module = tuned(0)
    runs.fit(tmp_path / "b", make=lambda: module, save=SAVE, bt=warm)
    weights = BTCheckpointIO().load_checkpoint(tmp_path / "a" / "checkpoint-8")["state_dict"]
    assert runs.digest(module.net[1][1].weight) == runs.digest(weights["net.1.1.weight"])
    assert run.module is not module


def test_a_loop_of_ones_own_leaves_out_its_base(tuned: Any, tmp_path: Path) -> None:
    from bt_lightning import Checkpointer

    def train(root: Path, until: int, base: int = 5) -> torch.nn.Module:
        torch.manual_seed(0)
        model = tuned(base=base)
        optimizer = model.configure_optimizers()
        with Checkpointer(root, save_frozen=False) as ck:
            state = ck.load_latest({"model": model, "optimizer": optimizer, "step": 0})
            while state["step"] < until:
                optimizer.zero_grad()
                model.net(torch.randn(4, 8)).pow(2).mean().backward()
                optimizer.step()
                state["step"] += 1
                ck.step()
                ck.save(state, state["step"])
        return model

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "run", 3)
    again = train(tmp_path / "run", 6)
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))
    assert not FROZEN & stored(tmp_path / "run" / "checkpoint-6")
    with pytest.raises(CheckpointMismatchError, match="other values"):
        train(tmp_path / "run", 9, base=6)


def test_a_part_may_be_missing_if_the_load_is_not_strict(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    """What is there must be that of the base still."""

    class Shorter(tuned):
        def __init__(self, base: int = 5) -> None:
            super().__init__(base=base)
            del self.backbone[3]

    run = runs.fit(tmp_path, make=tuned, save=SAVE, bt=bt(), max_epochs=1)
    path = tmp_path / "checkpoint-8"
    with pytest.raises(CheckpointMismatchError, match=r"not in the model \(4\): backbone.3"):
        Shorter.load_from_checkpoint(path)
    loaded = Shorter.load_from_checkpoint(path, strict=False)
    assert torch.equal(loaded.net[1][1].weight, run.module.net[1][1].weight)
    with pytest.raises(CheckpointMismatchError, match="other values"):
        Shorter.load_from_checkpoint(path, strict=False, base=6)


def test_a_loop_that_averages_loses_no_save(tuned: Any, tmp_path: Path) -> None:
    """What each step writes to without a trace is found behind the first one."""
    from bt_lightning import Checkpointer

    model = Teacher(tuned, unseen).make()
    optimizer = model.configure_optimizers()
    with Checkpointer(tmp_path, save_frozen=False) as ck:
        state = ck.load_latest({"model": model, "optimizer": optimizer, "step": 0})
        for step in range(1, 5):
            model.loss(torch.randn(4, 8)).backward()
            optimizer.step()
            model.on_train_batch_end()
            ck.step()
            if step == 1:
                wait_for_look(ck)
        ck.save(state, 4)
    weights = BTCheckpointIO().load_checkpoint(tmp_path / "checkpoint-4")["state_dict"]
    assert torch.equal(weights["teacher.weight"], model.teacher.weight)


def wait_for_look(ck: Any) -> None:
    until = time.monotonic() + 60
    while "teacher.weight" not in ck._writer.base._changed:
        assert time.monotonic() < until, "nobody looked"
        time.sleep(0.01)


def test_compiled_parts_are_left_out_and_averages_stored(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    """An average is another tensor, of which nothing says that it is the base."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    averaging = getattr(callbacks, "EMAWeightAveraging", None)

    class Compiled(tuned):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.net = torch.compile(self.net, backend="eager")

    def fit(root: Path, make: Any, *more: Any) -> Any:
        return runs.fit(root, *more, make=make, save=SAVE, bt=bt(), max_epochs=2)

    whole = fit(tmp_path / "whole", Compiled)
    assert not LARGE & stored(tmp_path / "whole" / "checkpoint-8")
    fit(tmp_path / "run", lambda: Compiled(9))
    again = fit(tmp_path / "run", Compiled)
    assert again.outcome == whole.outcome
    if averaging is not None:
        whole = fit(tmp_path / "whole-2", tuned, averaging())
        assert stored(tmp_path / "whole-2" / "checkpoint-8") >= FROZEN
        fit(tmp_path / "run-2", lambda: tuned(9), averaging())
        assert fit(tmp_path / "run-2", tuned, averaging()).outcome == whole.outcome


class Packed(torch.nn.Parameter):
    """As bitsandbytes has them: a parameter with a scale that only the state dictionary shows."""


class PackedLinear(torch.nn.Module):
    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        packed = (weight / self.scale).round().to(torch.int8)
        self.weight = Packed(packed, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ (self.weight.to(torch.float32) * self.scale).T

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.scale"] = self.scale.clone()


def test_what_is_quantised_is_left_out_with_its_scales(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    """Neither could be loaded: the module knows no such names. A scale that differs is found."""

    class Quantised(tuned):
        def __init__(self, *args: Any, factor: float = 1.0) -> None:
            super().__init__(*args)
            self.packed = PackedLinear(self.backbone[2])
            self.packed.scale *= factor
            self.net = torch.nn.Sequential(self.backbone[:2], self.packed, self.net[1])

    names = {"packed.weight", "packed.weight.scale", "net.1.weight", "net.1.weight.scale"}
    whole = runs.fit(tmp_path / "whole", make=Quantised, save=SAVE, bt=bt())
    assert not names & stored(tmp_path / "whole" / "checkpoint-8")
    assert names & set(whole.module.state_dict()) == names
    runs.fit(tmp_path / "run", make=lambda: Quantised(9), save=SAVE, bt=bt())
    with pytest.raises(CheckpointMismatchError, match=r"\(2\): net.1.weight.scale, packed.weight"):
        runs.fit(tmp_path / "run", make=lambda: Quantised(factor=2), save=SAVE, bt=bt())
    again = runs.fit(tmp_path / "run", make=Quantised, save=SAVE, bt=bt())
    assert again.first_step == 8
    assert again.outcome == whole.outcome


def test_the_command_line_says_what_is_left_out(
    runs: Any, tuned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bt_lightning.cli.app import main

    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["checkpoints", *map(str, words), "--dir", str(tmp_path / "run")])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    run = runs.fit(tmp_path / "run", make=tuned, save=SAVE, bt=bt(), max_epochs=1)
    code, out, _ = command("show", "checkpoint-8")
    assert (code, "14 frozen tensors of the base" in out) == (0, True)
    code, _, err = command(
        "export", "checkpoint-8", "--to", "ckpt", "--output", tmp_path / "c.ckpt"
    )
    assert (code, "Without the 14 frozen tensors" in err) == (0, True)
    weights = torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]
    module = tuned()
    module.load_state_dict(weights, strict=False)
    assert same(module.state_dict(), run.module.state_dict())
    code, _, err = command("export", "checkpoint-8", "--to", "hf", "--output", tmp_path / "hf")
    assert (code, "without their frozen base" in err) == (10, True)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"version":1}',
        b'{"version":2,"tensors":{}}',
        b'{"version":1,"tensors":{"w":["float32",[1,-1],"%032x"]}}' % 0,
        b'{"version":1,"tensors":{"w":["float32",[true],"%032x"]}}' % 0,
        b'{"version":1,"tensors":{"w":["nn",[1],"%032x"]}}' % 0,
        b'{"version":1,"tensors":{"w":["float32",[1],"x"]}}',
        b'{"version":1,"tensors":{"w":["float32",5,"%032x"]}}' % 0,
        b"[" * 1000,
        b'{"version":1,"tensors":' + b" " * 40_000_000,
    ],
)
def test_a_table_that_anybody_wrote_is_damage(content: bytes) -> None:
    with pytest.raises(CheckpointCorruptError):
        BaseTable.parse(content)


def test_a_table_comes_back(tuned: Any) -> None:
    base = FrozenBase(tuned(), save_frozen=False)
    table = BaseTable(base.tensors, "a/b")
    again = BaseTable.parse(table.content)
    assert (again, again.facts) == (table, table.facts)


def test_a_base_made_in_inference_mode_counts_no_writes(
    runs: Any, tuned: Any, tmp_path: Path
) -> None:
    class Made(tuned):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            with torch.inference_mode():
                seen = torch.full((WIDTH, WIDTH), 0.5)
            self.register_parameter("seen", torch.nn.Parameter(seen, requires_grad=False))

    run = runs.fit(tmp_path, make=Made, save=SAVE, bt=bt(), max_epochs=1)
    assert run.module.seen.is_inference()
    assert "seen" not in stored(tmp_path / "checkpoint-8")
