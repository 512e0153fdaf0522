"""Tries again what may succeed, at once gives up what will not, and never waits for real here."""

from __future__ import annotations

import contextlib

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import (
    CheckpointExistsError,
    StoreError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.retry import FIRST_WAIT_S, LONGEST_WAIT_S, RetryingStore, backoff
from bt_lightning.store.transfer.file_source import BufferedSource

relaxed = settings(deadline=None, database=None)
METHODS = ["send", "put", "put_new", "read", "size", "read_into", "list", "delete", "abandon"]


class Flaky:
    """A real store whose first calls fail; `after` lets them do their work before they fail."""

    def __init__(self, inner, failures, kind=StoreTransientError, *, after=False):
        self._inner, self._failures, self._kind, self._after = inner, failures, kind, after
        self.calls = 0

    @property
    def name(self):
        return self._inner.name

    def __getattr__(self, method):
        def call(*args, **words):
            self.calls += 1
            failing = self.calls <= self._failures
            message = f"failure {self.calls}"
            if failing and not self._after:
                raise self._kind(message)
            result = getattr(self._inner, method)(*args, **words)
            result = iter(list(result)) if method == "list" else result
            if failing:
                raise self._kind(message)
            return result

        return call


@pytest.fixture
def inner(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.put("a/key", b"value")
    return store


class Memory(BufferedSource):
    """Bytes to send."""

    def __init__(self, data):
        self._data = data
        self.size = self.part_bytes = len(data)
        self.digest = xxhash.xxh3_128_hexdigest(data)

    @contextlib.contextmanager
    def hold(self, offset, size):
        yield memoryview(self._data)[offset : offset + size]


def call(store, method):
    target = memoryview(bytearray(4))
    arguments = {
        "send": (Memory(b"source"), "a/new"),
        "put": ("a/new", b"new"),
        "put_new": ("a/new", b"new"),
        "read": ("a/key",),
        "size": ("a/key",),
        "read_into": ("a/key", 1, target),
        "list": ("a",),
        "delete": (["a/key"],),
        "abandon": ("a", ()),
    }[method]
    result = getattr(store, method)(*arguments)
    if method == "read_into":
        return bytes(target)
    return list(result) if method == "list" else result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failure_that_another_try_cures_is_never_seen(inner, method, after):
    """Also where the work was done and only the answer was lost."""
    waits = []
    flaky = Flaky(inner, 3, after=after)
    found = call(RetryingStore(flaky, tries=4, sleep=waits.append), method)
    assert flaky.calls == 4
    assert len(waits) == 3
    if method == "read":
        assert found == b"value"
    if method == "list":
        assert [info.key for info in found] == ["a/key"]
    if method == "size":
        assert found == 5
    if method == "read_into":
        assert found == b"alue"
    if method in {"send", "put", "put_new"}:
        assert inner.read("a/new") in {b"new", b"source"}
    if method == "delete":
        assert inner.read("a/key") is None


@pytest.mark.parametrize("method", METHODS)
def test_the_last_failure_is_raised_when_no_try_is_left(inner, method):
    waits = []
    flaky = Flaky(inner, 99)
    with pytest.raises(StoreTransientError, match="failure 4"):
        call(RetryingStore(flaky, tries=4, sleep=waits.append), method)
    assert flaky.calls == 4
    assert len(waits) == 3, "it waited after the last try"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [StorePermanentError, CheckpointExistsError, ValueError])
def test_what_no_try_cures_is_raised_at_once(inner, method, kind):
    waits = []
    flaky = Flaky(inner, 99, kind)
    with pytest.raises(kind, match="failure 1"):
        call(RetryingStore(flaky, tries=4, sleep=waits.append), method)
    assert (flaky.calls, waits) == (1, [])


def test_a_store_with_one_try_never_waits(inner):
    flaky = Flaky(inner, 1)
    store = RetryingStore(flaky, tries=1, sleep=lambda _: pytest.fail("waited"))
    with pytest.raises(StoreError):
        store.read("a/key")


def test_a_listing_cut_off_half_way_is_begun_again_and_repeats_nothing(inner):
    inner.put("a/other", b"x")

    class Cut(Flaky):
        def list(self, prefix):
            self.calls += 1
            for info in self._inner.list(prefix):
                yield info
                if self.calls == 1:
                    msg = "cut off"
                    raise StoreTransientError(msg)

    store = RetryingStore(Cut(inner, 0), sleep=lambda _: None)
    assert sorted(info.key for info in store.list("a")) == ["a/key", "a/other"]


def test_the_name_is_the_inner_store_s(inner):
    assert RetryingStore(inner).name == inner.name


@relaxed
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_waits_grow_are_spread_and_stay_below_a_minute(failures, jitter):
    wait = backoff(failures, jitter)
    assert FIRST_WAIT_S / 2 <= wait <= LONGEST_WAIT_S
    assert backoff(failures, 0.0) <= wait <= backoff(failures, 1.0)
    assert backoff(failures + 1, jitter) >= wait
    assert backoff(failures, 1.0) == 2 * backoff(failures, 0.0), "writers are not spread"


def test_waits_double_until_they_are_long():
    assert [backoff(n, 1.0) for n in range(4)] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert backoff(99, 1.0) == LONGEST_WAIT_S
