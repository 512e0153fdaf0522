"""What the site and the README promise of themselves: size, links, a page for each error."""

from __future__ import annotations

import re

import pytest

from tests.docs.code_blocks import PROJECT

MARKDOWN = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
MARKDOWN += [str(path.relative_to(PROJECT)) for path in sorted((PROJECT / "docs").rglob("*.md"))]
MOST_BYTES = 10_000
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^ *```.*?^ *```\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """The anchor that GitHub and MyST give to a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def test_the_readme_is_read_in_minutes() -> None:
    assert len((PROJECT / "README.md").read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("page", MARKDOWN)
def test_a_link_to_a_file_or_a_heading_leads_there(page: str) -> None:
    here = PROJECT / page
    for target in _LINK.findall(_CODE.sub("", here.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here.parent / path).resolve() if path else here
        assert file.exists(), f"{page}: {target}"
        assert file.is_relative_to(PROJECT), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            text = _CODE.sub(
                lambda code: code[0].strip("`") if "\n" not in code[0] else "", file.read_text()
            )
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"
