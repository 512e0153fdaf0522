"""What trainings keep: optimizers, schedulers, scalers, loaders, models."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from state_tools import returns_the_same, round_trip, same

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
)
SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 1, 3]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 10},
    "ReduceLROnPlateau": {},
}


def _model(sparse=False):
    torch.manual_seed(1)
    if sparse:
        return torch.nn.Embedding(5, 3, sparse=True)
    return torch.nn.Linear(3, 4, bias=False)


def _step(model, optimizer, sparse):
    given = torch.tensor([0, 2]) if sparse else torch.arange(6.0).reshape(2, 3)

    def closure():
        optimizer.zero_grad()
        loss = model(given).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_state_as_if_nothing_had_been(name, place):
    sparse = name == "SparseAdam"
    kind = getattr(torch.optim, name)
    model = _model(sparse)
    optimizer = kind(model.parameters(), lr=0.01)
    for _ in range(2):
        _step(model, optimizer, sparse)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    back = round_trip(state, place)
    same(state, back)
    other = _model(sparse)
    other.load_state_dict(back["model"])
    resumed = kind(other.parameters(), lr=0.5)
    resumed.load_state_dict(back["optimizer"])
    _step(model, optimizer, sparse)
    _step(other, resumed, sparse)
    same(dict(model.state_dict()), dict(other.state_dict()))


def test_an_optimizer_with_tensors_for_settings_comes_back(place):
    model = _model()
    optimizer = torch.optim.Adam(
        [{"params": model.parameters(), "lr": torch.tensor(0.1)}], amsgrad=True, capturable=False
    )
    _step(model, optimizer, sparse=False)
    returns_the_same(optimizer.state_dict(), place)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_comes_back(name, place):
    optimizer = torch.optim.SGD(_model().parameters(), lr=0.1, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULERS[name])
    optimizer.step()
    scheduler.step(*([0.5] if name == "ReduceLROnPlateau" else []))
    returns_the_same(scheduler.state_dict(), place)


def test_schedulers_of_schedulers_come_back(place):
    optimizer = torch.optim.SGD(_model().parameters(), lr=0.1)
    lr = torch.optim.lr_scheduler
    parts = [lr.ConstantLR(optimizer), lr.ExponentialLR(optimizer, 0.9)]
    sequence = lr.SequentialLR(optimizer, parts, milestones=[2])
    chain = lr.ChainedScheduler([lr.ConstantLR(optimizer), lr.StepLR(optimizer, 2)])
    returns_the_same([sequence.state_dict(), chain.state_dict()], place)


def test_the_scaler_of_mixed_precision_comes_back(place):
    scaler = torch.amp.GradScaler("cpu")
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    returns_the_same(scaler.state_dict(), place)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_stateful_data_loader_comes_back(place):
    pytest.importorskip("torchdata")
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(list(range(20)), batch_size=2, shuffle=True)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = [batch.tolist() for batch in batches]
    back = round_trip(state, place)
    same(state, back)
    other = StatefulDataLoader(list(range(20)), batch_size=2, shuffle=True)
    other.load_state_dict(back)
    assert [batch.tolist() for batch in other] == rest


def test_the_state_of_random_generators_comes_back(place):
    state = {
        "python": random.getstate(),
        "numpy": np.random.RandomState(3).get_state(),
        "numpy's new kind": np.random.default_rng(4).bit_generator.state,
        "torch": torch.get_rng_state(),
    }
    back = round_trip(state, place)
    same(state, back)
    random.setstate(back["python"])


def test_a_state_dict_keeps_the_versions_of_its_modules(place):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    assert state._metadata
    back = round_trip(state, place)
    same(state, back)
    assert back._metadata["1"] == {"version": 2}


def test_a_model_with_tied_weights_has_them_tied_after_a_load(place):
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5)})
    model["head"].weight = model["embed"].weight
    back = round_trip(model.state_dict(), place)
    same(model.state_dict(), back)
    assert back["embed.weight"] is back["head.weight"]
