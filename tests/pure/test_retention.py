"""Invariant 4: nothing goes before something newer that stays is there; pins never go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning import retention
from bt_lightning.removal_requester import Requester
from bt_lightning.retention import (
    POLICY,
    Decision,
    FirstOf,
    KeepBest,
    KeepEvery,
    KeepLatest,
    Tier,
    TierCheckpoint,
    evictable,
    places_decided,
    publishable,
    retention_policy,
)

relaxed = settings(deadline=None, database=None, max_examples=300)
TRAINING, PERSON = Requester.TRAINING, Requester.PERSON


def removable(tier, requested, pinned, policy=POLICY, by=TRAINING):
    """What may go from a store."""
    requests = dict.fromkeys(requested, by)
    whole = Tier(name="store", checkpoints=tier, requests=requests, resumed_from=pinned)
    return retention.removable(whole, policy)


def committed(name: str, step: int, digest: str = "", generation: int = 1, place: str = ""):
    return TierCheckpoint(
        place=place or f"{name}@{generation}",
        checkpoint_id=name,
        digest=digest or f"{name}@{generation}",
        order=(step, generation, ""),
    )


@st.composite
def tiers(draw):
    """One tier: few ids and steps, so that ties, generations and copies are common."""
    count = draw(st.integers(0, 8))
    return [
        TierCheckpoint(
            place=f"place-{index}",
            checkpoint_id=draw(st.sampled_from("abc")),
            digest=draw(st.sampled_from(["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7"])),
            order=(draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.sampled_from("xy"))),
            interim=draw(st.booleans()),
        )
        for index in range(count)
    ]


def overtaken(tier) -> set[str]:
    """Places of interim checkpoints that are not the newest."""
    return {e.place for e in tier if e.interim and any(o.order > e.order for o in tier)}


digest_sets = st.sets(st.sampled_from(["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "other"]))


@relaxed
@given(tiers(), digest_sets, digest_sets)
def test_the_newest_of_a_tier_never_goes(tier, requested, pinned):
    gone = removable(tier, requested, pinned)
    if tier:
        newest = max(entry.order for entry in tier)
        assert all(entry.order < newest for entry in gone)


@relaxed
@given(tiers(), digest_sets, digest_sets)
def test_what_goes_leaves_something_newer_that_nobody_wants_gone(tier, requested, pinned):
    gone = removable(tier, requested, pinned)
    kept = [entry for entry in tier if entry not in gone]
    wanted = [e for e in kept if e.digest not in requested and e.place not in overtaken(tier)]
    stays = [entry for entry in kept if entry.digest in pinned or entry in wanted]
    for entry in gone:
        assert any(other.order > entry.order for other in stays)


@relaxed
@given(tiers(), digest_sets, digest_sets)
def test_a_pinned_checkpoint_never_goes(tier, requested, pinned):
    assert not {entry.digest for entry in removable(tier, requested, pinned)} & pinned


@relaxed
@given(tiers(), digest_sets, digest_sets)
def test_only_what_was_requested_or_overtaken_or_has_a_newer_generation_goes(
    tier, requested, pinned
):
    for entry in removable(tier, requested, pinned):
        newer = [
            o for o in tier if o.checkpoint_id == entry.checkpoint_id and o.order > entry.order
        ]
        assert entry.digest in requested or entry.place in overtaken(tier) or newer


@relaxed
@given(tiers(), digest_sets, digest_sets)
def test_everything_that_may_go_goes_oldest_first_and_once(tier, requested, pinned):
    """Liveness: a rule that never deletes would keep all the safety above and fill disks."""
    gone = removable(tier, requested, pinned)
    assert [entry.order for entry in gone] == sorted(entry.order for entry in gone)
    assert len({entry.place for entry in gone}) == len(gone)
    superseded = {
        entry.place
        for entry in tier
        if any(o.checkpoint_id == entry.checkpoint_id and o.order > entry.order for o in tier)
    }
    unwanted = [
        entry
        for entry in tier
        if entry.digest not in pinned
        and (entry.digest in requested or entry.place in superseded | overtaken(tier))
    ]
    stays = [entry.order for entry in tier if entry not in unwanted]
    expected = {entry.place for entry in unwanted if any(order > entry.order for order in stays)}
    assert {entry.place for entry in gone} == expected


@relaxed
@given(tiers(), digest_sets, digest_sets, st.data())
def test_a_death_between_two_deletions_changes_nothing_about_the_rest(
    tier, requested, pinned, data
):
    gone = removable(tier, requested, pinned)
    done = data.draw(st.integers(0, len(gone)))
    rest = [entry for entry in tier if entry not in gone[:done]]
    again = removable(rest, requested, pinned)
    assert {entry.place for entry in again} <= {entry.place for entry in gone}
    assert not removable([e for e in rest if e not in again], requested, pinned)


@relaxed
@given(tiers(), digest_sets, digest_sets, st.randoms(use_true_random=False))
def test_the_order_of_a_listing_changes_nothing(tier, requested, pinned, random):
    shuffled = list(tier)
    random.shuffle(shuffled)
    expected = {entry.place for entry in removable(tier, requested, pinned)}
    assert {entry.place for entry in removable(shuffled, requested, pinned)} == expected


def test_a_requested_checkpoint_stays_while_it_is_the_only_one():
    assert removable([committed("a", 1)], {"a@1"}, ()) == []


def test_a_requested_checkpoint_stays_while_all_newer_ones_are_requested_too():
    tier = [committed("a", 1), committed("b", 2)]
    assert removable(tier, {"a@1", "b@1"}, ()) == []


def test_a_requested_checkpoint_goes_when_a_newer_one_stays():
    tier = [committed("b", 2), committed("a", 1)]
    assert removable(tier, {"a@1"}, ()) == [tier[1]]


def test_an_older_generation_goes_when_the_newer_is_there():
    old, new = committed("a", 5, generation=1), committed("a", 5, generation=2)
    assert removable([new, old], (), ()) == [old]


def test_an_older_generation_stays_while_the_newer_one_is_itself_to_go():
    old, new = committed("a", 5, generation=1), committed("a", 5, generation=2)
    assert removable([new, old], {new.digest}, ()) == []


def test_a_checkpoint_of_a_later_step_is_not_deleted_for_a_newer_one_that_stands_before_it():
    """After a resume from an earlier step, steps start low again: the greater step is the newer."""
    late, early = committed("late", 100), committed("early", 10)
    assert removable([late, early], {late.digest}, ()) == []


def test_a_pinned_checkpoint_counts_as_one_that_stays():
    tier = [committed("a", 1), committed("b", 2)]
    assert removable(tier, {"a@1", "b@1"}, {"b@1"}) == [tier[0]]


def test_weights_alone_do_not_stand_in_for_what_can_be_resumed():
    """The run could not go on from what was kept."""

    def entry(step, resumable):
        return TierCheckpoint(
            place=f"c{step}",
            checkpoint_id=f"c{step}",
            digest=f"d{step}",
            order=(step, 1, ""),
            resumable=resumable,
        )

    full, weights = entry(1, True), entry(2, False)
    assert removable([full, weights], {"d1"}, ()) == []
    newer = entry(3, True)
    assert removable([full, weights, newer], {"d1", "d2"}, ()) == [full, weights]


def test_an_interim_checkpoint_goes_when_a_newer_one_can_be_resumed():
    interim = replace(committed("interim-1", 1), interim=True)
    assert removable([interim], (), ()) == []
    assert removable([interim, replace(committed("b", 2), resumable=False)], (), ()) == []
    assert removable([interim, committed("b", 2)], (), ()) == [interim]
    assert removable([interim, committed("b", 2)], (), {"interim-1@1"}) == []


def test_of_interim_checkpoints_alone_the_newest_stays():
    tier = [replace(committed(f"interim-{step}", step), interim=True) for step in (1, 2, 3)]
    assert removable(tier, (), ()) == tier[:2]


# rules beside those of every job


@dataclass(frozen=True)
class EveryNSteps:
    """Keeps checkpoints whose step is a multiple of `steps`."""

    steps: int

    def decide(self, tier):
        return [Decision.KEEP if c.step % self.steps == 0 else None for c in tier.checkpoints]


@dataclass(frozen=True)
class Removes:
    """Removes everything, whatever that leads to."""

    def decide(self, tier):
        return [Decision.REMOVE] * len(tier.checkpoints)


EVERY = retention_policy(EveryNSteps(10))
STEPS = [committed(f"c{step}", step) for step in (5, 10, 15, 20, 25)]


def test_a_rule_outweighs_what_the_training_asks_for():
    gone = removable(STEPS, {f"c{step}@1" for step in (5, 10, 15, 20)}, (), EVERY)
    assert [one.step for one in gone] == [5, 15]


def test_a_person_outweighs_a_rule():
    gone = removable(STEPS, {"c10@1"}, (), EVERY, by=PERSON)
    assert [one.step for one in gone] == [10]


def test_a_rule_outweighs_supersession():
    tier = [replace(one, interim=True) for one in STEPS]
    assert [one.step for one in removable(tier, (), (), EVERY)] == [5, 15]


def test_a_rule_keeps_no_generation_that_no_name_leads_to():
    tier = [committed("last", 10, generation=1), committed("last", 20, generation=2)]
    assert [one.step for one in removable(tier, (), (), EVERY)] == [10]


def test_a_copy_that_a_rule_keeps_makes_no_room():
    tier = Tier(name="disk", checkpoints=STEPS)
    stored = {one.digest for one in STEPS}
    assert [one.step for one in evictable(tier, stored, EVERY)] == [5, 15, 25]
    assert [one.step for one in evictable(tier, stored)] == [5, 10, 15, 20, 25]
    asked = replace(tier, requests={"c10@1": PERSON}, protected={"c25@1"})
    assert [one.step for one in evictable(asked, stored, EVERY)] == [5, 10, 15]


def test_what_a_rule_keeps_is_sent_though_the_training_let_it_go():
    requests = {f"c{step}@1": TRAINING for step in (5, 10, 15, 20)}
    disk = Tier(name="disk", checkpoints=STEPS, requests=requests)
    assert publishable(disk, [], EVERY) == ["c10@1", "c20@1", "c25@1"]
    assert publishable(disk, []) == ["c25@1"]
    assert publishable(disk, [STEPS[1]], EVERY) == ["c20@1", "c25@1"]


def test_what_a_person_removed_is_not_sent_for_the_protection_of_its_copy():
    disk = Tier(name="disk", checkpoints=STEPS, requests={"c10@1": PERSON}, protected={"c10@1"})
    assert publishable(disk, []) == ["c5@1", "c15@1", "c20@1", "c25@1"]
    by_training = replace(disk, requests={"c10@1": TRAINING})
    assert publishable(by_training, []) == ["c5@1", "c10@1", "c15@1", "c20@1", "c25@1"]


def test_what_a_run_resumed_from_is_not_sent_for_the_next_one_to_delete():
    requests = {"c5@1": TRAINING}
    disk = Tier(name="disk", checkpoints=STEPS[:2], requests=requests, resumed_from={"c5@1"})
    assert publishable(disk, []) == ["c10@1"]


def test_on_the_disk_another_directory_of_an_id_is_the_users():
    tier = [committed("a", 1), committed("a", 2, generation=2)]
    assert [one.step for one in removable(tier, (), ())] == [1]
    assert retention.removable(Tier(name="disk", checkpoints=tier)) == []


@relaxed
@given(tiers(), digest_sets, digest_sets, st.sampled_from(["before", "after"]))
def test_no_policy_breaks_invariant_4(tier, requested, pinned, where):
    """A rule is written in a minute, by somebody who has not read this."""
    rules = (Removes(), POLICY) if where == "before" else (POLICY, Removes())
    gone = removable(tier, requested, pinned, FirstOf(rules))
    stays = [one for one in tier if one not in gone]
    for one in gone:
        assert any(o.order > one.order and o.resumable >= one.resumable for o in stays)


def test_the_latest_and_the_best_are_kept_in_the_order_of_the_checkpoints():
    losses = {5: 3.0, 10: 1.0, 15: 1.0, 20: float("nan"), 25: 2.0}
    tier = [replace(one, metrics={"loss": losses[one.step]}) for one in STEPS]
    tier[4] = replace(tier[4], resumable=False)
    whole = Tier(name="disk", checkpoints=tier)

    def kept(*rules):
        return places_decided(whole, Decision.KEEP, FirstOf(rules))

    assert kept() == kept(KeepLatest(0)) == kept(KeepBest("accuracy", "max")) == set()
    assert kept(KeepLatest(2)) == {"c20@1", "c25@1"}
    assert kept(KeepLatest(1, resumable=True)) == {"c20@1"}
    assert kept(KeepBest("loss", "min")) == {"c15@1"}
    assert kept(KeepBest("loss", "max"), KeepLatest(1)) == {"c5@1", "c25@1"}
    assert kept(KeepEvery(10)) == {"c5@1", "c10@1", "c20@1"}
    assert kept(KeepEvery(1000)) == {"c5@1"}


def test_a_policy_must_decide_of_every_checkpoint():
    """One that forgets some would decide of others than it means."""

    class Short:
        def decide(self, tier):
            return [Decision.KEEP]

    with pytest.raises(ValueError, match="zip"):
        removable(STEPS, (), (), FirstOf((POLICY, Short())))
    with pytest.raises(ValueError, match="zip"):
        removable(STEPS, (), (), Short())


# who asks


@pytest.mark.parametrize("unsaid", Requester)
def test_who_asks_is_read_as_it_was_written(unsaid):
    for one in Requester:
        assert Requester.from_bytes(one.to_bytes(), unsaid) is one
    for nothing in (b"", b"\n"):
        assert Requester.from_bytes(nothing, unsaid) is unsaid


@pytest.mark.parametrize(
    "data", [b'{"by": "a later version"}', b"[]", b"1", b"{}", b'{"by": []}', b"\xff", b"{" * 500]
)
def test_a_requester_that_nobody_knows_does_least(data):
    assert Requester.from_bytes(data, PERSON) is TRAINING
