"""A real Trainer on small data, and what it leaves behind, read back from the disk."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, loader
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from gradcam_callback import GradCAMCallback


@dataclass(frozen=True)
class Events:
    """What the event files of one folder hold, by tag: step and value, in the order of writing."""

    images: dict[str, list[tuple[int, bytes]]]
    scalars: dict[str, list[tuple[int, float]]]
    texts: dict[str, list[tuple[int, str]]]

    @classmethod
    def read(cls, folder: Path) -> Events:
        accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
        accumulator.Reload()
        tags = accumulator.Tags()
        return cls(
            {tag: [(e.step, e.encoded_image_string) for e in accumulator.Images(tag)] for tag in tags["images"]},
            {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]},
            {
                tag: [(e.step, _text(e.tensor_proto)) for e in accumulator.Tensors(tag)]
                for tag in tags["tensors"]
                if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "text"
            },
        )

    def steps(self, tag: str) -> list[int]:
        """The steps of a tag, whatever its kind; none where there is no such tag."""
        for kind in (self.images, self.scalars, self.texts):
            if tag in kind:
                return [step for step, _ in kind[tag]]
        return []

    def values(self, tag: str) -> list[float]:
        return [value for _, value in self.scalars[tag]]

    def pixels(self, tag: str, position: int = -1) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.images[tag][position][1])))

    def ours(self) -> set[str]:
        return {tag for kind in (self.images, self.scalars, self.texts) for tag in kind if tag.startswith("gradcam/")}


def _text(tensor: Any) -> str:
    return "\n".join(line.decode() for line in tensor_util.make_ndarray(tensor).ravel())


@dataclass
class Run:
    """One Trainer with one callback, in a folder of its own."""

    folder: Path
    trainer: Trainer
    callback: GradCAMCallback
    module: LightningModule
    warnings: list[warnings.WarningMessage] = field(default_factory=list)

    def fit(self, train: Any = 24, val: Any = 12, **settings: Any) -> Run:
        """Train; an int stands for so many samples, anything else is handed on."""
        train, val = (loader(data) if isinstance(data, int) else data for data in (train, val))
        return self._do(lambda: self.trainer.fit(self.module, train, val, **settings))

    def validate(self, data: Any = 12, **settings: Any) -> Run:
        data = loader(data) if isinstance(data, int) else data
        return self._do(lambda: self.trainer.validate(self.module, data, verbose=False, **settings))

    def test(self, data: Any = 12, **settings: Any) -> Run:
        data = loader(data) if isinstance(data, int) else data
        return self._do(lambda: self.trainer.test(self.module, data, verbose=False, **settings))

    def _do(self, job: Callable[[], Any]) -> Run:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                job()
            finally:
                self.warnings += caught
        return self

    @property
    def events(self) -> Events:
        return Events.read(self.folder)

    @property
    def alerts_file(self) -> list[dict[str, Any]]:
        """The lines of alerts.jsonl, below whichever folder; none where there is no such file."""
        paths = self.folder.rglob("gradcam/alerts.jsonl")
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    @property
    def alerts(self) -> list[tuple[str, str, str, int]]:
        """Status, subject, cause and epoch of each alert."""
        return [(str(a.status), a.finding.subject, str(a.cause), a.epoch) for a in self.callback.alerts]

    def our_warnings(self) -> list[str]:
        """Those that speak of Grad-CAM, gradients or probes, and not of Lightning's business."""
        words = ("grad", "probe", "panel", "alert")
        return [text for w in self.warnings if any(word in (text := str(w.message)).lower() for word in words)]


def make_run(
    folder: Path, callback: GradCAMCallback | None = None, module: LightningModule | None = None, **settings: Any
) -> Run:
    callback = GradCAMCallback(probes=4) if callback is None else callback
    logger = TensorBoardLogger(folder, name="", version="")
    options: dict[str, Any] = {
        "default_root_dir": folder,
        "logger": logger,
        "max_epochs": 3,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    callbacks = [callback, *settings.pop("callbacks", [])]
    trainer = Trainer(callbacks=callbacks, **(options | settings))
    return Run(folder, trainer, callback, Classifier() if module is None else module)


@contextmanager
def without_collector() -> Iterator[None]:
    """What dies in here dies by itself, and not because the collector of cycles came by."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that train: two threads on small tensors only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with 60 digits to validate on in place of 1,000; of each class there is one at least."""
    monkeypatch.setattr("gradcam_callback.demo.data.HELD_OUT", 60)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a Run in the test's folder: `run(callback, module, **settings of the Trainer)`."""

    def make(*args: Any, folder: str = "", **settings: Any) -> Run:
        return make_run(tmp_path / folder, *args, **settings)

    return make


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors this small are slower on several threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Whatever a test did, and however it ended, no writer lives on."""
    yield
    assert "gradcam-writer" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, for tests that are marked `needs_browser`."""
    with browser.launched() as started:
        yield started


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"NOT TESTED on a full disk: this process may not mount one ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# The table of networks


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not browser.is_available():
        terminalreporter.write_line(f"NOT TESTED: {browser.MISSING}", red=True, bold=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--coverage-table", metavar="FILE", help="write what came of each network into this file")


TABLE: list[dict[str, Any]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that the others report to."""
    TABLE.extend(value for name, value in report.user_properties if name == "coverage" and report.when == "call")


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--coverage-table")
    if file and not hasattr(session.config, "workerinput"):
        Path(file).write_text(coverage_table(TABLE))


def coverage_table(rows: list[dict[str, Any]]) -> str:
    lines = [INTRODUCTION, f"| from | {' | '.join(VERDICTS)} |", "| --- " * (1 + len(VERDICTS)) + "|"]
    for source in dict.fromkeys(row["source"] for row in rows):
        verdicts = [row["verdict"].partition(":")[0] for row in rows if row["source"] == source]
        counts = [str(verdicts.count(one)) for one in VERDICTS]
        lines.append(f"| {source}, {len(verdicts)} networks | {' | '.join(counts)} |")
    lines += ["", "| network | layer | layout | cells | to autograd | to grad-cam | verdict |", "| --- " * 7 + "|"]
    for row in sorted(rows, key=lambda row: (row["source"], row["network"].lower())):
        figures = [f"{row[name]:.0e}" if name in row else "n/a" for name in ("error", "agreement")]
        words = [str(row.get(name, "")) for name in ("layer", "layout", "cells")]
        lines.append(f"| {' | '.join([row['network'], *words, *figures, row['verdict'][:120]])} |")
    return "\n".join([*lines, ""])


VERDICTS = ("right", "said to be a part", "refused", "takes no such images", "wrong")
INTRODUCTION = """\
# Networks that were tried

`make coverage` writes this page. Each network has random weights and gets two images of its own size; "auto" chooses
the layer. *To autograd*: the largest difference to the map by plain autograd over the whole network, over the map's
largest value. *To grad-cam*: the same to what grad-cam computes at that layer, given how its output is reshaped; it
takes no gradient of a layer that returns a structure. A network is *right* if both are below 1e-4, and if the gradient
of each half of the map with respect to the image lies in that half. *Said to be a part*: no layer has the whole signal,
and a warning says so.
"""
