"""The text of `trainer_state.json`, of which a save encodes only what is new."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_HISTORY: Final = "log_history"


class TrainerStateText:
    """Encodes the states of one training, whose history grows by an entry at each log.

    The text has the keys, the order and the indentation of `TrainerState.save_to_json`; an entry of
    the history is a line.
    """

    def __init__(self) -> None:
        self._encoded: list[tuple[dict[str, Any], str]] = []

    def of(self, state: Any, changed: Mapping[str, Any]) -> bytes:
        """The file's bytes for a `TrainerState`, with these fields in place of its own."""
        values = {each.name: getattr(state, each.name) for each in fields(state)} | dict(changed)
        history = values.pop(_HISTORY) or []
        lines = {name: _indented(value) for name, value in values.items()}
        entries = ",\n".join(f"    {self._entry(i, entry)}" for i, entry in enumerate(history))
        del self._encoded[len(history) :]
        lines[_HISTORY] = f"[\n{entries}\n  ]" if entries else "[]"
        text = ",\n".join(f"  {json.dumps(name)}: {lines[name]}" for name in sorted(lines))
        return f"{{\n{text}\n}}\n".encode()

    def _entry(self, place: int, entry: dict[str, Any]) -> str:
        if place < len(self._encoded) and self._encoded[place][0] == entry:
            return self._encoded[place][1]
        text = json.dumps(entry, sort_keys=True)
        self._encoded[place:] = [(dict(entry), text)]
        return text


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True).replace("\n", "\n  ")
