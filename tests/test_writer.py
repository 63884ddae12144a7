"""The writer behind the training loop: order, several sinks, failures; and what a training with it leaves behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, make_run
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from models import STEPS, Classifier, detached
from torch import Tensor
from torch.utils.tensorboard.writer import FileWriter

from gradcam_callback import GradCAMCallback, TensorProbes
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.reporting.alerts import Alert, Finding, Status
from gradcam_callback.reporting.panel import Panel, PanelColumn
from gradcam_callback.reporting.rendering import composition
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.writer import BackgroundWriter

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"


def panel(probes: int = 1) -> Panel:
    tiles = torch.zeros(probes, 20, 20, 3, dtype=torch.uint8)
    column = PanelColumn("predicted", tiles, ("",) * probes, (None,) * probes, torch.ones(probes))
    return Panel("layer", tiles, ("",) * probes, (None,) * probes, (column,), torch.zeros(256, 3).byte(), False)


def report(step: int, *tags: str, alert: bool = False) -> Report:
    finding = Finding("writing", CallbackIssue.WRITING_FAILED, (), (), "m", "r")
    alerts = (Alert(Status.RAISED, finding, step, 0),) if alert else ()
    return Report(step, 0, {tag: panel() for tag in tags}, alerts)


class Listing:
    """A sink that notes what comes, when its gate is open, and fails at some tags."""

    def __init__(
        self, name: str = "list", bad: str | tuple[str, ...] = (), gate: threading.Event | None = None
    ) -> None:
        self.name, self.bad, self.gate = name, bad, gate
        self.seen: list[Any] = []
        self.threads: set[str] = set()
        self.in_time: list[bool] = []

    def write(self, report: Report) -> None:
        if self.gate is not None:
            self.in_time.append(self.gate.wait(5))
        self.threads.add(threading.current_thread().name)
        tags = [*report.panels, *(["alerts"] if report.alerts else [])]
        if any(tag in self.bad for tag in tags):
            raise OSError(f"no space left on device: {tags}")
        self.seen += [(tag, report.step) for tag in tags]

    def flush(self) -> None:
        self.seen.append("flush")


def alive() -> bool:
    return "gradcam-writer" in {thread.name for thread in threading.enumerate()}


# The writer


def test_reports_come_in_order_behind_the_caller_and_to_every_sink() -> None:
    sinks = Listing(), Listing()
    writer = BackgroundWriter(sinks)
    assert not alive()
    for step in range(20):  # more than may wait
        writer.submit(report(step, "a", "b", alert=True))
    writer.close()
    writer.close()

    for sink in sinks:
        assert sink.seen == [*((tag, step) for step in range(20) for tag in ("a", "b", "alerts")), "flush"]
        assert sink.threads == {"gradcam-writer"}
    assert writer.take_failures() == []
    assert not alive()


def test_a_later_report_starts_the_writer_again() -> None:
    writer = BackgroundWriter([sink := Listing()])
    for step in (1, 2):
        writer.submit(report(step, "a"))
        writer.close()

    assert sink.seen == [("a", 1), "flush", ("a", 2), "flush"]
    assert not alive()


def test_writing_does_not_hold_the_caller_before_several_reports_wait() -> None:
    gate = threading.Event()
    writer = BackgroundWriter([sink := Listing(gate=gate)])
    submitting = threading.Thread(target=lambda: [writer.submit(report(step, "a")) for step in range(30)])
    writer.submit(report(0, "a"))
    writer.submit(report(0, "a"))  # reached although nothing is written yet
    backlog = writer.backlog
    submitting.start()
    submitting.join(0.2)
    assert submitting.is_alive()  # a slow disk makes the caller wait instead of filling memory
    gate.set()
    submitting.join(5)
    writer.close()

    assert len(sink.seen) == 33
    assert backlog > 0
    assert writer.backlog == 0


def test_a_panel_is_composed_once_for_all_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    composed, compose = [], composition.compose
    monkeypatch.setattr(composition, "compose", lambda panel: (composed.append(panel), compose(panel))[1])
    images = []

    class Reading(Listing):
        def write(self, report: Report) -> None:
            images.extend(report.images.values())

    writer = BackgroundWriter([Reading(), Reading()])
    writer.submit(report(1, "a", "b"))
    writer.close()
    assert (len(composed), len(images)) == (2, 4)
    assert images[0] is images[1]


def failures(writer: BackgroundWriter) -> list[tuple[str, str]] | None:
    """What cannot be written, once all that was submitted was tried."""
    writer.close()
    found = writer.take_failures()
    return None if found is None else [(failure.sink, failure.tag.removeprefix("gradcam/")) for failure in found]


def test_a_sink_that_fails_leaves_the_rest_alone_and_is_told_until_it_is_over() -> None:
    good, bad = Listing("good"), Listing("bad", bad=("a", "alerts"))
    writer = BackgroundWriter([bad, good])
    assert failures(writer) is None  # nothing was tried
    writer.submit(report(1, "a", "b", alert=True))
    assert failures(writer) == [("bad", "a"), ("bad", "alerts")]
    assert writer.take_failures() is None
    assert (good.seen, bad.seen) == ([("a", 1), ("b", 1), ("alerts", 1), "flush"], [("b", 1), "flush"])

    writer.submit(report(2, "b"))  # says nothing of the other panel, nor of the alerts
    assert failures(writer) == [("bad", "a"), ("bad", "alerts")]
    bad.bad = ("alerts",)
    writer.submit(report(3, "a"))
    assert failures(writer) == [("bad", "alerts")]
    bad.bad = ()
    writer.submit(report(4, alert=True))
    assert failures(writer) == []


@pytest.mark.parametrize("error", [MemoryError("no room for a picture"), SystemExit("out of here")])
def test_what_cannot_be_composed_fails_and_the_thread_lives(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(panel: Panel) -> Any:
        raise error

    class Reading(Listing):
        def write(self, report: Report) -> None:
            assert report.images is not None
            super().write(report)

    monkeypatch.setattr(composition, "compose", fail)
    writer = BackgroundWriter([sink := Reading()])
    writer.submit(report(1, "a", alert=True))
    assert failures(writer) == [("list", "a")]
    assert sink.seen == [("alerts", 1), "flush"]


# In a Trainer


def cb(**options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers=LAYER, probes=2, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is composed before it is set."""
    gate, compose = threading.Event(), composition.compose

    def compose_later(panel: Panel) -> Any:
        assert gate.wait(20)
        return compose(panel)

    monkeypatch.setattr(composition, "compose", compose_later)
    return gate


def test_the_loop_does_not_wait_for_the_panels(run: MakeRun, gate: threading.Event) -> None:
    class Trained(Callback):
        def on_train_end(self, *args: Any) -> None:
            gate.set()

    fit = run(cb(), callbacks=[Trained()]).fit()

    assert fit.callback.alerts == []
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS, 3 * STEPS]


class Stopping(Classifier):
    """Ends the training in the first batch of its third epoch, while panels wait."""

    def __init__(self, gate: threading.Event, by: Callable[[], None]) -> None:
        super().__init__()
        self.gate, self.by = [gate], by  # in a list, because a lock can not be copied

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == 2:
            self.gate[0].set()
            self.by()
        return super().training_step(batch, batch_idx)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C arrives: a job in the background inherits it switched off, and Lightning leaves it off when it ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def fail() -> None:
    raise ArithmeticError("of the user's")


@pytest.mark.parametrize(("by", "error"), [(fail, ArithmeticError), (interrupt, SystemExit)])
@pytest.mark.parametrize("logger", [True, False], ids=["TensorBoard", "files"])
@pytest.mark.usefixtures("interruptible")
def test_what_was_seen_is_on_the_disk_when_the_training_is_stopped(
    run: MakeRun, gate: threading.Event, by: Callable[[], None], error: type[BaseException], logger: bool
) -> None:
    settings = {} if logger else {"logger": False}
    fit = run(cb(), Stopping(gate, by), max_epochs=5, **settings)
    with pytest.raises(error):
        fit.fit()

    assert not alive()
    if logger:
        assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
        assert fit.events.pixels(PANEL).ndim == 3
    files = [path.name for path in sorted(fit.folder.rglob("*.png"))]
    assert files == ([] if logger else ["step=00000003.png", "step=00000006.png"])


def test_an_exception_in_validation(run: MakeRun) -> None:
    class Failing(Classifier):
        def validation_step(self, *args: Any) -> None:
            fail()

    with pytest.raises(ArithmeticError):
        run(cb(), Failing()).validate()
    assert not alive()


def test_panels_that_cannot_be_drawn_become_one_alert(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(panel: Any) -> Any:
        raise MemoryError("too little for a picture")

    monkeypatch.setattr(composition, "compose", fail)
    fit = run(cb(on_null="raise")).fit()

    assert fit.trainer.global_step == 3 * STEPS
    assert [alert[:3] for alert in fit.alerts] == [("raised", "writing", "writing_failed")]
    assert [line["cause"] for line in fit.alerts_file] == ["writing_failed"]
    assert "too little for a picture" in fit.our_warnings()[0]
    assert len(fit.events.values("gradcam/null_gradients")) == 3


def test_a_training_on_a_disk_that_gets_full_goes_on(small_disk: Path) -> None:
    """A panel of these probes takes more than half a megabyte; the disk has three."""
    probes = TensorProbes(torch.rand(4, 3, 200, 200, generator=torch.Generator().manual_seed(0)))
    callback = GradCAMCallback(target_layers=LAYER, probes=probes)
    fit = make_run(small_disk, callback, detached(), max_epochs=6).fit()

    assert fit.trainer.global_step == 6 * STEPS
    assert "writing_failed" in [str(alert.cause) for alert in fit.callback.alerts]
    written = fit.events.steps(PANEL)
    assert STEPS in written
    assert 6 * STEPS not in written
    assert fit.events.steps("epoch")[-1] >= 6 * STEPS - 1  # what the user logs is there to the end


def test_a_directory_that_cannot_be_made(run: MakeRun) -> None:
    logger = CSVLogger(run(cb()).folder, name="", version="")
    fit = run(cb(), detached(), max_epochs=2, logger=logger)
    fit.folder.mkdir(exist_ok=True)
    (fit.folder / "gradcam").write_text("a file where the folder should be")
    fit.fit()

    assert fit.trainer.global_step == 2 * STEPS
    assert {cause for _, _, cause, _ in fit.alerts} == {"detached", "writing_failed"}
    assert any("alerts could not be written" in text for text in fit.our_warnings())


def test_a_summary_writer_closed_by_others_costs_a_panel_at_most(run: MakeRun) -> None:
    class Closing(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.logger.experiment.close()

    fit = run(cb(), callbacks=[Closing()]).fit()

    assert fit.trainer.global_step == 3 * STEPS
    assert {cause for _, _, cause, _ in fit.alerts} <= {"writing_failed"}
    assert fit.events.steps(PANEL)[-1] == 3 * STEPS


def test_the_event_file_is_that_of_the_logger(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one in the same folder would keep TensorBoard from showing one of the two live.

    The logger closes its file after fit. The loop and the writer must not each open a new one: one would be lost.
    """
    openers: list[str] = []
    initialise = FileWriter.__init__

    def note(*args: Any, **settings: Any) -> None:
        openers.append(threading.current_thread().name)
        initialise(*args, **settings)

    monkeypatch.setattr(FileWriter, "__init__", note)
    look = run(cb(), max_epochs=1).fit()
    assert len(list(look.folder.glob("events.out.tfevents.*"))) == 1
    look.validate()

    assert len(list(look.folder.glob("events.out.tfevents.*"))) == 2
    assert openers == ["MainThread", "MainThread"]
    assert len([tag for tag in look.events.images if LAYER in tag]) == 2  # one in fit, one in validate


def test_several_layers_come_in_their_order(run: MakeRun) -> None:
    layers = ["model.stage", "model.stem", "model.norm"]
    events = run(GradCAMCallback(target_layers=layers, probes=2), max_epochs=2).fit().events

    assert {tag: events.steps(tag) for tag in events.images} == {f"gradcam/{n}": [STEPS, 2 * STEPS] for n in layers}
