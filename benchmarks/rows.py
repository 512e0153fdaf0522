"""Reading the rows that benchmarks append to: each run is compared with itself only."""

from __future__ import annotations

Row = dict[str, object]


def last_run(rows: list[Row], case: str) -> list[Row]:
    """The rows of the newest run of a case, as they were written: repeat after repeat."""
    found: list[Row] = []
    seen = set()
    for row in reversed([row for row in rows if row["case"] == case]):
        measured = (row.get("system", row.get("client")), row["repeat"])
        if measured in seen or (found and row["repeat"] > found[-1]["repeat"]):
            break  # of the run before
        if found and row.get("commit") != found[-1].get("commit"):
            break  # a run may come in pieces, all of one commit
        seen.add(measured)
        found.append(row)
    return found[::-1]
