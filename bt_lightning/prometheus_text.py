"""Metrics as text that Prometheus reads. Pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/, the text format 0.0.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what its samples mean."""

    name: str
    kind: Literal["counter", "gauge", "summary"]
    help: str
    """One line, with the unit."""


class Sample(NamedTuple):
    """One value of a metric."""

    metric: Metric
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: Literal["", "_sum", "_count"] = ""
    """Of a summary: what the value is."""


def prometheus_text(samples: Iterable[Sample], common: Mapping[str, str]) -> str:
    """The samples, those of one metric together, each with the labels `common` as well."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.metric.name, []).append(sample)
    lines: list[str] = []
    for name, of_one in by_name.items():
        metric = of_one[0].metric
        lines += [f"# HELP {name} {_escaped(metric.help)}", f"# TYPE {name} {metric.kind}"]
        for sample in of_one:
            labels = ",".join(
                f'{label}="{_quoted(value)}"'
                for label, value in {**common, **dict(sample.labels)}.items()
            )
            lines.append(f"{name}{sample.suffix}{{{labels}}} {_number(sample.value)}")
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) else repr(float(value))
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
