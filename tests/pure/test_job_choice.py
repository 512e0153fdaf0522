"""Which job of a store a new directory goes on with: the table of docs/design."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.fit_identity import FitIdentity
from bt_lightning.fit_ledger import FitRecord
from bt_lightning.job_choice import (
    JobChoice,
    PathJob,
    choose_job,
    made_name,
    name_of_path,
    path_of_made_name,
)
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.lease import EXPIRES_S, LEAVING_S, Holder, LeaseWatch

THIS = FitIdentity(
    model="net:1",
    hyperparameters={"lr": "a"},
    data="b",
    place="train",
    limits={"max_epochs": "3"},
    seed="1",
    program="c",
)


def job(name: str, *identities: FitIdentity, ended: int = 0) -> PathJob:
    """A job whose first `ended` fits have ended."""
    fits = [
        FitRecord(id=f"fit-{n}", identity=one, ended=n < ended) for n, one in enumerate(identities)
    ]
    return PathJob(name, fits)


OTHER = {
    "model": "net:2",
    "hyperparameters": {"lr": "z"},
    "data": "z",
    "place": "z",
    "seed": "2",
}


def test_the_one_job_that_did_not_end_and_trains_the_same_is_taken():
    others = [job("other", replace(THIS, model="net:2")), job("done", THIS, ended=1)]
    assert choose_job(THIS, [*others, job("own", THIS)]) == JobChoice("own")


@pytest.mark.parametrize("change", [{"program": "z"}, {"limits": {"max_epochs": "9"}}])
def test_an_edited_script_finds_its_job(change):
    assert choose_job(THIS, [job("own", replace(THIS, **change))]) == JobChoice("own")


@pytest.mark.parametrize("entry", OTHER)
def test_whatever_else_differs_is_another_machine_s(entry):
    near = job("near", replace(THIS, **{entry: OTHER[entry]}))
    assert choose_job(THIS, [near]) == JobChoice(None, ("near",))


def test_what_is_not_known_is_never_taken():
    assert choose_job(THIS, [job("old", FitIdentity())]) == JobChoice(None, ("old",))
    assert choose_job(FitIdentity(), [job("own", THIS)]) == JobChoice(None, ("own",))


def test_a_job_is_found_by_any_of_its_fits():
    fold = replace(THIS, data="fold 2")
    assert choose_job(THIS, [job("own", THIS, fold, ended=1)]) == JobChoice("own")


def test_of_two_none_is_taken_and_both_are_said():
    assert choose_job(THIS, [job("a", THIS), job("b", THIS)]) == JobChoice(None, ("a", "b"))


def test_a_job_that_ended_is_not_even_said():
    assert choose_job(THIS, [job("done", THIS, ended=1), job("empty")]) == JobChoice(None)


@given(st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & {*name}))
def test_a_name_that_was_made_is_one_part_of_a_path_and_tells_of_which_it_was_made(name):
    of_path = name_of_path(b"/data/" + name)
    made = made_name(of_path, "20300102-030405", "0a1b2c3d")
    assert path_of_made_name(made) == of_path
    assert job_prefix("p", made, 0).split("/")[3] == made


@pytest.mark.parametrize("name", ["gvpql31", "ck-0a1b2c3d", "night-20300102-030405-0a1b2c3d"])
def test_a_name_that_somebody_gave_or_that_is_older_was_not_made(name):
    assert path_of_made_name(name) is None


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


ELSEWHERE = replace(Holder.here("d"), machine="another")


def test_a_lease_that_nobody_holds_or_whose_holder_is_gone_is_free(clock):
    gone = replace(Holder.here("d"), started="1")
    assert LeaseWatch(clock).is_held(0, None) is False
    assert LeaseWatch(clock).is_held(3, gone.to_bytes()) is False


def test_a_lease_of_another_machine_is_free_when_it_has_run_out(clock):
    watch = LeaseWatch(clock)
    assert watch.is_held(3, ELSEWHERE.to_bytes()) is None
    clock.now = EXPIRES_S - 1
    assert watch.is_held(3, ELSEWHERE.to_bytes()) is None
    clock.now = EXPIRES_S
    assert watch.is_held(3, ELSEWHERE.to_bytes()) is False


def test_a_lease_that_beats_is_held(clock):
    watch = LeaseWatch(clock)
    assert watch.is_held(3, ELSEWHERE.to_bytes()) is None
    clock.now = 20.0
    assert watch.is_held(3, replace(ELSEWHERE, beat=1).to_bytes()) is True


def test_a_holder_on_this_machine_has_a_moment_to_end(clock):
    watch, here = LeaseWatch(clock), Holder.here("d").to_bytes()
    assert watch.is_held(3, here) is None
    clock.now = LEAVING_S / 2
    assert watch.is_held(3, here) is None
    clock.now = LEAVING_S
    assert watch.is_held(3, here) is True
    assert watch.is_held(0, None) is False, "it may end at last"
