"""Bars on a terminal, and nothing anywhere else."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Run, make_run
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from models import Network, Spots
from recordings import MadeUpRun, write_run

from gradcam_callback import GradCAMCallback, GradCAMWatch, progress
from gradcam_callback.progress import progress_bar
from gradcam_callback.report import write_report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of stderr, with bars at once."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))  # pytest sets that of `sys` anew
    return screen


def until(is_so: Callable[[], object]) -> None:
    """Wait for another thread, ten seconds at most."""
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_bar_shows_how_far_it_is_and_leaves_nothing(terminal: Terminal) -> None:
    before = threads()
    with progress_bar("counting") as bar:
        bar(1, 4)
        until(lambda: "25%" in terminal.getvalue())
        bar.rename("still counting")
        until(lambda: "still counting" in terminal.getvalue())
    until(lambda: threads() == before)
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is erased"


def test_one_long_step_has_a_bar_too(terminal: Terminal) -> None:
    with progress_bar("one step"):
        until(lambda: "one step" in terminal.getvalue())


def test_what_is_done_in_time_has_none(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 1000.0)
    with progress_bar("quick") as bar:
        bar(1, 2)
    assert terminal.getvalue() == ""


def test_a_bar_inside_of_another_shows_nothing(terminal: Terminal) -> None:
    with progress_bar("outer"):
        until(lambda: "outer" in terminal.getvalue())
        with progress_bar("inner") as bar:
            bar(1, 2)
    with progress_bar("next"):
        until(lambda: "next" in terminal.getvalue())
    assert "inner" not in terminal.getvalue()


def test_an_error_ends_the_bar(terminal: Terminal) -> None:
    with pytest.raises(KeyError), progress_bar("failing"):
        raise KeyError
    with progress_bar("next"):
        until(lambda: "next" in terminal.getvalue())


@pytest.mark.parametrize("shown", [True, False])
def test_off_a_terminal_and_unwanted_there_is_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    screen = io.StringIO() if shown else terminal
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    before = threads()
    with progress_bar("quiet", shown=shown) as bar:
        bar(1, 2)
        assert threads() == before
    assert screen.getvalue() == ""


# Where they are used


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bars say from now on, whether or not there was time to draw it."""
    said: list[str] = []
    add, update = progress.ProgressBar.rename, progress.ProgressBar.__call__
    monkeypatch.setattr(
        progress.ProgressBar,
        "rename",
        lambda bar, text: (said.append(text), add(bar, text)) if bar._progress is not None else None,
    )
    monkeypatch.setattr(
        progress.ProgressBar,
        "__call__",
        lambda bar, done, total: (
            (said.append(f"{done}/{total}"), update(bar, done, total)) if bar._progress is not None else None
        ),
    )
    return said


def test_a_look_tells_its_layer_and_its_measures(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = texts(monkeypatch)
    images = torch.stack([Spots()[index][0] for index in range(2)])
    options: dict[str, Any] = {"faithfulness": {"steps": 2, "percentiles": [50]}}
    with GradCAMWatch(Network(), images, tmp_path, **options) as watch:
        watch.look(0)
    assert said[0] == "Grad-CAM: explaining 2 probes"
    counts = [tuple(map(int, text.split("/"))) for text in said if "/" in text]
    assert counts == sorted(counts)
    assert counts[-1][0] == counts[-1][1] > 0


def test_a_report_tells_its_runs(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = texts(monkeypatch)
    for name in "ab":
        write_run(tmp_path / name, MadeUpRun())
    write_report([str(tmp_path / name) for name in "ab"], str(tmp_path / "report.html"))
    assert said == ["0/2", "1/2", "writing the report"]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"enable_progress_bar": False}, False),
        ({"enable_progress_bar": True, "callbacks": [TQDMProgressBar()]}, True),
        ({"enable_progress_bar": True, "callbacks": [RichProgressBar()]}, False),
    ],
    ids=["none", "tqdm", "rich"],
)
def test_in_a_trainer_it_is_as_the_trainer_does(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], shown: bool
) -> None:
    said = texts(monkeypatch)
    run: Run = make_run(tmp_path, GradCAMCallback(probes=2), max_epochs=1, **settings).fit(8, 8)
    assert run.alerts == []
    assert ("Grad-CAM: explaining 2 probes" in said) == shown
