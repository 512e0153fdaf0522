"""Ranks that want nothing ask the key-value store nothing; a request is heard by a bell."""

import threading
import time

import pytest
from torch.distributed import TCPStore

from bt_lightning.session import agree_on_boundary, rank_exchange
from bt_lightning.session.agree_on_boundary import RankAgreement
from bt_lightning.session.rank_exchange import RankExchange
from bt_lightning.session.ranks import Ranks


class Rank:
    """One of two ranks, each with threads and connections of its own, in one process."""

    def __init__(self, rank):
        self.wants, self.looks, self.operations = None, 0, 0
        self.peers = RankExchange(Ranks(rank, 2))
        run = self.peers.run

        def counted(op):
            self.operations += 1
            return run(op)

        self.peers.run = counted
        self.agreement = RankAgreement(self.peers, "agreement", self.request)
        self.asked_at = None

    def request(self):
        self.looks += 1
        return self.wants

    def train(self):
        """Go from boundary to boundary until there is something to do."""
        until, batches = time.monotonic() + 60, 0
        while self.asked_at is None and time.monotonic() < until:
            batches += 1
            if self.agreement.requested_at((batches, 0)) is not None:
                self.asked_at = batches
            threading.Event().wait(1e-3)


def await_(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(1e-3)


@pytest.fixture
def ranks(monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(rank_exchange, "process_group_store", lambda: store)
    monkeypatch.setattr(rank_exchange, "next_key", "test/{}".format)
    monkeypatch.setattr(agree_on_boundary, "_SURE_S", 3600.0)
    made = [Rank(0), Rank(1)]
    yield made
    closing = [threading.Thread(target=each.agreement.close) for each in made]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(60)
    for each in reversed(made):
        each.peers.close()


def test_ranks_at_rest_ask_the_store_nothing(ranks):
    """If not, every run pays for it at each step."""
    await_(lambda: all(each.peers.has_bells for each in ranks))
    looks = [each.looks for each in ranks]
    await_(lambda: all(r.looks > n + 3 for r, n in zip(ranks, looks, strict=True)))
    before = [(each.looks, each.operations) for each in ranks]
    await_(lambda: all(r.looks > n + 5 for r, (n, _) in zip(ranks, before, strict=True)))
    assert [each.operations for each in ranks] == [operations for _, operations in before]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("bells", [True, False])
def test_all_ranks_act_at_one_boundary(ranks, who, bells):
    """By a bell: the next look at the store would come after an hour. Without one, by looking."""
    await_(lambda: all(each.peers.has_bells for each in ranks))  # nobody connects any more
    if not bells:
        for each in ranks:
            each.peers._line = None
            each.peers.ring = lambda: None
    training = [threading.Thread(target=each.train) for each in ranks]
    for thread in training:
        thread.start()
    ranks[who].wants = "stop"
    for thread in training:
        thread.join(90)
    assert ranks[0].asked_at == ranks[1].asked_at is not None
