"""A long listing in parts has the objects of the listing page by page, or is that listing."""

from __future__ import annotations

import bisect
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.path_layout import under
from bt_lightning.store.open_store import open_store
from bt_lightning.store.s3 import list_objects as parts
from bt_lightning.store.s3.list_objects import list_objects
from bt_lightning.store.s3.listing_pages import ListingPage, by_bytes, by_folders, parse_page
from bt_lightning.store.s3.request_errors import Failure, Hostile

PAGE = 10


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(parts, "_FULL", 9)


class Bucket:
    """Keys, listed as a server does: `order` is that of its keys."""

    def __init__(self, keys, order=by_bytes):
        self.order = order
        self.keys = sorted(keys, key=order)
        self.requests = []
        self._lock = threading.Lock()

    def ask(self, query):
        with self._lock:
            self.requests.append(query)
            keys = self.keys
        prefix = query.get("prefix", "")
        after = query.get("continuation-token", query.get("start-after", ""))
        places = [self.order(key) for key in keys]
        start = bisect.bisect_right(places, self.order(after)) if after else 0
        left = [key for key in keys[start:] if key.startswith(prefix)]
        if "delimiter" in query:
            return ListingPage([], sorted({self.folder(key, prefix) for key in left}))
        found = left[:PAGE]
        token = found[-1] if len(left) > PAGE else None
        return ListingPage([(key, len(key), "v") for key in found], [], token)

    @staticmethod
    def folder(key, prefix):
        return prefix + key.removeprefix(prefix).partition("/")[0] + "/"


def keys_of(jobs, files):
    return [f"p/jobs/job-{job:03}/rank-0/{file:03}" for job in range(jobs) for file in range(files)]


def pages(keys):
    return -(-len(keys) // PAGE)


@pytest.mark.parametrize("count", [0, 1, 10, 11, 40])
def test_a_short_listing_costs_a_request_a_page(count):
    bucket = Bucket(keys_of(count, 1))
    assert [key for key, _, _ in list_objects(bucket.ask)] == bucket.keys
    assert len(bucket.requests) == max(1, pages(bucket.keys))


def test_a_long_listing_costs_few_requests_more_and_is_made_in_parts():
    bucket = Bucket(keys_of(60, 10))
    assert [key for key, _, _ in list_objects(bucket.ask)] == bucket.keys
    begun = [query for query in bucket.requests if "start-after" in query]
    assert len(begun) == 1 + 7, "one asks for the folders, and each part but the first begins so"
    assert len(bucket.requests) <= pages(bucket.keys) + 1 + 8


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "a-b", "a.", "b", "b!", "é"]), st.integers(0, 40)),
        min_size=60,
        max_size=400,
        unique=True,
    ),
    st.sampled_from([by_bytes, by_folders]),
)
def test_any_keys_in_the_order_of_bytes_or_of_folders(names, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_FULL", 9)
        patch.setattr(parts, "_PAGES_A_PART", 1)
        bucket = Bucket([f"{name}{number % 7}/{number}" for name, number in names], order)
        bucket.keys = sorted(set(bucket.keys), key=order)
        assert [key for key, _, _ in list_objects(bucket.ask)] == bucket.keys


class NoStartAfter(Bucket):
    """Begins at the beginning, whatever is asked for."""

    def ask(self, query):
        known = {name: value for name, value in query.items() if name != "start-after"}
        return super().ask(query if "delimiter" in query else known)


class Skips(Bucket):
    """Leaves out the first objects behind `start-after`."""

    def ask(self, query):
        page = super().ask(query)
        return ListingPage(page.objects[2 * ("start-after" in query) :], page.folders, page.token)


class NoDelimiter(Bucket):
    """Refuses `delimiter`."""

    def ask(self, query):
        if "delimiter" in query:
            msg = "not implemented"
            raise Failure(msg, transient=False)
        return super().ask(query)


class Loses(Bucket):
    """Deletes the object at which a part began, as soon as it has been listed."""

    def ask(self, query):
        page = super().ask(query)
        if "start-after" in query and page.objects:
            with self._lock:
                self.keys = [key for key in self.keys if key != page.objects[0][0]]
        return page


class Other(Bucket):
    """What is listed behind `start-after` is of a folder that nobody else sees."""

    def ask(self, query):
        page = super().ask(query)
        if "start-after" in query and "delimiter" not in query:
            return ListingPage([(f"{key}?", 1, "v") for key, _, _ in page.objects], [], page.token)
        return page


@pytest.mark.parametrize("server", [NoStartAfter, Skips, NoDelimiter, Other])
def test_an_odd_server_costs_requests_not_objects(server):
    bucket = server(keys_of(60, 10))
    assert [key for key, _, _ in list_objects(bucket.ask)] == bucket.keys


def test_what_is_deleted_meanwhile_may_be_listed_or_not_but_nothing_else_is_missing():
    bucket = Loses(keys_of(60, 10))
    before = set(bucket.keys)
    found = [key for key, _, _ in list_objects(bucket.ask)]
    assert found == sorted(found)
    assert set(bucket.keys) <= set(found) <= before


def test_an_error_of_one_part_is_raised():
    class Fails(Bucket):
        def ask(self, query):
            if "start-after" in query and "delimiter" not in query:
                msg = "as the test wants it"
                raise Failure(msg, transient=True)
            return super().ask(query)

    with pytest.raises(Failure, match="as the test wants it"):
        list_objects(Fails(keys_of(60, 10)).ask)


def test_a_listing_that_repeats_is_hostile():
    class Repeats(Bucket):
        def ask(self, query):
            return super().ask({})

    with pytest.raises(Hostile):
        list_objects(Repeats(keys_of(60, 10)).ask)


def test_a_bucket_without_an_order_is_listed_page_by_page():
    bucket = Bucket(keys_of(60, 10))
    assert len(list_objects(bucket.ask, ordered=False)) == 600
    assert len(bucket.requests) == pages(bucket.keys)


@pytest.mark.parametrize("server", ["s3", "weed"])
def test_a_real_server(server, request, monkeypatch):
    """Pages of ten objects, as `max-keys` makes them."""
    found = request.getfixturevalue(server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", found.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", found.options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
    url = request.getfixturevalue("s3_url")
    monkeypatch.setattr(parts, "_PAGES_A_PART", 1)
    store = open_store(url)
    names = [f"jobs/job-{job:02}/c-{one}/m.json" for job in range(12) for one in range(8)]
    for name in [*names, "jobs-beside", "jobs/last/+ %é"]:
        store.put(name, b"x")
    base = url.partition("://")[2].partition("/")[2]
    queries = []

    def ask(query):
        queries.append(query)
        whole = {"list-type": "2", "encoding-type": "url", "max-keys": "10"}
        whole |= {"prefix": under(base, "jobs") + "/", **query}
        reply = store._bucket._get("", whole)
        return parse_page(reply.body, whole["prefix"])

    listed = [key for key, _, _ in list_objects(ask)]
    wanted = [under(base, name) for name in [*names, "jobs/last/+ %é"]]
    assert listed == sorted(wanted)
    assert any("start-after" in query and "delimiter" not in query for query in queries)


FORMS = {
    "as AWS": "<Contents><Key>{k}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{e}&quot;</ETag><Size>{s}</Size><StorageClass>STANDARD</StorageClass></Contents>",
    "as SeaweedFS": "<Contents><ETag>&#34;{e}&#34;</ETag><Key>{k}</Key><Owner><ID>i</ID>"
    "<DisplayName>d</DisplayName></Owner><Size>{s}</Size></Contents>",
    "with spaces": "<Contents> <Key>{k}</Key> <Size>{s}</Size> <ETag>{e}</ETag> </Contents>",
    "without versions": "<Contents><Key>{k}</Key><Size>{s}</Size></Contents>",
}


def page_of(rows, extra="", *, first="", token="t"):
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    end = f"<NextContinuationToken>{token}</NextContinuationToken><IsTruncated>true</IsTruncated>"
    return (
        f'<?xml version="1.0"?>\n<ListBucketResult xmlns="{space}"><EncodingType>url'
        f"</EncodingType>{first}{''.join(rows)}{extra}{end}</ListBucketResult>"
    ).encode()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["one form", "another form first", "another form last"])
def test_pages_of_any_form(form, where):
    rows = [FORMS[form].format(k=f"p/{n}%2B", e=f"e{n}", s=n) for n in range(5)]
    other = "<Contents><Size>7</Size><Key>p/{}</Key><ETag>x</ETag><A/></Contents>"
    if where == "another form first":
        rows.insert(0, other.format("0"))
    elif where == "another form last":
        rows.append(other.format("9"))
    found = parse_page(page_of(rows), "p/")
    version = (lambda n: None) if form == "without versions" else "e{}".format
    wanted = [(f"p/{n}+", n, version(n)) for n in range(5)]
    assert [one for one in found.objects if one[2] != "x"] == wanted
    assert len(found.objects) == len(rows)
    assert found.token == "t"


@pytest.mark.parametrize(
    "row",
    [
        "<Contents><Key>q/1</Key><Size>1</Size><ETag>e</ETag></Contents>",
        "<Contents><Key>p/1</Key><Size>-1</Size><ETag>e</ETag></Contents>",
        "<Contents><Key>p/1</Key><Size></Size><ETag>e</ETag></Contents>",
        "<Contents><Key>p/1</Key><Size>1<A/></Size><ETag>e</ETag>",
    ],
)
def test_a_page_of_something_else_is_refused(row):
    with pytest.raises(ValueError, match="listing"):
        parse_page(page_of([FORMS["as AWS"].format(k="p/0", e="e", s=1), row]), "p/")


def test_folders_between_objects_are_seen():
    rows = [FORMS["as AWS"].format(k=f"p/{n}", e="e", s=1) for n in range(2)]
    rows.insert(1, "<CommonPrefixes><Prefix>p/f%2F/</Prefix></CommonPrefixes>")
    found = parse_page(page_of(rows), "p/")
    assert [key for key, _, _ in found.objects] == ["p/0", "p/1"]
    assert found.folders == ["p/f//"]
