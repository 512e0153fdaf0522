"""Writes one rank's part of a sharded state, with facts for the manifest."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bt_lightning.session.checkpoint_writer import CheckpointWriter
from bt_lightning.session.manifest_facts import package_versions
from bt_lightning.snapshot.encoding_cache import weights_key
from bt_lightning.snapshot.local_states import refuse_local_states
from bt_lightning.snapshot.shard_encoding import OPTIMIZERS
from bt_lightning.snapshot.shard_files import PlannedPart, encode_part, lay_out_part
from bt_lightning.snapshot.state_files import EncodingCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from bt_lightning.manifest import ManifestFacts
    from bt_lightning.session.shard_exchange import ShardExchange
    from bt_lightning.sharding.structure import Table
    from bt_lightning.sharding.write_plan import WritePlan
    from bt_lightning.snapshot.shard_files import EncodedPart
    from bt_lightning.snapshot.state_files import Snapshot

log = logging.getLogger(__name__)


class ShardWriter(CheckpointWriter):
    """Writes a rank's part of each save; one on every rank, used on its training thread.

    Args:
        exchange: by which the ranks agree who writes what.
        allowed: returns classes and functions, besides the built-in ones, that loads may restore.
    """

    def __init__(
        self, exchange: ShardExchange, allowed: Callable[[], tuple[object, ...]] = tuple
    ) -> None:
        super().__init__(allowed)
        self._exchange = exchange
        self._early: Future[tuple[EncodingCache, EncodedPart, PlannedPart]] | None = None
        self._planned: PlannedPart | None = None
        self._key: tuple[Any, ...] | None = None
        """Of the state for which it was planned."""
        self._shards: dict[str, Any] = {}

    @property
    def planned_bytes(self) -> int | None:
        """Bytes of the tensors that this rank writes at a save; None before that is agreed."""
        early = self._early
        if early is not None and early.done() and early.exception() is None:
            return early.result()[2].size
        return None if self._planned is None else self._planned.size

    def begin(self, state: Mapping[str, Any]) -> None:
        """Encode and agree beside training, so that the next save of such a state is quick.

        Every rank calls it at the same moment: when a fit starts, and when the optimizers have made
        their state. `state` is what `live_state` returns: no other thread changes its dicts.
        """
        aliases = _aliases(state)

        def encode(
            agree: Callable[[Mapping[str, Any]], WritePlan],
        ) -> tuple[EncodingCache, EncodedPart, PlannedPart]:
            package_versions()  # it keeps them
            cache = EncodingCache()
            encoded = encode_part(aliases, cache)
            planned = PlannedPart(agree(_table(aliases, encoded)), self._exchange.rank)
            lay_out_part(encoded, planned, cache)
            cache.prepare_parts()
            return cache, encoded, planned

        self._early = self._exchange.run(encode)

    def take(self, state: dict[str, Any], cache: EncodingCache | None = None) -> Snapshot:
        """Lay out this rank's part of `state`; copies no tensor.

        Waits for other ranks only if the structure of the state is another one than at any save.

        Raises:
            UnsupportedStateError: a value cannot be written, or the states of two ranks differ.
            RanksApartError: a rank did not come to this save.
        """
        cache = EncodingCache() if cache is None else cache
        self._adopt(cache)
        try:
            encoded = encode_part(state, cache)
            known = self._planned is not None and encoded.held.key == self._key
            table = {} if known else _table(state, encoded)
        except Exception as error:
            self._exchange.refuse(error)
            raise
        if known:
            self._exchange.go_on()
        planned = self._plan(encoded.held.key, table)
        snapshot = lay_out_part(encoded, planned, cache)
        if planned.rank == 0:
            if self.serving.adapter is None:  # an adapter's configuration goes with its weights
                snapshot.small_files.update(self.serving.constant)
            self._shards = planned.index(encoded.tied)[0].facts
            self._warn_once(snapshot)
        return snapshot

    def refuse(self, error: BaseException) -> None:
        """Let no rank wait for what this one would say at a save that failed before `take`."""
        self._exchange.refuse(error)

    def facts(self, state: dict[str, Any], snapshot: Snapshot) -> ManifestFacts:
        """The manifest's facts about `state`; those of rank 0 count."""
        facts = super().facts(state, snapshot)
        return replace(facts, origin={**facts.origin, "shards": self._shards})

    def _plan(self, key: tuple[Any, ...], table: Table) -> PlannedPart:
        if self._planned is None or key != self._key:
            plan = self._exchange.plan(table)
            if self._planned is None or self._planned.plan is not plan:
                self._planned = PlannedPart(plan, self._exchange.rank)
            self._key = key
        return self._planned

    def _adopt(self, cache: EncodingCache) -> None:
        """Take what was encoded and agreed beside training; the save meets its errors again."""
        early, self._early = self._early, None
        if early is None:
            return
        try:
            found, encoded, planned = self._exchange.result(early)
        except Exception as error:  # noqa: BLE001 - the save encodes it all, and meets it again
            log.info("the first save takes longer, since it could not be prepared: %s", error)
            return
        self._planned, self._key = planned, encoded.held.key
        cache.fragments, cache.plans, cache.parts = found.fragments, found.plans, found.parts


def _table(state: Mapping[str, Any], encoded: EncodedPart) -> Table:
    """What this rank holds of a state of another structure."""
    refuse_local_states(state.get(weights_key(state), {}), state.get(OPTIMIZERS, ()))
    return encoded.held.table


def _aliases(state: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of the state in dicts of our own, for another thread; of live tensors."""
    key = weights_key(state)
    groups = [
        {
            **each,
            "state": {
                name: dict(entry) if isinstance(entry, dict) else entry
                for name, entry in each["state"].items()
            },
        }
        for each in state.get(OPTIMIZERS, ())
    ]
    return {key: dict(state[key]), OPTIMIZERS: groups}
