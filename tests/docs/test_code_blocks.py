"""Every code block of the README and of the guides runs, or, if it cannot run here, parses."""

from __future__ import annotations

import ast
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.docs.code_blocks import PAGES, Block, blocks
from tests.docs.reader import Reader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fork_server import ForkServer

ALL = [block for page in PAGES for block in blocks(page)]
RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]
FIRST = ("README.md",)
"""What a new user reads first. The others take a minute each: `nox -s matrix -- tests/docs`."""


def by_place(block: Block) -> str:
    return block.place


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page not in FIRST)) for page in RUN]
)
def test_a_reader_who_follows_a_page_sees_what_it_says(
    tmp_path: Path,
    fork_server: ForkServer,
    s3_endpoint: str,
    s3_environ: dict[str, str],
    page: str,
) -> None:
    environ = dict(s3_environ)
    if not any("export BT_STORE_URL=" in block.text for block in blocks(page)):
        name = page.removesuffix(".md").replace("/", "-")
        environ["BT_STORE_URL"] = f"s3://bucket/pages/{name}"
    reader = Reader(tmp_path, fork_server, environ, s3_endpoint)
    for block in blocks(page):
        if block.file:
            reader.save(block)
        elif block.is_run:
            reader.run(block)
        elif block.language == "text":
            reader.compare(block)


@pytest.mark.parametrize("block", ALL, ids=by_place)
def test_a_block_is_of_a_known_language_and_parses(block: Block) -> None:
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "bash" or (block.file or "").endswith(".sh"):
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    elif block.language == "yaml":
        assert all(isinstance(one, dict) for one in yaml.safe_load_all(block.text))
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in {"text", ""}, f"{block.language!r} is not known"
