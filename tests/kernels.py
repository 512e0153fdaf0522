"""A kernel, or a file system, that refuses some calls; and a process without `/proc`.

A filter of seccomp(2) answers in the place of the kernel. It is for the process that calls this,
and its children. Source: seccomp(2), <linux/filter.h>.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS = {
    "x86_64": (
        0xC000003E,
        {"link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "renameat2": 316},
        257,
    ),
    "aarch64": (0xC00000B7, {"linkat": 37, "symlinkat": 36, "renameat2": 276}, 56),
}
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARCH_AT, _FLAGS_OF_OPENAT_AT, _FLAGS_OF_RENAME_AT = 0, 4, 32, 48
_TMPFILE_BIT = 0o20000000


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def refuse(*, links: bool = False, symlinks: bool = False, modern: bool = False) -> None:
    """From now on link(2) or symlink(2) say EPERM, and flags of renameat2(2), O_TMPFILE EINVAL.

    As exFAT and some FUSE and SMB file systems do. Call it in a child.
    """
    arch, numbers, openat = _NUMBERS[platform.machine()]
    refused = [n for n in numbers if n.startswith("link") and links]
    refused += [n for n in numbers if n.startswith("symlink") and symlinks]
    program = [
        _instruction(_LOAD, _ARCH_AT),
        _instruction(_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _ALLOW),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for name in refused:
        program += [
            _instruction(_EQUAL, numbers[name], 0, 1),
            _instruction(_RETURN, _REFUSE | errno.EPERM),
        ]
    if modern:
        program += [
            _instruction(_EQUAL, numbers["renameat2"], 0, 4),
            _instruction(_LOAD, _FLAGS_OF_RENAME_AT),
            _instruction(_EQUAL, 0, 0, 1),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _REFUSE | errno.EINVAL),
            _instruction(_EQUAL, openat, 0, 3),
            _instruction(_LOAD, _FLAGS_OF_OPENAT_AT),
            _instruction(_ANY_BIT, _TMPFILE_BIT, 0, 1),
            _instruction(_RETURN, _REFUSE | errno.EOPNOTSUPP),
        ]
    program.append(_instruction(_RETURN, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if prctl(22, 2, ctypes.create_string_buffer(whole), 0, 0):  # PR_SET_SECCOMP, a filter
        code_ = ctypes.get_errno()
        raise OSError(code_, os.strerror(code_))


def without_proc() -> None:
    """From now on nothing is mounted at `/proc`. Call it in a child, as root."""
    detach = 2
    _with_mounts_of_its_own(lambda libc: libc.umount2(b"/proc", detach))


def mount_there(folder: str, there: str) -> None:
    """From now on `folder` is seen at `there`. Call it in a child, as root."""
    bind, place = 0x1000, os.fsencode(there)
    _with_mounts_of_its_own(lambda libc: libc.mount(os.fsencode(folder), place, None, bind, None))


def _with_mounts_of_its_own(change: Callable[[ctypes.CDLL], int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    private, new_mounts = 0x44000, 0x20000
    for done in (
        lambda: libc.unshare(new_mounts),
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: change(libc),
    ):
        if done():
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


KERNELS: dict[str, Callable[[], None]] = {
    "no links": lambda: refuse(links=True),
    "no links, nothing modern": lambda: refuse(links=True, modern=True),
    "no /proc": without_proc,
    "no /proc, no links": lambda: (without_proc(), refuse(links=True))[0],
}


def can(kernel: str) -> bool:
    """Whether this machine lets a child have such a kernel."""
    code = "import sys; from tests.kernels import KERNELS; KERNELS[sys.argv[1]]()"
    return not subprocess.run([sys.executable, "-c", code, kernel], check=False).returncode
