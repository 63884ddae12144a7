"""Where the documentation is: by URL, and the page about causes as text that comes with the package."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from urllib.parse import urljoin

from gradcam_callback.errors import BadInputError

REPOSITORY = "https://github.com/gradcam-callback/gradcam_callback"
CONFIGS = f"{REPOSITORY}/tree/main/configs"
PAGE = "docs/why-is-my-gradient-none.md"
_ADDRESS = f"{REPOSITORY}/blob/main/{PAGE}"

_ROW = re.compile(r"^\| \[`(\w+)`\]\(#\w+\) \| (.+) \|$", re.MULTILINE)
_HEADING = re.compile(r"(#+) (.+)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def url(slug: str) -> str:
    """The address of what is written about a cause or an alert."""
    return f"{_ADDRESS}#{slug}"


def contents() -> dict[str, str]:
    """What the page explains: slug to half a sentence, in the page's order."""
    return dict(_ROW.findall(_text()))


def section(slug: str) -> str:
    """What the page says about a cause or an alert.

    Args:
        slug: As an alert names it, e.g. "detached".

    Returns:
        Markdown, from the heading on. Links are URLs.

    Raises:
        ValueError: The page has no such section; the message names those that it has.
    """
    possible = contents()
    if slug not in possible:
        close = "".join(f" Did you mean {name!r}?" for name in get_close_matches(slug, possible, n=1))
        raise BadInputError(f"There is no cause or alert {slug!r}.{close} Explained are: {', '.join(possible)}.")
    return "\n".join(_lines_of(slug))


def _text() -> str:
    """In an installation the page lies in the package, in a checkout beside it."""
    packaged = files("gradcam_callback").joinpath(PAGE)
    page = packaged if packaged.is_file() else Path(__file__).parents[1] / PAGE
    return page.read_text(encoding="utf-8")


def _lines_of(title: str) -> list[str]:
    """The lines from one heading to the next that is no deeper; a comment in a block of code is no heading."""
    lines: list[str] = []
    depth, in_code = 0, False
    for line in _text().splitlines():
        in_code ^= line.startswith("```")
        heading = None if in_code else _HEADING.fullmatch(line)
        if heading is not None and lines and len(heading[1]) <= depth:
            break
        if heading is not None and heading[2] == title:
            depth = len(heading[1])
        if depth:
            lines.append(line if in_code else _LINK.sub(lambda found: f"]({urljoin(_ADDRESS, found[1])})", line))
    return lines
