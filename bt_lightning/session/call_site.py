"""Where in the user's script a call is made, and which script it is."""

from __future__ import annotations

import linecache
import os
import site
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

_MOST_FRAMES: Final = 32
_MOST_TEXT: Final = 200
_OWN: Final = str(Path(__file__).parents[1])


def call_site() -> str:
    """File and function of the user's that make this call, and a digest of the lines that led here.

    The digest is of file, function and text of each line, so that an edit elsewhere in a file
    changes nothing; the text itself may hold a secret. Library code is left out. Empty where there
    is no other: in a process that was spawned.
    """
    libraries = _libraries()
    frames = [f for f in _frames() if not f.f_code.co_filename.startswith(libraries)]
    if not frames:
        return ""
    hasher = xxhash.xxh3_64()
    for frame in frames[:_MOST_FRAMES]:
        line = f"{_name(frame)}:{frame.f_code.co_name}:{_text(frame)}\n"
        hasher.update(line.encode(errors="surrogatepass"))
    where = f"{_name(frames[0])}:{frames[0].f_code.co_name}"
    return f"{where[:_MOST_TEXT]} {hasher.hexdigest()}"


def program_digest(arguments: str = "") -> str:
    """Digest of the main script's bytes and its arguments; empty where there is no script.

    `arguments`: what they mean, if that is known; else they are taken as they are.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not main:
        return ""
    try:
        code = Path(main).read_bytes()
    except OSError:
        return ""
    said = arguments or "\0".join(map(str, sys.argv[1:]))
    return xxhash.xxh3_64_hexdigest(code + b"\0" + said.encode(errors="surrogateescape"))


def place_in_script(trace: TracebackType | None) -> str:
    """File and line of the user's that a traceback went through last; empty if through none."""
    libraries, found = _libraries(), ""
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(libraries):
            found = f"{_name(trace.tb_frame)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented
    while frame is not None:
        yield frame
        frame = frame.f_back


def _libraries() -> tuple[str, ...]:
    known = sysconfig.get_paths()
    folders = {known["stdlib"], known["platstdlib"], known["purelib"], known["platlib"], _OWN}
    folders.update(site.getsitepackages(), {site.getusersitepackages()})
    folders.update(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    return ("<frozen", *(folder.rstrip(os.sep) + os.sep for folder in sorted(folders)))


def _name(frame: FrameType) -> str:
    path = frame.f_code.co_filename
    is_cell = path.startswith("<ipython") or "ipykernel" in path
    return "<cell>" if is_cell else os.path.basename(path)  # noqa: PTH119 - maybe "<stdin>"


def _text(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals).strip()
