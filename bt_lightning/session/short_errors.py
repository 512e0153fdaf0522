"""Errors of set-up as one line: what is wrong, and the line of the user's script that met it.

They say what to do; thirty lines of Lightning around the call of `fit` would hide that. Errors of
any other time, and of other packages, keep their traceback.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointError
from bt_lightning.session.call_site import place_in_script
from bt_lightning.session.visible_log import NAME

if TYPE_CHECKING:
    from types import TracebackType

_PACKAGE: Final = str(Path(__file__).parents[1])
_SET_UP: Final = frozenset({("callback.py", "setup"), ("rank_session.py", "open")})
"""Files of this package and functions in them, in which nothing is trained yet."""


def shorten_errors(level: str | None) -> None:
    """Print errors of set-up that nobody catches as one line; called where a session is made.

    Idempotent. At the level DEBUG, of `BT_LOG_LEVEL` (`level`) or of the package's logger, the
    traceback is printed instead. Another package's `sys.excepthook`, which may report errors to
    somebody, is left as it is.
    """
    if sys.excepthook is not sys.__excepthook__:
        return
    before = sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        debugs = level == "DEBUG" or logging.getLogger(NAME).isEnabledFor(logging.DEBUG)
        if debugs or not isinstance(error, CheckpointError) or not _is_of_set_up(trace):
            before(kind, error, trace)
            return
        where = place_in_script(trace)
        print(  # noqa: T201 - in place of the interpreter's own text
            f"{NAME}: {f'{where}: ' if where else ''}{kind.__name__}: {error}"
            " (BT_LOG_LEVEL=DEBUG shows the traceback)",
            file=sys.stderr,
        )

    sys.excepthook = hook


def _is_of_set_up(trace: TracebackType | None) -> bool:
    while trace is not None:
        code = trace.tb_frame.f_code
        path = Path(code.co_filename)
        if (path.name, code.co_name) in _SET_UP and str(path).startswith(_PACKAGE):
            return True
        trace = trace.tb_next
    return False
