"""The manifest: what is read is what was written, or it is refused as damaged."""

from __future__ import annotations

import itertools
import json
import math
from datetime import datetime, timezone

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.errors import CheckpointCorruptError, FormatVersionError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manifest import FORMAT, FORMAT_VERSION, Manifest

relaxed = settings(deadline=None, database=None)

digests = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
moments = st.builds(
    "".join,
    st.tuples(
        st.integers(86_400, 253_370_764_799).map(
            lambda time: datetime.fromtimestamp(time, timezone.utc).isoformat()[:19]
        ),
        st.sampled_from(["", ".5", ".123", ".123456", ".123456789"]),
        st.sampled_from(["Z", "+00:00", "-11:30", "+14:00"]),
    ),
)
names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\."), min_size=1
)
paths = st.lists(names.filter(lambda name: len(name.encode()) < 200), min_size=1, max_size=3).map(
    "/".join
)
facts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def entries(draw):
    size = draw(st.one_of(st.just(0), st.integers(1, 5), st.integers(1, 4 * BLOCK_BYTES)))
    count = -(-size // BLOCK_BYTES)
    blocks = draw(st.lists(digests, min_size=count, max_size=count))
    return FileEntry(path=draw(paths), size=size, xxh3_128=draw(digests), blocks=tuple(blocks))


@st.composite
def manifests(draw):
    files = draw(st.lists(entries(), max_size=4, unique_by=lambda entry: entry.path.split("/")[0]))
    return Manifest(
        checkpoint_id=draw(paths),
        generation=draw(st.integers(1, 10**9)),
        step=draw(st.integers(0, 10**12)),
        epoch=draw(st.integers(0, 10**6)),
        created_at=draw(moments),
        files=tuple(files),
        metrics=draw(st.dictionaries(texts, st.floats(), max_size=4)),
        origin=draw(st.dictionaries(texts, facts, max_size=4)),
        resumable=draw(st.booleans()),
        weights_prefix=draw(texts),
        leftovers=tuple(draw(st.lists(st.tuples(texts, texts), max_size=3))),
    )


def build(**changes) -> Manifest:
    entry = FileEntry(path="model.safetensors", size=3, xxh3_128="0" * 32, blocks=("1" * 32,))
    fields = {
        "checkpoint_id": "checkpoint-20",
        "generation": 1,
        "step": 20,
        "epoch": 1,
        "created_at": "2030-01-02T03:04:05+00:00",
        "files": (entry,),
        "metrics": {"val_loss": 0.25},
        "origin": {"project": "demo"},
    }
    return Manifest(**{**fields, **changes})


def sealed(payload: dict) -> bytes:
    """`payload` with a correct digest of itself: what a hostile or foreign writer can make."""
    payload = {name: value for name, value in payload.items() if name != "digest"}
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**payload, "digest": xxhash.xxh3_128_hexdigest(canonical)}).encode()


def edited(**changes) -> bytes:
    return sealed({**json.loads(build().to_bytes()), **changes})


def edited_entry(**changes) -> bytes:
    payload = json.loads(build().to_bytes())
    payload["files"] = [{**payload["files"][0], **changes}]
    return sealed(payload)


def parse(data: bytes) -> Manifest:
    return Manifest.from_bytes(data, "here")


# round trip


@relaxed
@given(manifests())
def test_a_manifest_reads_back_as_it_was_written(manifest):
    again = parse(manifest.to_bytes())
    assert again.to_bytes() == manifest.to_bytes()
    assert again.digest == manifest.digest
    assert (again.order, again.size, again.files) == (manifest.order, manifest.size, manifest.files)
    if not any(math.isnan(value) for value in manifest.metrics.values()):
        assert again == manifest


@relaxed
@given(st.dictionaries(texts, st.floats() | st.integers(-(2**60), 2**60), min_size=1, max_size=4))
@example({"epoch": 1})
def test_the_digest_of_a_manifest_is_the_same_before_and_after_it_was_written(metrics):
    """Removal requests and pins name a checkpoint by its digest: a whole number among the metrics
    would otherwise make a checkpoint that can neither be removed nor pinned.
    """
    manifest = build(metrics=metrics)
    assert parse(manifest.to_bytes()).digest == manifest.digest


@relaxed
@given(manifests(), st.integers(1, 10**6))
def test_another_generation_is_another_checkpoint_with_the_same_files(manifest, generation):
    other = manifest.with_generation(generation)
    assert other.files == manifest.files
    assert (other.digest == manifest.digest) == (generation == manifest.generation)


def test_metrics_that_json_cannot_hold_come_back():
    metrics = {"a": math.inf, "b": -math.inf, "c": math.nan, "d": 1e-300}
    again = parse(build(metrics=metrics).to_bytes()).metrics
    assert (again["a"], again["b"], again["d"]) == (math.inf, -math.inf, 1e-300)
    assert math.isnan(again["c"])
    assert b"NaN" not in build(metrics=metrics).to_bytes()


def test_the_newest_is_by_step_then_generation_by_number_and_not_by_text():
    order = [build(step=9), build(step=10), build(step=10, generation=2), build(step=100)]
    for shuffled in itertools.permutations(order):
        assert sorted(shuffled, key=lambda manifest: manifest.order) == order


def test_an_entry_is_found_by_its_path():
    manifest = build()
    assert manifest.entry("model.safetensors") is manifest.files[0]
    assert manifest.entry("model") is None


def test_the_bytes_are_ascii_and_end_with_a_line():
    data = build(checkpoint_id="\u00e9/\u6f22").to_bytes()
    assert data.isascii()
    assert data.endswith(b"}\n")


# damage


@relaxed
@given(manifests(), st.data())
def test_damage_of_any_byte_is_refused_or_changes_nothing(manifest, data):
    """The one thing that may pass is a change that JSON itself ignores (`\\u00e9`, `\\u00E9`)."""
    good = manifest.to_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[place]))
    bad = good[:place] + bytes([value]) + good[place + 1 :]
    try:
        again = parse(bad)
    except CheckpointCorruptError:
        return
    assert again.to_bytes() == good


def test_every_single_bit_flip_of_a_plain_manifest_is_refused():
    good = build().to_bytes()
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            with pytest.raises(CheckpointCorruptError, match="here"):
                parse(bytes(bad))


def test_every_truncation_of_a_manifest_is_refused():
    """The last byte is a line end: without it the manifest is still whole."""
    good = build().to_bytes()
    for length in range(len(good) - 1):
        with pytest.raises(CheckpointCorruptError):
            parse(good[:length])


@relaxed
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf{}")
@example(b"null")
@example(b"[]")
@example(b"\x00" * 64)
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(CheckpointCorruptError, match="the manifest here is damaged"):
        parse(data)


@pytest.mark.parametrize("depth", [100, 990, 2_000, 20_000, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_or_read_and_never_ends_the_process(depth, opening, closing):
    nested = opening * depth + "1" + closing * depth
    text = f'{{"format": "{FORMAT}", "format_version": 1, "origin": {nested}}}'
    with pytest.raises(CheckpointCorruptError):
        parse(text.encode())


def test_a_number_too_long_to_be_read_is_damage():
    text = f'{{"format": "{FORMAT}", "format_version": {"9" * 5000}}}'
    with pytest.raises(CheckpointCorruptError):
        parse(text.encode())


def test_a_manifest_of_a_newer_format_says_so_and_what_to_do():
    """Without this, an upgrade of one machine would look like damage on the others."""
    with pytest.raises(FormatVersionError, match=r"upgrade bt_lightning"):
        parse(edited(format_version=FORMAT_VERSION + 1))


def test_parts_of_several_ranks_are_of_version_2_and_all_else_of_version_1():
    """A reader that knows whole tensors only would load a model with holes."""
    entry = FileEntry(path="shards.json", size=0, xxh3_128="0" * 32, blocks=())
    sharded = build(files=(entry,))
    assert json.loads(sharded.to_bytes())["format_version"] == 2
    assert parse(sharded.to_bytes()).is_sharded
    assert json.loads(build().to_bytes())["format_version"] == 1
    foreign = build(files=(entry,), origin={"format": "hf-trainer"})
    assert json.loads(foreign.to_bytes())["format_version"] == 1
    for version, files in ((2, ()), (1, [json.loads(sharded.to_bytes())["files"][0]])):
        with pytest.raises(CheckpointCorruptError, match="format_version"):
            parse(edited(format_version=version, files=list(files)))


def test_a_newer_format_may_hold_anything_and_still_says_that_it_is_newer():
    data = {"format": FORMAT, "format_version": FORMAT_VERSION + 7, "shape": [1, {"x": None}]}
    with pytest.raises(FormatVersionError):
        parse(json.dumps(data).encode())


@pytest.mark.parametrize("version", [0, -1, True, None, "1", 1.0, [1]])
def test_a_format_version_that_is_no_count_is_damage(version):
    with pytest.raises(CheckpointCorruptError, match="format_version") as caught:
        parse(edited(format_version=version))
    assert not isinstance(caught.value, FormatVersionError)


@pytest.mark.parametrize("format_", [None, "other", 1, ""])
def test_json_of_another_format_is_refused(format_):
    with pytest.raises(CheckpointCorruptError, match="expected a JSON object"):
        parse(edited(format=format_))


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("2030-01-02T03:04:05Z", 0),
        ("2030-01-02T03:04:05+00:00", 0),
        ("2030-01-02t08:34:05.5+05:30", 500_000),
        ("2030-01-02 03:04:05,123456789z", 123_456),
        ("2030-01-02T03:04:05.1234Z", 123_400),
    ],
)
def test_every_time_that_the_format_allows_is_read_by_every_python(text, micro):
    """`datetime.fromisoformat` of Python 3.10 refuses a Z, and other than 3 or 6 digits."""
    expected = datetime(2030, 1, 2, 3, 4, 5, micro, tzinfo=timezone.utc)
    assert build(created_at=text).created == expected
    assert parse(build(created_at=text).to_bytes()).created == expected


def test_a_manifest_with_a_time_that_no_reader_takes_is_not_written():
    """Committed and unreadable would be lost."""
    with pytest.raises(ValueError, match="expected a time such as"):
        build(created_at="yesterday").to_bytes()


def test_two_entries_with_one_path_are_refused():
    """The second would be verified against the file of the first."""
    payload = json.loads(build().to_bytes())
    payload["files"] *= 2
    with pytest.raises(CheckpointCorruptError, match="two entries"):
        parse(sealed(payload))


@pytest.mark.parametrize("two", [("a", "a/b"), ("a/b/c", "a"), ("x", "bt_manifest.json/x")])
def test_a_path_that_is_a_file_and_a_folder_is_refused(two):
    """A download could only fail, and say so as if the disk had refused."""
    entry = json.loads(build().to_bytes())["files"][0]
    with pytest.raises(CheckpointCorruptError, match="a file and a folder"):
        parse(edited(files=[{**entry, "path": path} for path in two]))


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a\\b", "bt_manifest.json", 1, None],
)
def test_a_file_outside_the_checkpoint_is_refused_even_with_a_right_digest(path):
    with pytest.raises(CheckpointCorruptError):
        parse(edited_entry(path=path))


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", "a/../b", ".bt_lightning/tmp/x", ""])
def test_an_id_outside_the_root_is_refused_even_with_a_right_digest(name):
    """The id names folders: what is fetched from a store lands at root / id, and what is published
    goes to prefix / id. A manifest that somebody else wrote must not choose another place.
    """
    with pytest.raises(CheckpointCorruptError):
        parse(edited(id=name))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 3},
        {"generation": 0},
        {"generation": True},
        {"generation": 1.0},
        {"step": -1},
        {"step": "20"},
        {"epoch": None},
        {"created_at": 5},
        {"created_at": ""},
        {"created_at": "2030"},
        {"created_at": "2030-01-02T03:04:05"},
        {"created_at": "2030-01-02T03:04:05+24:00"},
        {"created_at": "2030-02-30T03:04:05Z"},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"created_at": "9999-12-31T23:59:59-14:00"},
        {"created_at": "\x1b[31m"},
        {"created_at": "203\u0660-01-02T03:04:05Z"},
        {"files": None},
        {"files": {"a": 1}},
        {"files": [1]},
        {"files": ["model.safetensors"]},
        {"files": [[]]},
        {"metrics": []},
        {"metrics": {"a": "x"}},
        {"metrics": {"a": None}},
        {"metrics": {"a": [1]}},
        {"metrics": {"a": 10**400}},
        {"origin": []},
        {"weights_prefix": None},
        {"resumable": 1},
        {"leftovers": [["a"]]},
        {"leftovers": [["a", 1]]},
        {"leftovers": 7},
        {"leftovers": ["abc"]},
        {"block_bytes": 1},
        {"block_bytes": None},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + repr(next(iter(changes.values())))[:24],
)
def test_a_field_of_a_wrong_kind_is_damage_even_with_a_right_digest(changes):
    """Any other exception would end the listing of all checkpoints, not just leave this one out."""
    with pytest.raises(CheckpointCorruptError, match="here is damaged"):
        parse(edited(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": 0},
        {"size": BLOCK_BYTES + 1},
        {"size": 3.0},
        {"size": True},
        {"blocks": []},
        {"blocks": ["1" * 32, "2" * 32]},
        {"blocks": None},
        {"blocks": "1"},
        {"blocks": [1]},
        {"xxh3_128": "0" * 31},
        {"xxh3_128": "A" * 32},
        {"xxh3_128": "\u0660" * 32},
        {"xxh3_128": None},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + repr(next(iter(changes.values())))[:24],
)
def test_an_entry_of_a_wrong_kind_is_damage_even_with_a_right_digest(changes):
    with pytest.raises(CheckpointCorruptError):
        parse(edited_entry(**changes))


@pytest.mark.parametrize("name", sorted(set(json.loads(build().to_bytes())) - {"digest"}))
def test_a_missing_field_is_damage(name):
    payload = json.loads(build().to_bytes())
    del payload[name]
    with pytest.raises(CheckpointCorruptError):
        parse(sealed(payload))


def test_a_manifest_without_a_digest_is_damage():
    payload = json.loads(build().to_bytes())
    del payload["digest"]
    with pytest.raises(CheckpointCorruptError, match="own digest"):
        parse(json.dumps(payload).encode())


def test_latest_is_our_own_where_there_is_one_and_else_what_can_be_resumed():
    """A model that a script exports at the end is not what the next run resumes from."""

    def saved(name, form, step, minute, *, resumable=True):
        return build(
            checkpoint_id=name,
            step=step,
            created_at=f"2030-01-02T03:{minute:02d}:05+00:00",
            origin={} if form is None else {"format": form},
            resumable=resumable,
        )

    own = saved("checkpoint-5", None, 5, 1)
    trainer = saved("checkpoint-8", "hf-trainer", 8, 2)
    model = saved("model", "hf-pretrained", 9, 3, resumable=False)
    for found, newest in (
        ([own, trainer, model], own),
        ([trainer, model], trainer),
        ([model], model),
        ([], None),
    ):
        assert next(iter(of_newest_fit(found, lambda one: one)), None) == newest
