"""A real browser for tests of the viewer; where there is none they are skipped, and the summary says so."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CANDIDATES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "there is no browser: `make browser` installs chromium; the viewer was not tested"


def find_browser() -> str | None:
    """The path of a browser that is installed."""
    return os.environ.get("GRADCAM_BROWSER") or next(filter(None, map(shutil.which, CANDIDATES)), None)


def is_available() -> bool:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return find_browser() is not None


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Page:
    """A page, and what it has complained about."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: Any) -> None:
        # TensorBoard's own fonts are missing under a path prefix, and its page says this and that.
        if message.type == "error" and "gradcam" in f"{message.text} {message.location}":
            self.problems.append(message.text)


@contextmanager
def browser_context(browser: Any, **options: Any) -> Iterator[Page]:
    """A fresh page in a context of its own; whatever it complained about is an error in the end."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    opened = Page(context.new_page())
    opened.page.set_default_timeout(15_000)
    opened.watch()
    try:
        yield opened
    finally:
        context.close()
    assert opened.problems == []


def canvas_pixels(locator: Any) -> Any:
    """What a canvas shows, `(H, W, 4)` uint8."""
    # As text: a list of numbers takes seconds on its way out of the browser.
    size, text = locator.evaluate(
        """canvas => {
            const {width, height} = canvas;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            let text = "";
            for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
            return [[height, width], btoa(text)];
        }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(*size, 4)


def download(page: Any, button: str, folder: Path) -> Path:
    """What a button saves."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


needs_browser = pytest.mark.skipif(not is_available(), reason=MISSING)
