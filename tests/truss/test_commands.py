"""The table of commands has each one of `truss train`."""

from __future__ import annotations

import click
import pytest

from bt_lightning.cli.names_elsewhere import NAMES

train_commands = pytest.importorskip("truss.cli.train_commands")


def test_each_command_of_truss_is_in_the_table():
    def names(group, before=""):
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from names(command, f"{before}{name} ")
            else:
                yield before + name

    known = [truss for truss, *_ in NAMES]
    for name in names(train_commands.train):
        assert any(f"{one} ".startswith(f"{name} ") for one in known), name
