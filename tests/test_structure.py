"""How the package is built: no circles of imports, small modules, rooms that say what they are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bt_lightning

ROOT = Path(bt_lightning.__file__).parent
PROJECT = Path(__file__).parents[1]
MOST_LINES = 350
DEEPEST = 2
"""Rooms within rooms."""


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, each of more than one; by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            circle = {stack.pop()}
            while module not in circle:
                circle.add(stack.pop())
            if len(circle) > 1:
                found.append(circle)

    for module in imports:
        if module not in index:
            visit(module)
    return found


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(imports) == [{"b", "c"}]


def test_no_modules_import_each_other() -> None:
    """Neither at their top, nor within functions, nor for types."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("bt_lightning", cache_dir=None)
    imports = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
    assert len(imports) > 250
    assert circles(imports) == []


MODULES = sorted(ROOT.rglob("*.py"))


def test_no_module_is_long_and_no_room_deep() -> None:
    lines = {str(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    assert {p for p in MODULES if len(p.relative_to(ROOT).parts) - 1 > DEEPEST} == set()


def test_each_room_says_what_comes_in_what_goes_out_and_where_to_start() -> None:
    for path in MODULES:
        if path.name == "__init__.py" and path.parent != ROOT:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert text.count(". ") + text.count(".\n") >= 1, f"{path} says too little"
            assert "tart" in text, f"{path} does not say where to start reading"


NOTES = [f"docs/design/{path.name}" for path in sorted((PROJECT / "docs/design").glob("*.md"))]


PAGES = ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/threat-model.md", *NOTES]


@pytest.mark.parametrize("page", PAGES)
def test_the_modules_that_a_page_names_are_there(page: str) -> None:
    """A reader goes from the map to the code."""
    text = (PROJECT / page).read_text()
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", text))
    places = (ROOT, PROJECT)
    assert {one for one in named if not any((place / one).is_file() for place in places)} == set()


def test_the_tests_that_the_threat_model_names_are_there() -> None:
    """Each answer to a threat is shown by one."""
    text = (PROJECT / "docs/threat-model.md").read_text()
    named = set(re.findall(r"`(tests/[a-z_0-9/]+\.py)::(test_[a-z_0-9]+)`", text))
    assert len(named) > 30
    tests = {file: (PROJECT / file).read_text() for file, _ in named}
    assert {(file, test) for file, test in named if f"def {test}(" not in tests[file]} == set()
    answers = re.findall(r"^- \*(?:.+\n)+?(?=- |\n)", text, re.MULTILINE)
    assert len(answers) > 20
    assert [each for each in answers if not re.search(r"\.py`;.*::test_", each)] == []


def test_each_feature_of_baseten_has_what_shows_it() -> None:
    text = (PROJECT / "docs/reference/baseten_contract.md").read_text()
    rows = re.findall(r"^(\d+)\. \*(?:.+\n)+?(?=\d|\n|\Z)", text, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 59))
    named = set(re.findall(r"`(tests/[a-z_0-9/]+\.py)(?:::(test_[a-z_0-9]+))?`", text))
    tests = {file: (PROJECT / file).read_text() for file, _ in named}
    missing = {(file, test) for file, test in named if f"def {test}(" not in tests[file] and test}
    assert missing == set()


def test_each_extra_is_explained() -> None:
    metadata = (PROJECT / "pyproject.toml").read_text()
    table = metadata.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) = \[", table, re.MULTILINE))
    page = (PROJECT / "docs/reference/settings.md").read_text().split("## Extras")[1]
    rows = re.findall(r"^\| ((?:`[a-z]+`(?:, )?)+) \|", page.split("\n## ")[0], re.MULTILINE)
    assert extras == {name for row in rows for name in re.findall("`([a-z]+)`", row)}


def test_each_public_name_is_defined_once() -> None:
    """Or a reader who greps for it finds another's."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
