"""Which of a job's fits a fit is: the table of docs/design, and any order of skips and kills."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.fit_choice import FitChoice, Process, choose_fit
from bt_lightning.fit_identity import FitIdentity
from bt_lightning.fit_ledger import (
    FitRecord,
    check_fit_name,
    merged,
    named,
    new_fit,
    read_ledger,
)

BASE = FitIdentity(
    model="Net 1",
    hyperparameters={"lr": "a", "width": "b"},
    data="d0",
    writes="",
    place="train.py:main:trainer.fit(model) 1",
    limits={"max_epochs": "3", "max_steps": "-1"},
    seed="1",
    program="p0",
)
NONE = Process()


def fit(name: str = "", *, ended: bool = False, **differs: object) -> FitRecord:
    identity = replace(BASE, **differs)
    return FitRecord(
        id=name, name=name, folder=name, identity=identity, ended=ended, end_step=24, closed=ended
    )


def chosen(choice: FitChoice) -> str | None:
    return None if choice.record is None else choice.record.id


LR = {"hyperparameters": {"lr": "z", "width": "b"}}
STAGE_2 = {"place": "train.py:main:stage2.fit(model) 2", "limits": {"max_steps": "24"}}

CASES = {
    "the first fit of a job": (BASE, (), None),
    "killed, started again": (BASE, (fit(),), ""),
    "ended, started again": (BASE, (fit(ended=True),), ""),
    "trained on, the same script": (
        replace(BASE, limits={"max_epochs": "9"}),
        (fit(ended=True),),
        "",
    ),
    "another fold, the ones before ended": (
        replace(BASE, data="d2"),
        (fit(ended=True), fit("fit-2", data="d1", ended=True)),
        None,
    ),
    "the fold that was killed, the ones before skipped": (
        replace(BASE, data="d2"),
        (fit(ended=True), fit("fit-2", data="d1", ended=True), fit("fit-3", data="d2")),
        "fit-3",
    ),
    "folds that nothing tells apart": (
        replace(BASE, data=""),
        (fit(data="", ended=True), fit("fit-2", data="")),
        None,
    ),
    "stage 2, stage 1 ended": (replace(BASE, **STAGE_2), (fit(ended=True),), None),
    "stage 2, stage 1 was killed after it wrote its file": (
        replace(BASE, **STAGE_2),
        (fit(),),
        None,
    ),
    "stage 2 was killed": (
        replace(BASE, **STAGE_2),
        (fit(ended=True), fit("fit-2", **STAGE_2)),
        "fit-2",
    ),
    "another trial of a search, the first one was killed": (replace(BASE, **LR), (fit(),), None),
    "an edited script, with another rate": (
        replace(BASE, **LR, program="p1"),
        (fit(),),
        "",
    ),
    "an edited script, with another rate, the fit had ended": (
        replace(BASE, **LR, program="p1"),
        (fit(ended=True),),
        None,
    ),
    "a script that was edited elsewhere and trains on": (
        replace(BASE, place="x", program="p1", limits={"max_epochs": "9"}),
        (fit(ended=True),),
        "",
    ),
    "data that are made anew at each start": (replace(BASE, data="d9"), (fit(),), ""),
    "the same, and the fit had ended": (replace(BASE, data="d9"), (fit(ended=True),), None),
    "another size of the model, the first trial of a search was killed": (
        replace(BASE, model="Net 2"),
        (fit(),),
        None,
    ),
    "an edited model": (replace(BASE, model="Net 2", program="p1"), (fit(),), ""),
    "a member of an ensemble, the one before ended": (
        replace(BASE, seed="2"),
        (fit(ended=True),),
        None,
    ),
    "another seed on the command line, the fit had ended": (
        replace(BASE, seed="2", program="p1"),
        (fit(ended=True),),
        "",
    ),
    "another seed at each start, killed while the ended fit was still published": (
        replace(BASE, seed="2"),
        (replace(fit(ended=True), closed=False),),
        "",
    ),
    "the member of an ensemble that was killed": (
        replace(BASE, seed="2"),
        (fit(ended=True), fit("fit-2", seed="2")),
        "fit-2",
    ),
    "another seed, the fit was killed": (replace(BASE, seed="2"), (fit(),), ""),
    "no seed in the script": (replace(BASE, seed=""), (fit(ended=True),), ""),
    "one Trainer, killed in its second fit: the first again": (
        BASE,
        (fit(ended=True), fit("fit-2", limits={"max_epochs": "6"})),
        "",
    ),
    "checkpoints of a version without identities": (
        BASE,
        (FitRecord(id=""),),
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_cases(case: str) -> None:
    identity, records, right = CASES[case]
    assert chosen(choose_fit(identity, records, NONE)) == right


def test_no_other_fit_of_a_process_is_one_that_it_has_had() -> None:
    assert chosen(choose_fit(BASE, (fit(ended=True),), Process(ended={""}))) is None


def test_a_fit_that_failed_is_tried_again_from_another_line() -> None:
    again = replace(BASE, place="train.py:main:retry.fit(model) 9")
    assert chosen(choose_fit(again, (fit(),), Process(failed={""}))) == ""
    assert chosen(choose_fit(again, (fit(),), NONE)) is None


def test_a_name_decides_whatever_differs() -> None:
    records = (fit(), fit("fold-2", data="d9"))
    assert chosen(choose_fit(BASE, records, NONE, "fold-2")) == "fold-2"
    assert chosen(choose_fit(BASE, (fit("fold-2"),), NONE, "fold-3")) is None


def test_a_name_that_is_given_later_is_of_the_fit_that_it_describes() -> None:
    choice = choose_fit(BASE, (fit(),), NONE, "main")
    assert choice.record is not None
    assert named(choice.record, "main") == replace(fit(), name="main")


def test_a_doubt_says_what_differs_and_a_clear_case_says_nothing() -> None:
    doubt = choose_fit(replace(BASE, **LR), (fit(),), NONE)
    assert doubt.differs == ("hyperparameters.lr",)
    assert "hyperparameters.lr" in doubt.doubt
    assert not choose_fit(replace(BASE, data="d2"), (fit(ended=True),), NONE).doubt
    goes_on = choose_fit(replace(BASE, **LR, program="p1"), (fit(),), NONE)
    assert goes_on.differs == ("hyperparameters.lr",)


@dataclass
class Job:
    """Scripts that fit some identities in order, are killed, and start again."""

    ledger: tuple[FitRecord, ...] = ()
    trained: dict[str, FitIdentity] = field(default_factory=dict)
    """Folder -> what was trained there."""
    complete: list[FitIdentity] = field(default_factory=list)

    def run(self, fits: list[FitIdentity], skip: bool, kill_in: int) -> None:
        ended: set[str] = set()
        for number, identity in enumerate(fits):
            if skip and identity in self.complete:
                continue
            choice = choose_fit(identity, self.ledger, Process(ended=ended))
            record = choice.record or new_fit("", identity, self.ledger)
            ended.add(record.id)
            if choice.record is None:
                self.ledger = (*self.ledger, record)
            was = self.trained.setdefault(record.id, identity)
            assert was == identity, "a fit went on with what another one had trained"
            if number == kill_in:
                return
            done = replace(record, ended=True, closed=True)
            self.ledger = tuple(done if r.id == done.id else r for r in self.ledger)
            self.complete.append(identity)


different = st.lists(
    st.builds(
        lambda data, lr, place, seed: replace(
            BASE, data=data, hyperparameters={"lr": lr}, place=place, seed=seed
        ),
        st.sampled_from(["d0", "d1", "d2"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["one", "two"]),
        st.sampled_from(["1", "2"]),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda one: repr(one.to_json()),
)


@given(different, st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=4))
def test_no_fit_goes_on_with_another_ones_state(
    fits: list[FitIdentity], starts: list[tuple[bool, int]]
) -> None:
    job = Job()
    for skip, kill_in in starts:
        job.run(fits, skip, kill_in)
    job.run(fits, skip=True, kill_in=-1)
    assert {repr(one.to_json()) for one in job.complete} == {repr(f.to_json()) for f in fits}


@given(different, st.integers(0, 4))
def test_a_fit_that_was_killed_goes_on_where_it_was(fits: list[FitIdentity], killed: int) -> None:
    """Where each fit differs in more than its seed and its data, none begins twice."""
    told = [replace(one, hyperparameters={"n": str(n)}) for n, one in enumerate(fits)]
    job = Job()
    job.run(told, skip=True, kill_in=killed)
    job.run(told, skip=True, kill_in=-1)
    assert len(job.ledger) == len(told)


def test_a_ledger_comes_back_and_leaves_out_what_is_no_line_of_it() -> None:
    one, two = fit(), fit("fold-2", data="d1")
    lines = [one.began(), b'{"fit": "x"', b"[]\n", two.began(), one.at_end(24), b"\xff\n"]
    ended = replace(one, ended=True, end_step=24)
    assert read_ledger(lines) == (ended, replace(two, end_step=0))
    lines.append(one.at_close())
    assert read_ledger(lines) == (replace(ended, closed=True), replace(two, end_step=0))


@pytest.mark.parametrize(
    "line",
    [
        {"fit": "../x", "name": "", "folder": "", "identity": {}},
        {"fit": "x", "name": "", "folder": ".x", "identity": {}},
        {"fit": "x", "name": "", "folder": "a/b", "identity": {}},
        {"fit": "x", "name": "", "folder": "x", "identity": {"hyperparameters": [1]}},
        {"fit": "x", "ended": 3},
        {"fit": "x", "ended": -3},
        {"fit": 3, "name": "", "folder": "x", "identity": {}},
        {"fit": "x", "folder": "x"},
    ],
)
def test_a_ledger_of_somebody_else_names_no_folder_outside(line: dict[str, object]) -> None:
    import json

    assert read_ledger([json.dumps(line).encode()]) == ()


def test_ledgers_of_disk_and_store_are_one() -> None:
    disk, store = fit(), replace(fit(), ended=True)
    assert merged([disk], [store, fit("fit-2")]) == (disk, fit("fit-2"))


def test_names_of_fits() -> None:
    assert new_fit("", BASE, ()).folder == ""
    assert new_fit("main", BASE, ()) == FitRecord(id="main", name="main", identity=BASE)
    assert new_fit("", BASE, [fit()]).folder == "fit-2"
    assert new_fit("", BASE, [fit(), fit("fit-3")]).folder == "fit-4"
    assert new_fit("", BASE, [fit()], folder="").folder == "", "a Trainer goes on where it saves"
    assert check_fit_name("fold-2") == "fold-2"
    for bad in ("", ".x", "a/b", "../a", "x" * 101, "a b"):
        with pytest.raises(InvalidSettingError, match="fit_name"):
            check_fit_name(bad)


def test_an_identity_comes_back_and_rubbish_is_refused() -> None:
    assert FitIdentity.from_json(BASE.to_json()) == BASE
    assert FitIdentity.from_json({}) == FitIdentity()
    assert FitIdentity().differences(BASE) == ()
    for bad in ([], {"model": 3}, {"limits": {"a": 1}}, {"data": "x" * 1000}):
        with pytest.raises(CheckpointCorruptError):
            FitIdentity.from_json(bad)
