"""Crashes at every call, power cuts, full disks, dead and live owners: old or new, whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bt_lightning
from bt_lightning.errors import CheckpointNotFoundError, DirectoryUnusableError
from bt_lightning.localdir import atomic_directory, rename_noreplace
from bt_lightning.localdir.atomic_directory import (
    delete_directory,
    publish_directory,
    sweep,
    sweep_trash,
    temporaries,
    temporary,
    tidy,
    trash_dir,
)
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.localdir.rename_noreplace import rename_new
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, MANIFEST

NAME = "checkpoint-1"
FILES = {"model.safetensors": b"weights", "sub/state.bin": b"state"}


def make(root, name=NAME, generation=1, files=None):
    def describe(entries):
        return Manifest(
            checkpoint_id=name,
            generation=generation,
            step=1,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    files = FILES if files is None else files
    pieces = {path: (lambda data=data: [data + b"%d" % generation]) for path, data in files.items()}
    return commit(root / name, root, pieces, describe)


def generation_at(final) -> int | None:
    """What a reader finds: a whole generation, or nothing. Damage raises."""
    try:
        return verify(final).generation
    except CheckpointNotFoundError:
        return None


def files_under(root) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def left_over(root) -> list[Path]:
    return [*temporaries(root).glob("*"), *trash_dir(root).glob("*")]


WHOLE = {f"{NAME}/{path}" for path in (*FILES, MANIFEST)}


class Crash(BaseException):
    """Not an `Exception`: nothing may handle the death of a process."""


class Mortal:
    """Stops this process's dealings with the disk before call number `last`.

    As after a real death, nothing later is carried out, no `finally` cleans up, and the kernel
    closes what was open, which drops the locks.
    """

    CALLS = ("open", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync")

    def __init__(self, last: int) -> None:
        self.left = last
        self.calls: list[str] = []
        self._open: set[int] = set()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self):
        for name in self.CALLS:
            self._guard(os, name)
        self._guard(rename_noreplace, "renameat2")
        close = os.close
        self._close = close

        def close_and_forget(descriptor):
            if self.left < 0:
                raise Crash
            self._open.discard(descriptor)
            close(descriptor)

        self._patch.setattr(os, "close", close_and_forget)
        return self

    def _guard(self, module, name) -> None:
        real = getattr(module, name)

        def guarded(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Crash
            self.calls.append(name)
            result = real(*args, **kwargs)
            if name == "open":
                self._open.add(result)
            return result

        self._patch.setattr(module, name, guarded)

    def __exit__(self, kind, error, trace) -> bool:
        self._patch.undo()
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                self._close(descriptor)
        return kind is Crash


def deaths(tmp_path, prepare, act):
    """Run `act(root)` on fresh roots, dying before call 0, 1, 2, ... until it runs through."""
    for last in itertools.count():
        root = tmp_path / str(last)
        root.mkdir()
        prepare(root)
        finished = False
        with Mortal(last) as mortal:
            act(root)
            finished = True
        yield root, mortal.calls
        shutil.rmtree(root)
        if finished:
            assert last > 3, "nothing was patched: this test tests nothing"
            return


@pytest.fixture(params=["exchange", "no exchange"])
def kernel(request, monkeypatch):
    """With renameat2, and as on a kernel or file system that does not know it."""
    if request.param == "no exchange":
        monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)
    return request.param


# deaths


def test_a_death_in_a_first_commit_leaves_all_of_it_or_nothing(tmp_path, kernel):
    for root, calls in deaths(tmp_path, lambda _: None, make):
        seen = generation_at(root / NAME)
        assert seen in {None, 1}, calls
        assert sweep(root) == []
        assert generation_at(root / NAME) == seen
        assert files_under(root) == (WHOLE if seen else set()), calls
        assert left_over(root) == [], calls
    assert seen == 1


def test_a_death_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_whole(tmp_path, kernel):
    """Invariant 2. Without an exchange of names there is a moment with neither; sweep ends it."""
    moments = 0
    for root, calls in deaths(tmp_path, make, lambda root: make(root, generation=2)):
        seen = generation_at(root / NAME)
        assert seen in ({1, 2} if kernel == "exchange" else {None, 1, 2}), calls
        restored = sweep(root)
        assert restored == ([root / NAME] if seen is None else []), calls
        assert generation_at(root / NAME) == (seen or 1), calls
        assert files_under(root) == WHOLE, calls
        assert left_over(root) == [], calls
        moments += seen is None
    assert seen == 2
    assert (moments > 0) == (kernel == "no exchange")


def test_a_death_in_the_sweep_after_a_death_is_repaired_by_the_next_sweep(tmp_path, monkeypatch):
    """Invariant 7: the repair may be killed as well."""
    monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)

    def die_between_two_renames(root):
        make(root)
        renames = 0
        real = os.rename

        def second_is_the_last(*args):
            nonlocal renames
            renames += 1
            if renames >= 2:  # the dead do nothing more
                raise Crash
            real(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rename", second_is_the_last)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            with contextlib.suppress(Crash):
                make(root, generation=2)
        assert generation_at(root / NAME) is None

    for root, calls in deaths(tmp_path, die_between_two_renames, sweep):
        assert generation_at(root / NAME) in {None, 1}, calls
        sweep(root)
        assert generation_at(root / NAME) == 1, calls
        assert files_under(root) == WHOLE, calls
        assert left_over(root) == [], calls


def test_a_death_while_a_checkpoint_is_deleted_leaves_all_of_it_or_nothing(tmp_path):
    """Half a checkpoint that still has its manifest would be offered for a resume."""
    for root, calls in deaths(tmp_path, make, lambda root: delete_directory(root / NAME, root)):
        seen = generation_at(root / NAME)
        assert seen in {None, 1}, calls
        sweep_trash(root)
        assert sweep(root) == [], calls
        assert generation_at(root / NAME) == seen, "a deleted checkpoint came back"
        assert files_under(root) == (WHOLE if seen else set()), calls
        assert left_over(root) == [], calls
    assert seen is None


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_death_while_a_file_or_a_link_is_replaced_leaves_it_or_the_new_checkpoint(tmp_path, kind):
    """A stock `last.ckpt` may lie there: it is not ours to lose before ours is in its place."""

    def prepare(root):
        if kind == "file":
            (root / NAME).write_bytes(b"a stock checkpoint")
        else:
            make(root, "other", generation=7)
            (root / NAME).symlink_to("other" if kind == "link" else "nowhere")

    for root, calls in deaths(tmp_path, prepare, lambda root: make(root, generation=2)):
        sweep(root)
        final = root / NAME
        if final.is_symlink():
            assert kind != "file"
        elif final.is_file():
            assert final.read_bytes() == b"a stock checkpoint"
        else:
            assert generation_at(final) == 2, calls
        if kind != "file":
            assert generation_at(root / "other") == 7
        assert left_over(root) == [], calls


def test_a_death_in_rename_new_leaves_no_other_name_than_the_two(tmp_path, kernel):
    def prepare(root):
        (root / "one").write_bytes(b"1")

    for root, _ in deaths_of_few_calls(tmp_path, prepare):
        assert files_under(root) <= {"one", "other"}
        assert files_under(root)


def deaths_of_few_calls(tmp_path, prepare):
    for last in range(4):
        root = tmp_path / str(last)
        root.mkdir()
        prepare(root)
        with Mortal(last) as mortal:
            rename_new(root / "one", root / "other")
        yield root, mortal.calls


# failures that are raised, not deaths


def failing(patch, number: int, code: int, names=("rename", "fsync", "replace")) -> list[str]:
    """Let call `number` fail with `code`, once; return the list that fills with the calls."""
    calls: list[str] = []
    for name in names:
        real = getattr(os, name)

        def call(*args, _name=name, _real=real, **kwargs):
            calls.append(_name)
            if len(calls) - 1 == number:
                raise OSError(code, os.strerror(code))
            return _real(*args, **kwargs)

        patch.setattr(os, name, call)
    return calls


def test_an_error_at_any_call_of_a_commit_is_raised_and_leaves_the_old_or_the_new(tmp_path, kernel):
    """The process lives on after an EIO: what was there must be there now, not after a restart."""
    for number in itertools.count():
        root = tmp_path / str(number)
        root.mkdir()
        make(root)
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, number, errno.EIO)
            try:
                make(root, generation=2)
            except OSError as error:
                raised = error.errno
            else:
                raised = None
        if number >= len(calls):
            assert raised is None
            assert number > 3
            return
        assert raised == errno.EIO, calls[number]
        assert generation_at(root / NAME) in {1, 2}, calls
        sweep(root)
        assert generation_at(root / NAME) in {1, 2}, calls
        assert left_over(root) == [], calls


def test_an_error_before_the_name_is_given_leaves_the_old_checkpoint(tmp_path):
    make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, 0, errno.ENOSPC, ("fsync",))
        with pytest.raises(OSError, match="No space") as caught:
            make(tmp_path, generation=2)
    assert caught.value.errno == errno.ENOSPC
    assert generation_at(tmp_path / NAME) == 1
    assert left_over(tmp_path) == []


def test_an_error_while_the_pieces_are_made_leaves_nothing(tmp_path):
    def pieces():
        yield b"half"
        msg = "the tensor is gone"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="gone"):
        commit(tmp_path / NAME, tmp_path, {"a": lambda: [b"x"], "b": pieces}, lambda _: None)
    assert files_under(tmp_path) == set()
    assert left_over(tmp_path) == []


# power cuts


def test_everything_is_durable_before_it_gets_its_name(tmp_path, monkeypatch):
    """After a power cut only what was synced is there. A name that came first would be a manifest
    over files of zeros: committed, and gone. Invariant 1.
    """
    synced: list[str] = []
    named: list[int] = []
    real_sync, real_rename = os.fsync, os.rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real_sync(fd)),
    )
    monkeypatch.setattr(
        os, "rename", lambda one, other: (named.append(len(synced)), real_rename(one, other))
    )
    paths = {"model.safetensors": b"a", "one/two/three/state.bin": b"b"}
    make(tmp_path, "folder/checkpoint-1", files=paths)
    (moment,) = named
    built = Path(next(path for path in synced if path.endswith("model.safetensors"))).parent
    before = {os.path.relpath(path, built) for path in synced[:moment]}
    assert before >= {"model.safetensors", "one/two/three/state.bin", MANIFEST}
    assert before >= {".", "one", "one/two", "one/two/three"}, "a folder's names are not durable"
    assert set(synced[moment:]) >= {str(tmp_path / "folder"), str(tmp_path)}
    manifest = synced.index(f"{built}/{MANIFEST}")
    assert all(synced.index(f"{built}/{path}") < manifest for path in paths)


# owners


def python(code: str, *args: str, **kwargs) -> subprocess.Popen:
    home = str(Path(bt_lightning.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        env={**os.environ, "PYTHONPATH": home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
    )


OWNER = """
    import sys
    from pathlib import Path
    from bt_lightning.localdir.atomic_directory import temporary
    with temporary(Path(sys.argv[1])) as path:
        (path / "half").write_bytes(b"x" * 1000)
        print(path, flush=True)
        sys.stdin.read()
"""


def test_a_sweep_spares_what_a_live_process_writes_and_takes_what_a_killed_one_left(tmp_path):
    """Real processes and real locks: a pid file would be wrong after a reboot or in a container."""
    with python(OWNER, str(tmp_path)) as live, python(OWNER, str(tmp_path)) as dead:
        lives, dies = Path(live.stdout.readline().strip()), Path(dead.stdout.readline().strip())
        assert sweep(tmp_path) == []
        assert (lives / "half").exists()
        assert (dies / "half").exists()
        dead.send_signal(signal.SIGKILL)
        dead.wait(10)
        assert dies.exists()
        sweep(tmp_path)
        assert (lives / "half").exists()
        assert not dies.exists()
        live.stdin.close()
        assert live.wait(10) == 0
    assert left_over(tmp_path) == []


def test_a_sweep_spares_what_this_process_writes(tmp_path):
    with temporary(tmp_path) as path:
        sweep(tmp_path)
        assert path.is_dir()
    assert left_over(tmp_path) == []


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from bt_lightning.localdir import rename_noreplace
    from bt_lightning.localdir.atomic_directory import publish_directory, temporary
    root = Path(sys.argv[1])
    rename_noreplace.renameat2 = lambda *_: False
    renames = 0
    rename = os.rename
    def last(*args):
        global renames
        renames += 1
        if renames == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args)
    os.rename = last
    with temporary(root) as built:
        (built / "new").write_text("new")
        publish_directory(built, root / "a" / "checkpoint-1", root)
"""


def test_a_process_killed_between_two_renames_is_repaired_by_the_next_start(tmp_path):
    """The one moment where a committed checkpoint has no name; a real SIGKILL in it."""
    make(tmp_path, "a/checkpoint-1")
    with python(KILLED, str(tmp_path)) as process:
        assert process.wait(20) == -signal.SIGKILL
    final = tmp_path / "a" / "checkpoint-1"
    assert generation_at(final) is None
    assert sweep(tmp_path) == [final]
    assert generation_at(final) == 1
    assert left_over(tmp_path) == []
    assert sweep(tmp_path) == []


def test_a_name_taken_since_is_not_overwritten_by_what_waits_in_the_trash(tmp_path, monkeypatch):
    monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)
    make(tmp_path)
    waiting = atomic_directory._move_to_trash(tmp_path / NAME, tmp_path)
    assert waiting.exists()
    make(tmp_path, generation=5)
    assert sweep(tmp_path) == []
    assert generation_at(tmp_path / NAME) == 5
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("note", ["../../escaped", "/tmp/escaped", "", ".bt_lightning/x", "a\x00b"])
def test_a_note_in_the_trash_cannot_name_a_place_outside_the_root(tmp_path, note):
    root = tmp_path / "one" / "two"
    waiting = trash_dir(root) / "replaced-abc"
    (waiting / "content").mkdir(parents=True)
    (waiting / "content" / "file").touch()
    (waiting / "origin").write_text(note)
    assert sweep(root) == []
    assert files_under(tmp_path) == set()


def test_rubbish_of_any_kind_in_the_dot_folder_is_swept(tmp_path):
    """Nothing of this package puts plain files there, but a person or a sync may."""
    for folder in (temporaries(tmp_path), trash_dir(tmp_path)):
        (folder / "x" / "y").mkdir(parents=True)
        (folder / "file").touch()
        (folder / "link").symlink_to("nowhere")
    sweep(tmp_path)
    assert left_over(tmp_path) == []


FULL = """
    import resource, sys
    from pathlib import Path
    from bt_lightning.localdir.commit import commit
    root = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    files = {"small": lambda: [b"x" * 1000], "big": lambda: [b"y" * 700_000] * 3}
    try:
        commit(root / "checkpoint-1", root, files, lambda entries: None)
    except OSError as error:
        print(error.errno)
"""


def test_a_disk_that_is_full_half_way_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    """A real limit of the kernel; a mocked `write` would not show a short write first."""
    make(tmp_path)
    with python(FULL, str(tmp_path)) as process:
        out, _ = process.communicate(timeout=20)
    assert out.strip() == str(errno.EFBIG)
    assert generation_at(tmp_path / NAME) == 1
    assert files_under(tmp_path) == WHOLE
    assert left_over(tmp_path) == []


# what stands in the way


def test_a_commit_over_a_checkpoint_takes_all_its_files_away(tmp_path, kernel):
    make(tmp_path, files={"model.safetensors": b"1", "old/only": b"2"})
    make(tmp_path, generation=2, files={"model.safetensors": b"3"})
    assert generation_at(tmp_path / NAME) == 2
    assert files_under(tmp_path) == {f"{NAME}/model.safetensors", f"{NAME}/{MANIFEST}"}


def test_a_commit_over_a_plain_folder_replaces_it_whole(tmp_path, kernel):
    (tmp_path / NAME / "rubbish").mkdir(parents=True)
    make(tmp_path)
    assert files_under(tmp_path) == WHOLE


def test_a_commit_over_a_link_replaces_the_link_and_not_what_it_names(tmp_path, kernel):
    make(tmp_path, "other", generation=7)
    (tmp_path / NAME).symlink_to("other")
    make(tmp_path)
    assert not (tmp_path / NAME).is_symlink()
    assert (generation_at(tmp_path / NAME), generation_at(tmp_path / "other")) == (1, 7)


def test_a_commit_over_a_file_replaces_the_file(tmp_path, kernel):
    (tmp_path / NAME).write_text("x")
    make(tmp_path)
    assert files_under(tmp_path) == WHOLE


def test_a_file_in_place_of_the_parent_directory_is_an_error_and_stays(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(OSError) as caught:
        make(tmp_path, "runs/checkpoint-1")
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}
    assert (tmp_path / "runs").read_text() == "mine"
    assert left_over(tmp_path) == []


def test_a_directory_that_is_not_there_counts_as_deleted(tmp_path):
    delete_directory(tmp_path / "nowhere", tmp_path)
    assert left_over(tmp_path) == []


def test_a_link_that_is_deleted_leaves_what_it_names(tmp_path):
    make(tmp_path)
    (tmp_path / "last").symlink_to(NAME)
    delete_directory(tmp_path / "last", tmp_path)
    assert files_under(tmp_path) == WHOLE


def test_what_a_dead_process_was_deleting_goes_while_replacements_wait_for_the_sweep(tmp_path):
    """`sweep_trash` runs beside live writers: what they replace may have to go back."""
    make(tmp_path, "replaced")
    atomic_directory._move_to_trash(tmp_path / "replaced", tmp_path)
    make(tmp_path, "deleted")
    (tmp_path / "deleted").rename(trash_dir(tmp_path) / "deleted-abc")
    sweep_trash(tmp_path)
    assert [path.name.partition("-")[0] for path in left_over(tmp_path)] == ["replaced"]
    assert sweep(tmp_path) == [tmp_path / "replaced"]


def test_the_dot_folder_goes_when_it_is_empty_and_only_then(tmp_path):
    make(tmp_path)
    with temporary(tmp_path):
        tidy(tmp_path)
        assert temporaries(tmp_path).is_dir()
    tidy(tmp_path)
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_rename_new_gives_a_free_name_and_refuses_a_taken_one(tmp_path, kernel):
    (tmp_path / "one").write_text("1")
    rename_new(tmp_path / "one", tmp_path / "other")
    assert files_under(tmp_path) == {"other"}
    (tmp_path / "one").write_text("2")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "1"
    assert (tmp_path / "one").read_text() == "2"


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_a_directory_gets_a_free_name_and_takes_the_place_of_nothing(tmp_path, kernel, taken):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "f").touch()
    rename_new(tmp_path / "one", tmp_path / "other")
    assert files_under(tmp_path) == {"other/f"}
    mine = tmp_path / "mine" if taken == "file" else tmp_path / "mine" / "of-somebody"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("1")
    with temporary(tmp_path) as built, pytest.raises(FileExistsError):
        publish_directory(built, tmp_path / "mine", tmp_path, replace=False)
    assert mine.read_text() == "1"


def test_publishing_onto_a_free_name_below_new_folders_makes_them(tmp_path, kernel):
    with temporary(tmp_path) as built:
        (built / "f").touch()
        publish_directory(built, tmp_path / "a/b/c", tmp_path)
    assert files_under(tmp_path) == {"a/b/c/f"}


# the root


def test_a_usable_root_is_made_and_keeps_no_probe(tmp_path):
    root = check_root(tmp_path / "a" / "b")
    assert root.is_dir()
    assert files_under(tmp_path) == set()
    assert left_over(root) == []


def test_what_a_killed_check_left_goes_with_the_next_one(tmp_path):
    root = check_root(tmp_path)
    left = root / DOT_DIR / "tmp" / ("0" * 32)
    left.mkdir(parents=True)
    (left / "probe").write_text("x")
    with temporary(root) as living:
        check_root(root)
        assert living.is_dir()
    assert not left.exists()


@pytest.mark.parametrize("place", ["root", "parent", "dot folder"])
def test_a_file_in_place_of_a_directory_is_named_with_what_to_do(tmp_path, place):
    root = tmp_path / "ckpt"
    if place == "dot folder":
        root.mkdir()
        (root / DOT_DIR).write_text("x")
    else:
        root.write_text("x")
    if place == "parent":
        root /= "below"
    with pytest.raises(DirectoryUnusableError) as caught:
        check_root(root)
    assert str(root) in str(caught.value)
    assert "move it away" in str(caught.value)
    assert "BT_CHECKPOINT_DIR" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota of this user is used up"),
        (errno.ESTALE, "mount it again"),
        (errno.EACCES, "right to write"),
        (errno.EIO, "check the volume"),
    ],
)
def test_a_root_that_cannot_be_written_is_refused_with_a_hint(tmp_path, code, words):
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, 0, code, ("mkdir",))
        with pytest.raises(DirectoryUnusableError, match=words):
            check_root(tmp_path / "new")


def test_a_file_system_without_locks_counts_as_free(tmp_path, monkeypatch):
    """Some network volumes have none: one writer to a directory is the rule there."""
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    make(tmp_path)
    assert generation_at(tmp_path / NAME) == 1


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    import fcntl

    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="broken"):
        make(tmp_path)
    assert left_over(tmp_path) == []


# modes


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_the_mode_of_what_is_committed_is_as_the_umask_says(tmp_path, umask, kernel):
    """Others of the group, a pod of another user, or a server could not read it otherwise."""
    before = os.umask(umask)
    try:
        make(tmp_path, "run/checkpoint-1")
        make(tmp_path, "run/checkpoint-1", generation=2)
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert found
    for path, mode in found.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path
