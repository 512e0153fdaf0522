"""Each wait of the code is needed: without it, an order is torn, and the simulator says so."""

from __future__ import annotations

import pytest
from happens_before import EveryOrder, RandomOrders
from missing_waits import missing_waits
from scenarios import SCENARIOS, SMALL

WAITS = list(missing_waits())
MOST_ORDERS = 300


def _orders(name):
    if name in SMALL:
        choices = EveryOrder()
        for _ in range(MOST_ORDERS):
            yield choices
            if not choices.advance():
                return
    for seed in range(200):
        yield RandomOrders(seed)


def test_waits_are_found_in_the_source():
    assert {wait.function[-1] for wait in WAITS} >= {"start", "guard", "wait", "finish", "receive"}
    assert len(WAITS) >= 20


@pytest.mark.parametrize("wait", WAITS, ids=str)
def test_without_a_wait_an_order_is_torn(run, wait):
    with wait.applied():
        for name, scenario in SCENARIOS.items():
            conflicts, error = run(scenario, RandomOrders(0))
            if not (conflicts or error):
                continue  # this one does not need it
            if any(run(scenario, choices)[1] is not None for choices in _orders(name)):
                return
    pytest.fail(f"no order needs {wait}")
