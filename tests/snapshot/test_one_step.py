"""Invariant 3: every byte of a snapshot belongs to one step, whatever the timing."""

from __future__ import annotations

import random

import pytest
import torch

from bt_lightning.errors import TornSnapshotError
from bt_lightning.snapshot.optimizer_guard import OptimizerGuard

pytestmark = pytest.mark.matrix

MAKERS = {
    "foreach": lambda weights: torch.optim.SGD(weights, lr=1.0, momentum=0.5, foreach=True),
    "fused": lambda weights: torch.optim.SGD(weights, lr=1.0, momentum=0.5, fused=True),
    "plain": lambda weights: torch.optim.SGD(weights, lr=1.0, momentum=0.5, foreach=False),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1.0, betas=(0.5, 0.5)),
}


@pytest.fixture
def state_of():
    """What a snapshot must hold, by name."""

    def values(checkpoint):
        flat = {}
        flat.update({name: t.clone() for name, t in checkpoint["state_dict"].items()})
        for index, optimizer in enumerate(checkpoint["optimizer_states"]):
            for key, state in optimizer["state"].items():
                for name, value in state.items():
                    if isinstance(value, torch.Tensor):
                        flat[f"optimizer_states.{index}.state.{key}.{name}"] = value.clone()
        return flat

    return values


inductor = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
"""What torch says of itself when the first optimizer step is compiled."""


def train_step(optimizer, module, *, closure):
    """Forward, backward and update, as automatic (closure) or manual optimization does it."""

    def forward_and_backward():
        module(torch.zeros(1))
        for weight in module.parameters():
            weight.grad = torch.full_like(weight, -random.random())
        return 0.0

    if closure:
        optimizer.step(closure=forward_and_backward)
    else:
        forward_and_backward()
        optimizer.step()


@pytest.mark.thorough
@pytest.mark.parametrize("snapshot", ["lazy", "eager"])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_snapshot_is_of_one_step(saving, counting, state_of, checkpoint_of, snapshot, kind):
    """8 x 63 of them; the wanted bytes are cloned at the save, unwanted steps follow at once."""
    optimizer = MAKERS[kind](counting.parameters())
    saver = saving([optimizer], snapshot=snapshot)
    chance = random.Random(5)
    train_step(optimizer, counting, closure=True)
    for number in range(63):
        for _ in range(chance.randint(0, 2)):
            train_step(optimizer, counting, closure=chance.random() < 0.5)
        checkpoint = checkpoint_of(counting, [optimizer], number)
        wanted = state_of(checkpoint)
        record = saver.save(checkpoint, "checkpoint-1")
        for _ in range(chance.randint(0, 3)):
            train_step(optimizer, counting, closure=chance.random() < 0.5)
        ((ended, manifest),) = saver.outcomes()
        assert ended is record
        assert manifest.step == number, manifest
        found = saver.tensors("checkpoint-1")
        for name, value in wanted.items():
            at = name if name in found else f"state_dict.{name}"
            assert torch.equal(found[at], value), f"{name} of save {number} is of another step"


def test_a_write_to_a_weight_while_it_is_copied_is_found_and_the_save_refused(
    saving, counting, checkpoint_of, slow_copies
):
    """As a hook would do it. The one before stays, and the next one is whole again."""
    optimizer = MAKERS["plain"](counting.parameters())
    train_step(optimizer, counting, closure=True)
    saver = saving([optimizer], snapshot="lazy")
    saver.save(checkpoint_of(counting, [optimizer], 1), "checkpoint-1")
    saver.outcomes()
    train_step(optimizer, counting, closure=True)
    with slow_copies():
        saver.save(checkpoint_of(counting, [optimizer], 2), "checkpoint-2")
        with torch.no_grad():
            counting.weights[0].mul_(2)
    ((_, error),) = saver.outcomes()
    assert isinstance(error, TornSnapshotError)
    assert "checkpoint-2" in str(error)
    assert "eager" in str(error)
    assert {path.name for path in saver.root.glob("checkpoint-*")} == {"checkpoint-1"}
    saver.save(checkpoint_of(counting, [optimizer], 3), "checkpoint-3")
    ((_, manifest),) = saver.outcomes()
    assert manifest.step == 3


def test_a_write_through_data_escapes_a_lazy_snapshot_and_no_eager_one(
    saving, counting, checkpoint_of, slow_copies
):
    """The limit that docs/guides/tuning.md names, and what is offered instead."""
    optimizer = MAKERS["plain"](counting.parameters())
    train_step(optimizer, counting, closure=True)
    saver = saving([optimizer], snapshot="lazy")
    for lazy, kept in ((True, False), (False, True)):
        saver.saver.lazy = lazy
        before = counting.weights[0].detach().clone()
        with slow_copies():
            saver.save(checkpoint_of(counting, [optimizer], 1), "checkpoint-1")
            counting.weights[0].data.mul_(2)
        saver.outcomes()
        found = saver.tensors("checkpoint-1")["weights.0"]
        assert torch.equal(found, before) == kept


def test_what_forward_changes_is_copied_before_the_save_returns(
    saving, counting, checkpoint_of, slow_copies
):
    optimizer = MAKERS["plain"](counting.parameters())
    train_step(optimizer, counting, closure=True)
    saver = saving([optimizer], snapshot="lazy")
    with slow_copies():
        saver.save(checkpoint_of(counting, [optimizer], 1), "checkpoint-1")
        before = counting.seen.clone()
        counting(torch.zeros(1))
        torch.rand(3)
    saver.outcomes()
    assert torch.equal(saver.tensors("checkpoint-1")["seen"], before)


class Sharpness(torch.optim.SGD):
    """Changes the weights before it calls the closure, as SAM does."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.add_(1.0)
        closure()
        return super().step()


class Patient(torch.optim.SGD):
    """Calls the closure first, as optimizers should."""

    def step(self, closure=None):
        closure()
        return super().step()


@pytest.mark.parametrize("kind", [Sharpness, Patient])
def test_an_unknown_optimizer_is_watched_before_it_is_let_in(
    saving, counting, checkpoint_of, slow_copies, kind
):
    optimizer = kind(counting.parameters(), lr=1.0)
    saver = saving([optimizer], snapshot="lazy")
    order = []
    for number in range(3):
        checkpoint = checkpoint_of(counting, [optimizer], number)
        wanted = [weight.detach().clone() for weight in counting.weights]
        with slow_copies() as release:
            saver.save(checkpoint, "checkpoint-1")
            if number == 2 and kind is Patient:
                order.append("held")

                def closure():
                    order.append("forward")
                    release()
            else:
                release()

                def closure():
                    module_grads(counting)

            optimizer.step(closure=closure)
        ((_, manifest),) = saver.outcomes()
        assert manifest.step == number
        found = saver.tensors("checkpoint-1")
        for index, weight in enumerate(wanted):
            assert torch.equal(found[f"weights.{index}"], weight)
    if kind is Patient:
        assert order == ["held", "forward"], "the step was held back before its forward"


def module_grads(module):
    for weight in module.parameters():
        weight.grad = torch.full_like(weight, -1.0)


def test_an_lbfgs_step_which_calls_its_closure_many_times_changes_nothing_too_early(
    saving, checkpoint_of
):
    module = torch.nn.Linear(300, 300)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=4)
    saver = saving([optimizer], snapshot="lazy")

    def closure():
        optimizer.zero_grad()
        loss = module(torch.ones(4, 300)).pow(2).sum()
        loss.backward()
        return loss

    for number in range(6):
        checkpoint = checkpoint_of(module, [optimizer], number)
        wanted = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
        saver.save(checkpoint, "checkpoint-1")
        optimizer.step(closure)
        ((_, manifest),) = saver.outcomes()
        assert manifest.step == number
        found = saver.tensors("checkpoint-1")
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


@inductor
def test_a_compiled_optimizer_step_is_held_back(saving, counting, checkpoint_of, slow_copies):
    """The copy has not begun when the step is called, and begins while the step is held."""
    torch._dynamo.reset()
    optimizer = MAKERS["foreach"](counting.parameters())
    module_grads(counting)
    step = torch.compile(optimizer.step, backend="eager")
    step()
    saver = saving([optimizer], snapshot="lazy")
    settle = saver.saver.finish_copy
    for number in range(3):
        checkpoint = checkpoint_of(counting, [optimizer], number)
        wanted = [weight.detach().clone() for weight in counting.weights]
        with slow_copies() as release:
            saver.save(checkpoint, "checkpoint-1")

            def held():
                release()
                settle()

            saver.saver.finish_copy = held
            step()
        ((_, manifest),) = saver.outcomes()
        assert manifest.step == number
        found = saver.tensors("checkpoint-1")
        for index, weight in enumerate(wanted):
            assert torch.equal(found[f"weights.{index}"], weight)
            assert not torch.equal(counting.weights[index], weight)


@inductor
def test_the_guard_is_no_part_of_a_compiled_step(counting):
    """What is traced takes effect when its graph has run: here, after the update."""
    torch._dynamo.reset()
    optimizer = MAKERS["foreach"](counting.parameters())
    module_grads(counting)
    compiling = []
    guard = OptimizerGuard(lambda: compiling.append(torch.compiler.is_compiling()))
    try:
        torch.compile(optimizer.step, backend="eager")()
    finally:
        guard.close()
    assert compiling == [False]
