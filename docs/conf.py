"""The site's configuration: `nox -s docs` builds it, without a network."""

from __future__ import annotations

import os
from importlib.metadata import version as installed
from pathlib import Path

os.environ.setdefault("TERM", "dumb")
os.environ["NO_COLOR"] = "1"  # help texts are read from click

project = "bt_lightning"
author = "bt_lightning"
release = version = installed("bt-lightning")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "cli.md"]  # `reference/commands.md` has what is in it
default_role = "code"  # one backtick in docstrings
nitpicky = False  # Lightning's and torch's names are in no inventory here

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # design.md has `###` below a `##` of another part

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"bt_lightning {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"

linkcheck_ignore = [r"https?://.*"]  # other sites are not asked: the build needs no network
linkcheck_anchors = True

_REPOSITORY = Path(__file__).parent.parent


def _link_to_repository(_app: object, _docname: str, source: list[str]) -> None:
    """Links to files outside `docs/` become names of files: the site has no copy of them."""
    import re

    outside = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+(?:examples|benchmarks|tests)[^)\s]*)\)")

    def named(link: re.Match[str]) -> str:
        path = link[2].lstrip("./")
        if not (_REPOSITORY / path).exists():
            return link[0]  # which is then a broken link
        text = link[1].strip("`")
        return f"`{text}`" if text in path else f"{link[1]} (`{path}`)"

    source[0] = outside.sub(named, source[0])


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_to_repository)  # type: ignore[attr-defined]
