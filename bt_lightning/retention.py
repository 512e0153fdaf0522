"""Which committed checkpoints, and which copies of them, may go now. Pure.

A policy looks at all checkpoints of one tier (the disk, or the store) and decides of each: keep,
remove, or nothing. Policies compose: in `FirstOf`, the first one that decides counts. `POLICY` is
the one that everybody asks: the worker of a training process, a standby worker, and the commands
that delete. What no policy decides stays, and may only make room as a copy of what the store has.

Invariant 4 is no policy, so that none can break it: `removable` applies it to what a policy says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, Protocol

from bt_lightning.removal_requester import Requester

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from bt_lightning.manifest import Manifest


class Decision(Enum):
    """What a policy says of one checkpoint."""

    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCheckpoint:
    """A committed checkpoint as one tier (the disk, or the store) holds it."""

    place: str
    """Where it is in the tier; no two of one tier have the same."""
    checkpoint_id: str
    digest: str
    """Of its manifest."""
    order: tuple[int, int, str]
    """`Manifest.order`; the newest has the greatest."""
    resumable: bool = True
    """Whether training can go on from it; weights alone do not stand in for such a one."""
    fit: str = ""
    """`Manifest.fit`: what one fit saved stands in for nothing of another one's."""
    interim: bool = False
    """Whether no `ModelCheckpoint` asked for it: it is kept until a newer one can be resumed."""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    format: str | None = None
    """`Manifest.format`: what another program wrote stands in for its own only."""

    @classmethod
    def of(cls, place: str, manifest: Manifest) -> TierCheckpoint:
        """The checkpoint of a manifest."""
        return cls(
            place=place,
            checkpoint_id=manifest.checkpoint_id,
            digest=manifest.digest,
            order=manifest.order,
            resumable=manifest.resumable,
            fit=manifest.fit,
            interim=manifest.interim,
            metrics=manifest.metrics,
            format=manifest.format,
        )

    @property
    def step(self) -> int:
        """The optimizer step at which it was saved."""
        return self.order[0]

    @property
    def generation(self) -> int:
        """Counts from 1 the commits of its id."""
        return self.order[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """All committed checkpoints of the disk or of the store, and what is known of them."""

    name: Literal["disk", "store"]
    checkpoints: Sequence[TierCheckpoint]
    requests: Mapping[str, Requester] = field(default_factory=dict)
    """Whose removal was asked for (digests), and by whom."""
    resumed_from: Collection[str] = ()
    """Digests of what this run resumed from."""
    protected: Collection[str] = ()
    """Digests of what somebody protected."""

    def newest_first(self) -> list[TierCheckpoint]:
        """The checkpoints, the one with the greatest order first."""
        return sorted(self.checkpoints, key=lambda one: one.order, reverse=True)


class RetentionPolicy(Protocol):
    """Says which checkpoints of a tier are kept, and which removed. Hashable, and can be pickled.

    It is called in any process and thread, again and again, for the disk and for the store: so it
    depends on the tier that it is given, and on nothing else.
    """

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """One decision a checkpoint, in the order of `tier.checkpoints`.

        KEEP: it is deleted from no tier, and its copy on the disk makes no room. REMOVE: it is
        deleted, as soon as invariant 4 allows. None: this policy has nothing to say of it.
        """


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Of each checkpoint, what the first of `policies` that decides says."""

    policies: tuple[RetentionPolicy, ...]

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """None where none of them decides."""
        said = [policy.decide(tier) for policy in self.policies]
        nothing = [None] * len(tier.checkpoints)
        return [
            next((decision for decision in each if decision is not None), None)
            for each in zip(nothing, *said, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class KeepProtected:
    """Keep what somebody protected."""

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        return [_keep(one.digest in tier.protected) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class KeepResumedFrom:
    """Keep what this run resumed from; the next run may remove it."""

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        return [_keep(one.digest in tier.resumed_from) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class KeepDigests:
    """Keep the checkpoints with these digests."""

    digests: frozenset[str]

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        return [_keep(one.digest in self.digests) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class KeepLatest:
    """Keep the `count` newest, or the `count` newest of those that can be resumed."""

    count: int
    resumable: bool = False

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        those = [one for one in tier.newest_first() if one.resumable or not self.resumable]
        latest = {one.place for one in those[: self.count]}
        return [_keep(one.place in latest) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Keep the first checkpoint of every `steps` optimizer steps: of 0 to 999, of 1000 to 1999."""

    steps: int

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        first = {(one.fit, one.step // self.steps): one.place for one in tier.newest_first()}
        return [
            _keep(first[one.fit, one.step // self.steps] == one.place) for one in tier.checkpoints
        ]


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the checkpoint with the lowest, or highest, value of a metric; of equals the newest.

    NaN is never best.
    """

    metric: str
    mode: Literal["min", "max"]

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """KEEP, or None."""
        values = [(one.metrics.get(self.metric, math.nan), one) for one in tier.newest_first()]
        known = [(value, one.place) for value, one in values if not math.isnan(value)]
        choose = min if self.mode == "min" else max
        best = choose(known, key=lambda pair: pair[0])[1] if known else None
        return [_keep(one.place == best) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class RemoveRequested:
    """Remove what `by` asked to remove."""

    by: Requester

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """REMOVE, or None."""
        return [_remove(tier.requests.get(one.digest) is self.by) for one in tier.checkpoints]


@dataclass(frozen=True, slots=True)
class RemoveOlderGenerations:
    """Remove what has a newer generation of its id beside it in the store.

    No name leads to it any more. On the disk a commit takes the place of the one before; another
    directory with the same id is a copy that the user made.
    """

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """REMOVE, or None."""
        oldest_first = reversed(tier.newest_first())
        newest = {one.checkpoint_id: one.order for one in oldest_first}
        return [
            _remove(tier.name == "store" and one.order < newest[one.checkpoint_id])
            for one in tier.checkpoints
        ]


@dataclass(frozen=True, slots=True)
class RemoveSuperseded:
    """Remove interim checkpoints with a newer one beside them that can be resumed from."""

    def decide(self, tier: Tier) -> Sequence[Decision | None]:
        """REMOVE, or None."""
        resumable = [one for one in reversed(tier.newest_first()) if one.resumable]
        newest = {(one.fit, one.format): one.order for one in resumable}
        return [
            _remove(one.interim and one.order < newest.get((one.fit, one.format), one.order))
            for one in tier.checkpoints
        ]


def retention_policy(*rules: RetentionPolicy) -> RetentionPolicy:
    """The policy of a job, with `rules` that outweigh what the training asks for.

    What somebody protected or asked to remove, what the run resumed from, and what no name leads
    to is decided before them.
    """
    return FirstOf(
        (
            KeepProtected(),
            KeepResumedFrom(),
            RemoveRequested(Requester.PERSON),
            RemoveOlderGenerations(),
            *rules,
            RemoveRequested(Requester.TRAINING),
            RemoveSuperseded(),
        )
    )


POLICY: Final = retention_policy()
"""What every worker and every command asks. A rule for all of them is an argument here."""


def removable(tier: Tier, policy: RetentionPolicy = POLICY) -> list[TierCheckpoint]:
    """The checkpoints that may be deleted from this tier now, oldest first.

    Those that the policy removes; but only while the tier holds a newer one of the same fit that
    the policy does not remove, and that can be resumed from if this one can (invariant 4).
    """
    decided = _decided(tier, policy)
    stay = [one for one, decision in decided if decision is not Decision.REMOVE]
    may_go = [
        one
        for one, decision in decided
        if decision is Decision.REMOVE and any(_stands_in(other, one) for other in stay)
    ]
    return sorted(may_go, key=lambda one: one.order)


def _stands_in(other: TierCheckpoint, one: TierCheckpoint) -> bool:
    """Whether `other` is a newer state of the same fit and layout, and no less than `one`."""
    same = (other.fit, other.format) == (one.fit, one.format)
    return same and other.order > one.order and other.resumable >= one.resumable


def evictable(
    tier: Tier, stored: Collection[str], policy: RetentionPolicy = POLICY
) -> list[TierCheckpoint]:
    """The checkpoints whose copy on the disk may go to make room, in that order: oldest first.

    Only what the store holds (`stored`: digests), so that the checkpoint itself stays; never what
    the policy keeps. So the newest copy goes last.
    """
    kept = places_decided(tier, Decision.KEEP, policy)
    may_go = [one for one in tier.checkpoints if one.digest in stored and one.place not in kept]
    return sorted(may_go, key=lambda one: one.order)


def publishable(
    disk: Tier, stored: Sequence[TierCheckpoint], policy: RetentionPolicy = POLICY
) -> list[str]:
    """Places on the disk of what the store (it holds `stored`) is still to have, in their order.

    What the policy removes from the disk is left out, unless there is nothing else; and what it
    removes from the store, where it would be sent, deleted, and sent again. What this run resumed
    from is not sent for the next run to remove, and what a person removed from the store not for
    the protection of its copy on the disk.
    """
    removed = places_decided(replace(disk, resumed_from=()), Decision.REMOVE, policy)
    wanted = [
        one
        for one in disk.checkpoints
        if one.place not in removed and disk.requests.get(one.digest) is not Requester.PERSON
    ]
    wanted = wanted or list(disk.checkpoints)
    published = {one.digest for one in stored}
    unsent = [one for one in wanted if one.digest not in published]
    store = replace(disk, name="store", checkpoints=[*stored, *unsent])
    again = {one.place for one in removable(store, policy)}
    return [one.place for one in unsent if one.place not in again]


def places_decided(
    tier: Tier, decision: Decision, policy: RetentionPolicy = POLICY
) -> frozenset[str]:
    """Places of the checkpoints of which the policy decides so, invariant 4 left aside."""
    return frozenset(one.place for one, said in _decided(tier, policy) if said is decision)


def _decided(tier: Tier, policy: RetentionPolicy) -> list[tuple[TierCheckpoint, Decision | None]]:
    return list(zip(tier.checkpoints, policy.decide(tier), strict=True))


def _keep(yes: bool) -> Decision | None:  # noqa: FBT001 - a claim, not an option
    return Decision.KEEP if yes else None


def _remove(yes: bool) -> Decision | None:  # noqa: FBT001 - a claim, not an option
    return Decision.REMOVE if yes else None
