"""Whatever is typed, and whatever lies in a store: an exit code, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile import arguments, manifests, pickles, safetensors, signed, values
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bt_lightning.cli.app import main
from bt_lightning.cli.explore.checkpoint_rows import checkpoint_rows, metric_names, overview
from bt_lightning.cli.explore.file_preview import file_preview
from bt_lightning.errors import CheckpointError
from bt_lightning.manage.checkpoint_kind import checkpoint_kind
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import StoreCheckpoints
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish

pytestmark = pytest.mark.matrix

HOSTILE = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(HOSTILE, max_examples=100)
CODES = {0, 1, 2, *(kind.exit_code for kind in CheckpointError.__subclasses__()), 13, 21, 22, 27}
PREFIX = job_prefix("p", "j", 0)
COMMANDS = [
    ("checkpoints", "list", "--checkpoint-name"),
    ("checkpoints", "list", "--sort"),
    ("checkpoints", "list", "--project"),
    ("checkpoints", "list", "--job-id"),
    ("checkpoints", "list", "--non-interactive"),
    ("checkpoints", "show"),
    ("checkpoints", "files"),
    ("checkpoints", "verify"),
    ("checkpoints", "diff", "c-1"),
    ("checkpoints", "urls", "--checkpoint-name"),
    ("checkpoints", "protect"),
    ("checkpoints", "protect", "c-1", "--why"),
    ("checkpoints", "protect", "c-1", "--by"),
    ("checkpoints", "unprotect"),
    ("checkpoints", "delete", "--yes"),
    ("checkpoints", "delete", "--yes", "--trash", "1"),
    ("checkpoints", "delete", "--dry-run", "--keep-best"),
    ("checkpoints", "trash", "restore"),
    ("checkpoints", "download"),
    ("checkpoints", "download", "--include"),
    ("checkpoints", "download", "--exclude"),
    ("checkpoints", "export", "--to", "hf", "--output", "out"),
    ("checkpoints", "copy", "c-1", "--to", "copies", "--to-project"),
    ("checkpoints", "copy", "c-1", "--to", "copies", "--to-job-id"),
    ("jobs", "show"),
    ("jobs", "show", "j", "--project"),
    ("jobs", "delete", "--yes"),
    ("projects", "show"),
    ("projects", "delete", "--dry-run"),
]
TAKES_JSON = {"list", "show", "files", "verify", "diff", "delete"}


@pytest.fixture
def place(tmp_path, make, monkeypatch):
    """A store with a checkpoint, and a directory to be in, of which nothing may be left."""
    store = LocalStore(tmp_path / "store")
    made = make(tmp_path / "source", "c-1", 1)
    publish(store, PREFIX, made)
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path, store, made, make


def run(*args):
    done = CliRunner().invoke(main, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in CODES, done.output
    assert "Traceback" not in done.output
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\u2066"}.intersection(done.output)
    return done


def outside(tmp_path):
    """Files that no command of this test may write."""
    ours = (tmp_path / "here" / "deep", tmp_path / "store", tmp_path / "source", tmp_path / "cache")
    return {
        path for path in tmp_path.rglob("*") if not any(o in (path, *path.parents) for o in ours)
    }


@given(st.sampled_from(COMMANDS), arguments, st.booleans())
@HOSTILE
def test_any_word_in_any_place_ends_in_a_known_way(place, command, word, as_json):
    tmp_path, store, made, _ = place
    publish(store, PREFIX, made)  # an earlier word may have deleted it
    before = outside(tmp_path)
    names = command[:3] if command[1] == "trash" else command[:2]
    rest = ("--store", store.name)
    takes_json = command[1] in TAKES_JSON
    if as_json and takes_json:
        rest += ("-o", "json")
    is_value = command[-1].startswith("--") and command[-1] not in {"--yes", "--dry-run"}
    dash = () if is_value and command[-1] != "--non-interactive" else ("--",)
    done = run(*names, *rest, *command[len(names) :], *dash, word)
    if done.exit_code and as_json and takes_json and done.stderr:
        last = [line for line in done.stderr.splitlines() if line.startswith('{"error"')]
        assert not last or json.loads(last[-1])["error"]["exit_code"] == done.exit_code
    assert outside(tmp_path) <= before


@given(st.sampled_from(["--store", "--dir"]), arguments, st.sampled_from(["list", "verify"]))
@FEW
def test_any_word_for_a_store_or_a_directory_ends_in_a_known_way(place, option, word, command):
    before = outside(place[0])
    run("checkpoints", command, option, word)
    assert outside(place[0]) <= before


@given(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b"null", b"[" * 9999]))
@FEW
def test_any_bytes_for_a_manifest_are_left_out_and_named(place, data):
    _, store, _, _ = place
    store.put(f"{PREFIX}/bad/{MANIFEST}", data)
    done = run("checkpoints", "list", "--store", store.name, "-o", "json")
    assert [row["checkpoint_id"] for row in json.loads(done.stdout)["checkpoints"]] == ["c-1"]
    assert "left out" in done.stderr
    assert run("checkpoints", "verify", "--store", store.name).exit_code == 12


OF_MANIFESTS = [
    ("checkpoints", "list", "-o", "json"),
    ("checkpoints", "list", "-o", "csv", "--sort", "metric:val_loss"),
    ("checkpoints", "list", "--non-interactive", "--sort", "step"),
    ("checkpoints", "list", "--all-jobs"),
    ("checkpoints", "show", "bad"),
    ("checkpoints", "show", "bad", "-o", "json"),
    ("checkpoints", "files", "bad"),
    ("checkpoints", "diff", "bad", "c-1"),
    ("checkpoints", "verify", "--quick"),
    ("checkpoints", "verify", "--deep"),
    ("checkpoints", "urls"),
    ("checkpoints", "download", "bad"),
    ("checkpoints", "download", "bad", "--include", "**"),
    ("checkpoints", "export", "bad", "--to", "hf", "--output", "out"),
    ("checkpoints", "copy", "bad", "--to", "copies"),
    ("checkpoints", "delete", "--keep-best", "val_loss", "--dry-run"),
    ("report", "--output", "report.html"),
    ("jobs", "list"),
    ("projects", "list", "-o", "json"),
]


@given(st.data(), st.sampled_from(OF_MANIFESTS))
@HOSTILE
def test_a_manifest_that_says_anything_harms_nobody(place, data, command):
    tmp_path, store, made, _ = place
    written = data.draw(manifests(made.manifest.to_bytes()))
    base = f"{PREFIX}/bad"
    store.put(f"{base}/{MANIFEST}", written)
    for entry in made.manifest.files:
        store.put(f"{base}/{entry.path}", (made.path / entry.path).read_bytes())
    before = outside(tmp_path)
    run(*command, "--store", store.name)
    assert outside(tmp_path) <= before
    source = StoreCheckpoints(store, "p", "j")
    items = source.items()
    assert "c-1" in {item.name for item in items}
    kinds = checkpoint_kind([(source, item) for item in items])
    drawn = [overview(item, items, (), ()) for item in items]
    drawn += [checkpoint_rows(items, kinds, metric) for metric in (None, *metric_names(items))]
    assert all(map(is_printable, drawn))


@pytest.mark.parametrize("command", [("report",), *OF_MANIFESTS[:7]], ids=" ".join)
def test_numbers_and_times_that_are_none_are_shown_all_the_same(place, command):
    _, store, made, _ = place
    facts = ({"step": 10**400}, {"created_at": "\x1b[31m"}, {"metrics": {"a": 1e308, "b": "nan"}})
    for number, changes in enumerate(facts):
        said = {**json.loads(made.manifest.to_bytes()), "id": f"bad{number or ''}", **changes}
        store.put(f"{PREFIX}/{said['id']}/{MANIFEST}", signed(said))
    run(*command, "--store", store.name)
    source = StoreCheckpoints(store, "p", "j")
    assert len(source.items()) == 3
    assert len(source.refused) == 1, "a time that is none makes a manifest that is none"
    items = source.items()
    kinds = checkpoint_kind([(source, item) for item in items])
    assert is_printable(checkpoint_rows(items, kinds, "a"))


_KINDS = ["save", "durable", "published", "began", "ended", "attempt_ended", "store_failed"]
_facts = st.dictionaries(
    st.sampled_from(
        [
            *("at", "began", "number", "step", "checkpoint_id", "checkpoint", "decision"),
            *("failed", "host", "outcome", "exit_code", "signal", "error"),
            *("call_ms", "guard_ms", "copy_ms", "bytes", "write_s", "local_durable_s"),
        ]
    ),
    values | st.sampled_from(["c-1", "skipped", 5, 0.5]),
)


@given(
    st.lists(
        st.builds(
            lambda kind, facts: {"event": kind, "at": 1.7e9, **facts},
            st.sampled_from(_KINDS) | values,
            _facts,
        ),
        max_size=5,
    ),
    st.sampled_from(["status", "report", "trace", "status -o json", "jobs events"]),
)
@example([{"event": "save", "at": 1.7e9}, {"event": "durable", "at": 1.7e9}], "report")
@example([{"event": "save", "at": 1.7e9, "call_ms": 1.7e308, "guard_ms": 1.7e308}], "report")
@example([{"event": "save", "at": 1.7e9, "call_ms": 1.7e308, "guard_ms": 1.7e308}], "status")
@example([{"event": "began", "at": 1.7e9, "step": 10**400}] * 2, "report")
@example([{"event": "began", "at": 1.7e9, "step": 10**400}] * 2, "status -o json")
@FEW
def test_a_run_may_have_noted_anything(place, events, command):
    root = place[2].path.parent
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (root / ".bt_lightning").mkdir(exist_ok=True)
    (root / ".bt_lightning" / "events.jsonl").write_text(lines)
    run(*command.split(), "--dir", str(root))


def is_printable(rows):
    """Whether no line of a pane has what a terminal may act on, in a narrow pane and a wide one."""
    return all(
        rows.draw(index, width, "").plain.isprintable()
        for width in (30, 120)
        for index in range(len(rows))
    )


def look_into(root, made, command):
    """Run a command that reads a file of tensors; and show it as the explorer does."""
    run("checkpoints", *command, "--dir", str(root))
    source = DirectoryCheckpoints(Path(root))
    (item,) = [item for item in source.items() if item.name == "c"]
    try:
        rows = file_preview(source, item, made.manifest.files[0])
    except CheckpointError:
        return
    assert is_printable(rows)


OF_TENSORS = [
    ("show", "c"),
    ("show", "c", "--tensors"),
    ("show", "c", "-o", "json"),
    ("show", "c", "-o", "csv"),
    ("diff", "c", "other"),
    ("diff", "other", "c", "-o", "csv"),
    ("verify", "--deep"),
]


@given(safetensors(), st.sampled_from(OF_TENSORS))
@HOSTILE
def test_any_header_of_safetensors_is_shown_or_refused(place, data, command):
    tmp_path, _, _, make = place
    root = tmp_path / "here" / "deep" / "ck"
    make(root, "other", 2, files={"m.safetensors": b"\x02" + b"\0" * 7 + b"{}"})
    look_into(root, make(root, "c", 1, files={"m.safetensors": data}), command)


@given(
    pickles() | st.binary(max_size=200),
    st.sampled_from(["m.ckpt", "m.pt", "m.bin", ".metadata"]),
    st.sampled_from(OF_TENSORS[:4] + OF_TENSORS[-1:]),
)
@HOSTILE
def test_any_pickle_is_shown_or_refused_and_none_of_its_code_runs(place, data, name, command):
    tmp_path, _, _, make = place
    root = tmp_path / "here" / "deep" / "ck"
    look_into(root, make(root, "c", 1, files={name: data}), command)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4), st.sampled_from(OF_TENSORS[:4]))
@FEW
def test_any_configuration_of_an_adapter_is_shown_or_left_out(place, said, command):
    tmp_path, _, _, make = place
    root = tmp_path / "here" / "deep" / "ck"
    data = json.dumps({"base_model_name_or_path": said, **said}).encode()
    make(root, "c", 1, files={"adapter_config.json": data})
    run("checkpoints", *command, "--dir", str(root))
    for form in ("json", "csv", "cli-table"):
        run("checkpoints", "list", "--dir", str(root), "-o", form)
