"""The fourth table: what recording a look costs, and how the viewer behaves on long runs, in a real browser.

The runs are made up, written as the callback writes them, and served by a TensorBoard of their own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from benchmarking.report import Goal, say, table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the tests make the same runs up, in the same browser

from browser import browser_context, launched
from recordings import MadeUpRun, write_run
from tensorboards import TensorBoard, tensorboard

from gradcam_callback.recording.bundle import bundle
from gradcam_callback.recording.reading import read_run
from gradcam_callback.recording.records import ProbePictures
from gradcam_callback.recording.summaries import RecordTags, summary_of
from gradcam_callback.reporting.alert_reporter import AlertReporter
from gradcam_callback.reporting.recorder import Recorder, SeenProbes
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink
from gradcam_callback.reporting.tags import Tags
from gradcam_callback.viewer.report import Run, build_report

SMALL = MadeUpRun(looks=50, probes=16, cells=(7, 7), side=224)
LONG = MadeUpRun(looks=1000, probes=16, layers=("net.a", "net.b"), cells=(14, 14), targets=("predicted",), side=224)
WIDE = replace(LONG, looks=300, probes=64, layers=tuple(f"net.{number}" for number in range(10)))
STEPS = 200  # of the slider


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        what: In words.
        setting: On what.
        value: The figure.
        unit: Of the figure.
        limit: What was wished for, in that unit; None where nothing was.
    """

    what: str
    setting: str
    value: float
    unit: str
    limit: float | None = None


def measure(*, quick: bool) -> list[Figure]:
    """All figures of this table."""
    small, long, wide = (replace(run, looks=8) if quick else run for run in (SMALL, LONG, WIDE))
    figures = [*_recording(small), *_start(3 if quick else 15), *_report(replace(long, looks=min(300, long.looks)))]
    for run, name in (
        (long, "2 runs, 1,000 looks, 16 probes, 2 layers"),
        (wide, "2 runs, 300 looks, 64 probes, 10 layers"),
    ):
        for option, loader in (("--load_fast=true", "fast loader"), ("--load_fast=false", "slow loader")):
            say(f"viewer: {name}, {loader}")
            if run is wide and loader == "slow loader":
                continue
            figures += _tab(run, f"{name}, {loader}", option, has_goals=run is long)
    return figures


def _recording(run: MadeUpRun) -> Iterator[Figure]:
    """What a look adds to the event file, and how long the training loop is held by handing it on."""
    where = "16 probes, a layer of 7 x 7, 2 targets"
    looks = [record for record in run.records() if not isinstance(record, ProbePictures)]
    tags = RecordTags()
    sizes = [
        summary_of(tags.tag("gradcam/recording", look.KIND, number), look).ByteSize()
        for number, look in enumerate(looks)
    ]
    yield Figure("bytes a look", where, statistics.median(sizes) / 1000, "kB", 4.0)
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        reporter = AlertReporter("warn")
        reporter.open([TensorBoardSink(writer)], recorder=Recorder(Tags(["net.stage"]), RecordTags()))
        held = []
        for number, look in enumerate(looks):
            seen = SeenProbes(look, lambda origin: next(iter(replace(run).records())))  # type: ignore[arg-type, return-value]
            started = time.perf_counter()
            reporter.publish({}, seen, step=number, epoch=number)
            held.append(1000 * (time.perf_counter() - started))
            writer.flush()
        reporter.close(step=len(looks), epoch=len(looks))
        writer.close()
    yield Figure("the loop is held by writing a look", where, statistics.median(held[1:]), "ms", 1.0)


_START = """
import sys, time
from tensorboard import default
default.get_static_plugins()
started = time.perf_counter()
from importlib.metadata import entry_points
[entry] = [one for one in entry_points(group="tensorboard_plugins") if one.name == "gradcam"]
from types import SimpleNamespace
assert entry.load()().load(SimpleNamespace(data_provider=None)) is not None
assert not {"torch", "lightning"} & set(sys.modules)
print(time.perf_counter() - started)
"""


def _start(times: int) -> Iterator[Figure]:
    seconds = [float(subprocess.check_output([sys.executable, "-c", _START], text=True)) for _ in range(times)]
    yield Figure("TensorBoard's start grows by", "the entry point and the plugin", statistics.median(seconds), "s", 0.2)


def _report(run: MadeUpRun) -> Iterator[Figure]:
    where = f"{run.looks} looks, 16 probes, 2 layers"
    with tempfile.TemporaryDirectory() as folder:
        recording = read_run(write_run(Path(folder) / "run", run).parent)
        page = build_report([Run("run", bundle(recording))])
        bare = build_report([Run("run", bundle(replace(recording, pictures=())))])
        path = Path(folder) / "report.html"
        path.write_text(page, encoding="utf-8")
        yield Figure("the report, without images", where, len(bare) / 1e6, "MB", 3.0)
        with launched() as browser, browser_context(browser, offline=True) as watched:
            started = time.perf_counter()
            watched.page.goto(path.as_uri())
            _wait_for_first_tile(watched.page)
            yield Figure("the report can be read after", where, time.perf_counter() - started, "s", 1.0)


def _tab(run: MadeUpRun, where: str, option: str, *, has_goals: bool) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            write_run(Path(folder) / f"run{number}", replace(run, seed=number, session=(float(number), "a")))
        with tensorboard(Path(folder), option) as board:
            lost = 2 * run.looks - sum(_looks_of(board, name, run.looks) for name in board.wait_for_runs(2))
            yield Figure("looks that are lost", where, lost, "", 0.0)
            with launched() as browser, browser_context(browser) as watched:
                for figure in _in_browser(watched.page, board, where):
                    yield figure if has_goals else replace(figure, limit=None)
                server = sum(_resident(pid) for pid in (board.process.pid, *_children(board.process.pid)))
                yield Figure("memory of the server", where, server, "MB", 250.0 if has_goals else None)


def _in_browser(page: Any, board: TensorBoard, where: str) -> Iterator[Figure]:
    started = time.perf_counter()
    # Both runs from the start, so that the first view is the whole one.
    page.goto(
        f"{board.url}data/plugin_entry.html?name=gradcam#&p.gradcam.view=runs%3Drun1%26runs%3Drun2%26position%3D0"
    )
    _wait_for_first_tile(page)
    yield Figure("first view", where, time.perf_counter() - started, "s", 2.0)
    milliseconds = sorted(page.evaluate(_SCRUB, STEPS))
    yield Figure(
        "a step of the slider, 95th percentile", where, milliseconds[int(0.95 * len(milliseconds))], "ms", 33.0
    )
    renderers = [_resident(pid) for pid in _processes("--type=renderer")]
    yield Figure("memory of the page", where, max(renderers), "MB", 300.0)


# From the event to the end of drawing, with the wait for the next frame.
_SCRUB = """async steps => {
    const slider = document.querySelector("input[aria-label=Look]");
    const taken = [];
    for (let step = 1; step <= steps; step++) {
        performance.clearMeasures();
        const started = performance.now();
        slider.value = String(step % (Number(slider.max) + 1));
        slider.dispatchEvent(new Event("input"));
        await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
        const [entry] = performance.getEntriesByName("gradcam-render");
        taken.push(entry.startTime + entry.duration - started);
    }
    return taken;
}"""


def _wait_for_first_tile(page: Any) -> None:
    page.wait_for_function(
        """() => {
            const canvas = document.querySelector(".tile canvas");
            return canvas?.width > 1 && canvas.getContext("2d").getImageData(9, 9, 1, 1).data[3] > 0;
        }""",
        polling="raf",
    )


def _looks_of(board: TensorBoard, name: str, expected: int) -> int:
    """How many looks a run's bundle holds, once TensorBoard has read all of the file."""
    found = 0
    for _ in range(300):
        status, data = board.get(f"data/plugin/gradcam/bundle?run={name}")
        if status == 200:
            length = int.from_bytes(data[4:8], "little")
            found = len(json.loads(data[8 : 8 + length])["series"][0]["epochs"])
        if found >= expected:
            break
        time.sleep(0.1)
    return found


def _processes(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "cmdline").read_text():
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _resident(pid: int) -> float:
    """Memory of a process, in MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def goals(rows: Sequence[Figure]) -> list[Goal]:
    return [
        Goal.of(f"viewer: {row.what} ({row.unit})", row.setting, row.limit, row.value)
        for row in rows
        if row.limit is not None
    ]


def render(rows: Sequence[Figure]) -> list[str]:
    lines = [
        [
            row.what,
            row.setting,
            f"{row.value:.3g} {row.unit}".strip(),
            "" if row.limit is None else f"{row.limit:g} {row.unit}".strip(),
        ]
        for row in rows
    ]
    return [table(["what", "on what", "measured", "goal, at most"], lines)]
