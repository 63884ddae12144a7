"""The tab in TensorBoard, in a real browser, with a TensorBoard in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browser_context, needs_browser
from recordings import MadeUpRun, alert, write_run
from tensorboards import tensorboard

from gradcam_callback.recording.records import AlertRecords

pytestmark = needs_browser

SLOW = "--load_fast=false"


@contextmanager
def tab(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """The frame of the tab; nothing may be asked of another origin."""
    with browser_context(chromium, **options) as watched:
        watched.page.goto(url)
        frame = watched.page.frame_locator("iframe[src*='name=gradcam']")
        frame.get_by_role("slider", name="Look").wait_for(timeout=60_000)
        yield frame
        host = re.match(r"https?://[^/]+", url)[0]  # type: ignore[index]
        foreign = [one for one in watched.requests if not one.startswith((host, "data:", "blob:"))]
        assert foreign == []


def wait_for_text(frame: Any, selector: str, text: str, timeout: float = 30_000) -> None:
    frame.locator(selector).filter(has_text=text).first.wait_for(timeout=timeout)


@pytest.mark.parametrize("options", [[], [SLOW]], ids=["fast loader", "slow loader"])
def test_the_tab_shows_a_run_and_a_training_that_goes_on(chromium: Any, tmp_path: Path, options: list[str]) -> None:
    """New looks appear without a change of what is looked at."""
    records = list(MadeUpRun(looks=12).records())
    write_run(tmp_path / "run", records[:9])
    with (
        tensorboard(tmp_path, "--path_prefix", "/some/where", *options) as board,
        tab(chromium, f"{board.url}#gradcam") as frame,
    ):
        wait_for_text(frame, ".where", "epoch 7 · step 80")
        frame.get_by_role("slider", name="Look").press("ArrowLeft")
        wait_for_text(frame, ".where", "epoch 6 · step 70")
        write_run(tmp_path / "run", records[9:11], begins=False)
        frame.locator(".slider input[max='9']").wait_for(timeout=60_000)
        wait_for_text(frame, ".where", "epoch 6 · step 70")
        frame.get_by_label("newest").check()
        wait_for_text(frame, ".where", "epoch 9 · step 100")
        write_run(tmp_path / "run", records[11:], begins=False)
        wait_for_text(frame, ".where", "epoch 11 · step 120", timeout=60_000)


def test_the_address_dark_mode_and_two_runs(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "a", MadeUpRun())
    write_run(tmp_path / "b", MadeUpRun(looks=6, session=(2.0, "b")))
    with tensorboard(tmp_path) as board:
        board.wait_for_runs(2)
        with tab(chromium, f"{board.url}?darkMode=true#gradcam") as frame:
            frame.get_by_label("Add a run").select_option("b")
            frame.locator(".chip").nth(1).wait_for()
            frame.get_by_role("slider", name="Look").press("Home")
            wait_for_text(frame, ".where", "epoch 0 · step 10")
            assert frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(21, 24, 28)"
            link = frame.locator("body").evaluate("() => parent.location.href")
        with tab(chromium, link) as frame:
            wait_for_text(frame, ".where", "epoch 0 · step 10")
            assert frame.locator(".chip").count() == 2


def test_a_run_that_is_damaged_does_not_hide_the_others(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "good", MadeUpRun())
    path = write_run(tmp_path / "torn", MadeUpRun(session=(2.0, "b")))
    path.write_bytes(path.read_bytes()[:-100])
    with tensorboard(tmp_path) as board:
        board.wait_for_runs(2)
        with tab(chromium, f"{board.url}#gradcam") as frame:
            wait_for_text(frame, ".where", "epoch 11 · step 120")  # the newest one
            frame.get_by_label("Add a run").select_option("torn")
            wait_for_text(frame, ".chip", "torn")
            wait_for_text(frame, ".tile .stale", "epoch 10, stale")


def test_without_a_recording_it_says_how_to_get_one(chromium: Any, tmp_path: Path) -> None:
    with tensorboard(tmp_path) as board, browser_context(chromium) as watched:
        watched.page.goto(f"{board.url}data/plugin_entry.html?name=gradcam")
        watched.page.get_by_text("No run has a recording yet").wait_for()
        assert "GradCAMCallback()" in watched.page.locator("main").inner_text()


def test_a_run_in_which_nothing_could_be_explained_says_why(chromium: Any, tmp_path: Path) -> None:
    origin = MadeUpRun().origin(0, 0)
    write_run(tmp_path / "run", [AlertRecords(origin, (alert("raised", 0, message="No image was found."),))])
    with tensorboard(tmp_path) as board, browser_context(chromium) as watched:
        board.wait_for_runs()
        watched.page.goto(f"{board.url}data/plugin_entry.html?name=gradcam")
        watched.page.get_by_role("alert").filter(has_text="run: No image was found.").wait_for()
