"""Sphinx over these pages and over the docstrings, which are read without importing u2pl.

`make docs` builds the site. The navigation is the list in README.md: a page that is named there is
in the site, under the heading that it stands under.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

project = "u2pl"
author = "The u2pl maintainers"
extensions = ["myst_parser", "sphinx.ext.napoleon", "autoapi.extension"]
root_doc = "README"
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = "u2pl"
html_copy_source = False

myst_heading_anchors = 4  # links to headings work here as they do on GitHub

autoapi_dirs = ["../src"]
autoapi_root = "reference/api"
autoapi_add_toctree_entry = False
autoapi_options = ["members", "imported-members", "show-module-summary"]
autoapi_member_order = "groupwise"
autoapi_python_class_content = "class"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

PUBLIC = (
    "u2pl",
    "u2pl.api",
    "u2pl.partition",
    "u2pl.contrast",
    "u2pl.losses",
    "u2pl.mixing",
    "u2pl.perturbation",
    "u2pl.refinement",
    "u2pl.teacher",
    "u2pl.models",
    "u2pl.config",
    "u2pl.recipes",
    "u2pl.data.batch",
    "u2pl.data.sources",
    "u2pl.data.synthetic",
    "u2pl.engine.trained",
    "u2pl.weak",
)
"""The public modules; reference/api.md lists them too."""


RE_EXPORTING = ("u2pl", "u2pl.contrast", "u2pl.losses", "u2pl.models", "u2pl.weak")
"""Those of them whose names are defined elsewhere."""


def setup(app: Any) -> None:
    """Connect what follows with Sphinx."""
    app.connect("source-read", write_navigation)
    app.connect("source-read", name_files_outside)
    app.connect("autoapi-skip-member", is_not_public)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)


def write_navigation(app: Any, page: str, source: list[str]) -> None:
    """Make tables of contents of the lists of README.md and reference/api.md.

    A link there shows the file's name, which reads well on GitHub; here it shows the page's title.
    """
    if page == "README":
        sections = re.split(r"(?m)^## ", source[0])
        source[0] = "\n## ".join(with_toctree(section) for section in sections)
        source[0] = re.sub(r"\[[\w/.-]+\.md\]\(", "[](", source[0])
    if page == "reference/api":
        source[0] += toctree("Modules", [f"api/{name.replace('.', '/')}/index" for name in PUBLIC])


def with_toctree(section: str) -> str:
    """A section of README.md, followed by a hidden table of contents of the pages it names."""
    caption = section.splitlines()[0]
    return section + toctree(caption, re.findall(r"(?m)^- \[[^\]]*\]\(([\w/-]+)\.md\)", section))


def toctree(caption: str, pages: list[str]) -> str:
    """MyST's directive, or nothing where there is no page."""
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n" if pages else ""


def name_files_outside(app: Any, page: str, source: list[str]) -> None:
    """Show a link to a file beside docs/, which is not in the site, as that file's path."""

    def path_of(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
        if target.startswith("docs/"):
            return link[0]
        return f"`{target}`" if link[1] == target else f"{link[1]} (`{target}`)"

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)\s]*\)", path_of, source[0])


def is_not_public(
    app: Any, what: str, name: str, thing: Any, skip: bool, options: list[str]
) -> bool:
    """Leave out modules that are not listed, and names with an underscore or from elsewhere."""
    if what in ("module", "package"):
        return name not in PUBLIC
    module, _, own_name = name.rpartition(".")
    is_foreign = thing.imported and module not in RE_EXPORTING
    return skip or is_foreign or own_name.startswith("_")


COLON = "\ue000"
"""Stands for a colon for a while; no text holds it."""


def hide_colons(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what is before a colon in an attribute's docstring for its type."""
    if what in ("attribute", "data", "property"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def show_colons(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Undo :func:`hide_colons` once Napoleon has been there."""
    lines[:] = [line.replace(COLON, ":") for line in lines]
