"""One HTML file with the viewer and its data. It is opened from disk and asks nobody for anything.

Modules cannot import each other by path in a file that is opened from disk. So each becomes a `data:` URL under a name
of its own, and an import map tells the browser which is which.
"""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath

WEB = Path(__file__).parent / "web"
ENTRY = "report.js"
STYLES = "viewer.css"

# `import ... from "./x.js"`, `export ... from "./x.js"` and `import "./x.js"`, minified or not.
_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])(\.{1,2}/[^"']+)\2""")

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{styles}
</style>
<script type="importmap">{modules}</script>
</head>
<body>
<script type="application/json" id="gradcam-runs">{index}</script>
{bundles}
<script type="module">import "gradcam/{entry}";</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Run:
    """A run in a report.

    Attributes:
        name: As it is shown.
        bundle: Its data, as `recording.bundle` makes them.
    """

    name: str
    bundle: bytes


def build_report(runs: Sequence[Run]) -> str:
    """The HTML file.

    Args:
        runs: At least one.
    """
    index = {"runs": [{"name": run.name, "version": "1", "time": 0} for run in runs], "notes": []}
    bundles = (
        f'<script type="application/octet-stream" data-run="{number}">{_compressed(run.bundle)}</script>'
        for number, run in enumerate(runs)
    )
    modules = {f"gradcam/{path}": _data_url(text) for path, text in web_modules(ENTRY).items()}
    return _PAGE.format(
        title=escape(f"Grad-CAM: {', '.join(run.name for run in runs)}"),
        styles=_inlined_styles(),
        modules=_as_script({"imports": modules}),
        index=_as_script(index),
        bundles="\n".join(bundles),
        entry=ENTRY,
    )


def web_modules(entry: str) -> dict[str, str]:
    """A module and all that it imports, by path below `web/`; they import each other by these names.

    Args:
        entry: The path of the module.
    """
    modules: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in modules:
            continue
        folder = PurePosixPath(path).parent

        def renamed(found: re.Match[str], folder: PurePosixPath = folder) -> str:
            target = _normalised(folder / found[3])
            waiting.append(target)
            return f"{found[1]}{found[2]}gradcam/{target}{found[2]}"

        modules[path] = _IMPORT.sub(renamed, (WEB / path).read_text(encoding="utf-8"))
    return modules


def _normalised(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _inlined_styles() -> str:
    """The style sheets; one that imports others comes after them."""
    text = (WEB / STYLES).read_text(encoding="utf-8")
    pattern = re.compile(r"""@import (?:url\()?["']([^"']+)["']\)?;\n?""")
    others = [(WEB / found).read_text(encoding="utf-8") for found in pattern.findall(text)]
    return "\n".join([*others, pattern.sub("", text)])


def _compressed(bundle: bytes) -> str:
    return b64encode(zlib.compress(bundle, 9)).decode()


def _data_url(module: str) -> str:
    return f"data:text/javascript;base64,{b64encode(module.encode()).decode()}"


def _as_script(value: object) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c")
