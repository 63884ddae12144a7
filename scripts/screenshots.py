"""Takes the pictures of the viewer in docs/: python scripts/screenshots.py RUNS, in the browser of `make browser`.

RUNS is the folder in which `make demo`, `make broken` and `make shortcut` have left their runs.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the tests use the same browser and the same TensorBoard

from browser import launched
from tensorboards import tensorboard

from gradcam_callback import read_run

DOCS = ROOT / "docs"
SIZE = {"width": 1360, "height": 860}


def main(runs: Path) -> None:
    demo, broken, *cheats = (newest(runs / name) for name in ("demo", "broken", "shortcut", "honest"))
    with launched() as browser, tempfile.TemporaryDirectory() as folder:
        reports = {run: report(run, Path(folder) / f"{run.parent.name}.html") for run in (demo, broken, *cheats)}
        for run in cheats:
            with page(browser, f"{reports[run]}#layout=grid&position=2") as opened:
                save(opened, f"{run.parent.name}.png", rows=opened.locator("section.card"))
        with page(browser, f"{reports[demo]}#targets=label&position=3") as opened:
            save(opened, "viewer.png")
        with page(
            browser, f"{reports[demo]}#layout=grid&compare=difference&pinned=0&targets=label", dark=True
        ) as opened:
            save(opened, "viewer-difference.png")
        with page(browser, f"{reports[broken]}#layout=grid&position=0&targets=predicted", height=1100) as opened:
            opened.get_by_role("button", name=re.compile("^Details")).first.click()
            opened.locator("section.alerts").scroll_into_view_if_needed()
            save(opened, "viewer-alert.png")
        with (
            tensorboard(demo.parent) as board,
            page(browser, f"{board.url}?darkMode=true#gradcam", dark=True) as opened,
        ):
            frame = opened.frame_locator("iframe[src*='name=gradcam']")
            frame.get_by_role("slider", name="Look").wait_for(timeout=60_000)
            save(opened, "viewer-tab.png")


def report(run: Path, path: Path) -> str:
    """The URL of a run's report, in which this checkout is somebody's."""
    recording = read_run(run)
    alerts = json.loads(json.dumps(recording.alerts).replace(str(ROOT), "~/gradcam_callback"))
    path.write_text(replace(recording, alerts=tuple(alerts)).to_html(), encoding="utf-8")
    return path.as_uri()


def newest(folder: Path) -> Path:
    """The last version of a run."""
    versions = sorted(folder.glob("version_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    if not versions:
        sys.exit(f"There is no run in {folder}: train with `gradcam-callback fit --config configs/{folder.name}.yaml`.")
    return versions[-1]


@contextmanager
def page(browser: Any, url: str, *, dark: bool = False, height: int = SIZE["height"]) -> Iterator[Any]:
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={**SIZE, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(url)
    yield opened
    context.close()


def save(opened: Any, name: str, rows: Any = None) -> None:
    """The page, or the first row of some elements, once everything is drawn; with as few colours as do no harm."""
    opened.wait_for_timeout(1500)
    clip = None
    if rows is not None:
        boxes = [rows.nth(number).bounding_box() for number in range(rows.count())]
        first = [box for box in boxes if box["y"] == boxes[0]["y"]]
        width = first[-1]["x"] + first[-1]["width"] - first[0]["x"]
        clip = {**first[0], "width": width, "height": max(box["height"] for box in first)}
    picture = Image.open(io.BytesIO(opened.screenshot(clip=clip))).convert("RGB")
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(DOCS / name, optimize=True)
    print(f"{DOCS / name}: {(DOCS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
