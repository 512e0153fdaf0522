"""Errors cross process borders, are caught as builtins, and end the command line with a code."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

from bt_lightning import errors
from bt_lightning.errors import CheckpointError, DirectoryUnusableError

BUILTINS = {
    "CheckpointNotFoundError": FileNotFoundError,
    "CheckpointExistsError": FileExistsError,
    "CheckpointCorruptError": ValueError,
    "FormatVersionError": errors.CheckpointCorruptError,
    "CheckpointMismatchError": RuntimeError,
    "ResumeMismatchError": RuntimeError,
    "UnsafeLoadError": pickle.UnpicklingError,
    "UnsupportedStateError": TypeError,
    "InvalidSettingError": ValueError,
    "ConfigNotFoundError": FileNotFoundError,
    "JobRunningError": RuntimeError,
    "ReadOnlyError": PermissionError,
    "CheckpointProtectedError": PermissionError,
    "DirectoryUnusableError": OSError,
    "DirectoryFullError": errors.DirectoryUnusableError,
    "TornSnapshotError": RuntimeError,
    "ArenaTooLargeError": MemoryError,
    "SaveTimeoutError": TimeoutError,
    "RankLostError": RuntimeError,
    "PartsMissingError": RuntimeError,
    "StoreError": OSError,
    "StoreTransientError": errors.StoreError,
    "LeaseHeldError": errors.StoreTransientError,
    "StorePermanentError": errors.StoreError,
    "UploadFailedError": RuntimeError,
    "WorkerDiedError": ChildProcessError,
    "DrainTimeoutError": TimeoutError,
    "RanksApartError": TimeoutError,
}
ALL = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type)),
    key=lambda kind: kind.__name__,
)


def test_every_error_of_the_module_is_in_the_table_of_this_test():
    assert {kind.__name__ for kind in ALL} == {"CheckpointError", *BUILTINS}


@pytest.mark.parametrize("kind", ALL)
def test_an_error_crosses_a_process_border_unchanged(kind):
    """A failure would show users of `UploadFailedError` a `TypeError` of pickle instead."""
    error = kind("the disk is full: 'a', \u00e9\nsecond line")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.message == error.message
        assert again.args == error.args


@pytest.mark.parametrize("kind", ALL)
def test_the_text_of_an_error_is_its_message_and_nothing_else(kind):
    """An `OSError` base would print `[Errno None]`, a `KeyError` base would print quotes."""
    assert str(kind("what to do")) == "what to do"


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items())
def test_an_error_is_caught_as_the_builtin_it_stands_for(name, builtin):
    kind = getattr(errors, name)
    assert issubclass(kind, builtin)
    assert issubclass(kind, CheckpointError)


def test_a_damaged_checkpoint_is_not_caught_as_a_missing_one():
    """Callers start afresh when nothing is there; damage must never be taken for that."""
    assert not issubclass(errors.CheckpointCorruptError, FileNotFoundError)
    assert not issubclass(errors.CheckpointNotFoundError, ValueError)
    assert not issubclass(errors.StorePermanentError, errors.StoreTransientError)
    assert not issubclass(errors.StoreTransientError, errors.StorePermanentError)


def test_exit_codes_are_unique_and_none_says_success():
    codes = [kind.exit_code for kind in ALL]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


def test_a_wrong_setting_ends_like_a_wrong_option_of_the_command_line():
    """2 is what click ends with for usage errors."""
    assert errors.InvalidSettingError.exit_code == 2
    assert CheckpointError.exit_code == 1


@pytest.mark.parametrize("name", ["CheckpointError", *BUILTINS])
def test_the_package_offers_every_error_by_name(name):
    import bt_lightning

    assert getattr(bt_lightning, name) is getattr(errors, name)


def test_what_the_disk_answered_comes_along_from_another_process():
    error = DirectoryUnusableError("refused")
    error.errno = errno.EFBIG
    again = pickle.loads(pickle.dumps(error))
    assert (again.errno, str(again), vars(again)) == (errno.EFBIG, "refused", vars(error))
