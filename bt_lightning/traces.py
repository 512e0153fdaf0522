"""Spans of OpenTelemetry, in the process that trains or loads, for whoever traces it.

The package is used where something else has imported it, and never imported here: who has not
cannot have said where spans go.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.manifest import Manifest

P = ParamSpec("P")
T = TypeVar("T")

NAME: Final = "bt_lightning"
"""Of the tracer; spans and attributes begin with it."""


def tracing() -> Any | None:
    """The module `opentelemetry.trace` if this process has imported it, all of it; else None."""
    api = sys.modules.get("opentelemetry.trace")
    return api if hasattr(api, "get_tracer") else None


def attributes(**facts: object) -> dict[str, object]:
    """Attributes of a span, named as the facts of events are."""
    return {f"{NAME}.{name}": value for name, value in facts.items()}


@contextlib.contextmanager
def span(name: str, **facts: object) -> Iterator[None]:
    """A span `bt_lightning.<name>` around a block, below the one that is open; marks its error."""
    api = tracing()
    if api is None:
        yield
        return
    tracer = api.get_tracer(NAME)
    with tracer.start_as_current_span(f"{NAME}.{name}", attributes=attributes(**facts)):
        yield


def traced_restore(
    manifest_of: Callable[[Any], Manifest],
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Put each call into a span `restore`; `manifest_of` gives the first argument's manifest."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> T:
            if tracing() is None:
                return function(*args, **kwargs)
            read = manifest_of(args[0])
            facts = {"checkpoint": read.checkpoint_id, "step": read.step, "bytes": read.size}
            with span("restore", **facts):
                return function(*args, **kwargs)

        return traced

    return decorate
