"""How Sphinx makes the documentation site: `make docs`.

The pages are taken where they lie in the repository, so that the same links work here and on GitHub. Three things are
added while they are read: the navigation, from the lists in `docs/README.md`; the docstrings below the headings of
`docs/api.md`; and the repository's address before links to files that are no pages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import gradcam_callback
from gradcam_callback.pages import REPOSITORY

ROOT = Path(__file__).parents[2]
START, CONTENTS, API = "README", "docs/README", "docs/api"

project = "gradcam_callback"
author = "The gradcam_callback developers"
copyright = author
version = release = gradcam_callback.__version__

root_doc = START
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "benchmarks")]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 6
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, and not each an entry beside its property
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
default_role = "code"  # single backticks in docstrings are code
toc_object_entries = False
python_maximum_signature_line_length = 100

pygments_dark_style = "github-dark"
html_theme = "furo"  # it loads nothing from another host
html_title = "gradcam_callback"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "start.html"}
templates_path = ["templates"]
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "",
}


def setup(app: Any) -> dict[str, bool]:
    """Have each page completed as it is read."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}


def complete(app: Any, page: str, source: list[str]) -> None:
    """Add to a page what it has on the site alone.

    Args:
        app: Sphinx.
        page: Its name: its path without the suffix.
        source: Its text in a list of one, which is changed.
    """
    if page == START:
        source[0] += "\n" + navigation((ROOT / f"{CONTENTS}.md").read_text(encoding="utf-8"))
    if page == CONTENTS:
        source[0] = "---\norphan: true\n---\n" + source[0]  # it is the navigation
    if page == API:
        source[0] = with_docstrings(source[0])
    source[0] = with_addresses(page, source[0])


def navigation(contents: str) -> str:
    """A table of contents for each list of pages under a heading of the second level."""
    trees = []
    for part in contents.split("\n## ")[1:]:
        pages = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\.md\)", part, flags=re.MULTILINE)
        entries = "\n".join(f"{title} <{page_name(path)}>" for title, path in pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {part.splitlines()[0]}\n\n{entries}\n```\n")
    return "\n".join(trees)


def page_name(path: str) -> str:
    """A page that the contents link to, as the start page names it."""
    name = os.path.normpath(f"docs/{path}")
    return "self" if name == START else name


def with_docstrings(text: str) -> str:
    """The page with the docstring of each public name at the end of its section."""
    sections = r"^### `(\w+)`\n(?:(?!#).*\n?)*"
    return re.sub(sections, lambda found: f"{found[0]}\n{directive(found[1])}\n\n", text, flags=re.MULTILINE)


def directive(name: str) -> str:
    """What shows the docstring of a public name."""
    value = getattr(gradcam_callback, name)
    kind = "autoclass" if isinstance(value, type) else "autofunction"
    # Of the callback, the methods are hooks that the Trainer calls.
    members = "   :members:\n" if kind == "autoclass" and not issubclass(value, (BaseException, Callback)) else ""
    return f"```{{eval-rst}}\n.. {kind}:: gradcam_callback.{name}\n{members}```"


def with_addresses(page: str, text: str) -> str:
    """The page with the repository's address before links to files that are no pages."""
    folder = (ROOT / page).parent

    def absolute(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found[1]))
        if not target.exists() or target.suffix in (".md", ".png", ".jpg", ".svg"):
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()})"

    return re.sub(r"\]\(([\w./-]+)\)", absolute, text)
