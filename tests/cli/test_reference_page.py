"""The reference says what the commands are."""

from __future__ import annotations

import re
from pathlib import Path

from bt_lightning import errors
from bt_lightning.cli.app import main
from bt_lightning.cli.reference_page import reference


def test_the_reference_is_what_the_commands_say():
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    how = "python -m bt_lightning.cli.reference_page > docs/cli.md"
    assert page.read_text() == reference(), how


def test_the_help_and_the_page_name_every_exit_code():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.CheckpointError)}
    named = set()
    said = main.help.partition("codes:")[2]
    for first, last in re.findall(r"(?<![\w.])(\d+)(?:-(\d+))?\s", said):
        named |= set(range(int(first), int(last or first) + 1))
    assert named - {0, 1, 2, 130} == codes - {1, 2}
    rows = set(map(int, re.findall(r"^\| (\d+) \|", reference(), re.MULTILINE)))
    assert rows >= codes | {0, 1, 2, 130} - {1}
