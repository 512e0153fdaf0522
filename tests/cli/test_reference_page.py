"""The reference says what the commands are."""

from __future__ import annotations

from pathlib import Path

from bt_lightning.cli.reference_page import reference


def test_the_reference_is_what_the_commands_say():
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    how = "python -m bt_lightning.cli.reference_page > docs/cli.md"
    assert page.read_text() == reference(), how
