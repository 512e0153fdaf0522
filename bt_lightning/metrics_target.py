"""Where the metrics of a run go, from two environment variables. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK: Final = "127.0.0.1"
_MOST_PORTS: Final = 65535


@dataclass(frozen=True, slots=True)
class MetricsTarget:
    """A file, a port, both or neither."""

    file: str | None = None
    """`BT_METRICS_FILE`: a file, or a folder in which each job has its own."""
    address: tuple[str, int] | None = None
    """`BT_METRICS_PORT`: host and port to listen on."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> MetricsTarget:
        """Read `BT_METRICS_FILE` and `BT_METRICS_PORT`; an empty one counts as unset.

        Raises:
            InvalidSettingError: `BT_METRICS_PORT` is neither a port nor `HOST:PORT`.
        """
        port = environ.get("BT_METRICS_PORT")
        return cls(environ.get("BT_METRICS_FILE") or None, _address(port) if port else None)

    def __bool__(self) -> bool:
        return self.file is not None or self.address is not None


NO_METRICS: Final = MetricsTarget()


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= len("65535") else 0
    if not 0 < number <= _MOST_PORTS or (colon and not host) or (":" in host and not bracketed):
        msg = (
            f"BT_METRICS_PORT is {text!r}, expected a port from 1 to {_MOST_PORTS}, or HOST:PORT to"
            f" listen on another address than {LOOPBACK}"
        )
        raise InvalidSettingError(msg)
    return (host or LOOPBACK, number)
