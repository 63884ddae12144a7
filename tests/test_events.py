"""The writer behind the training loop: order, flushing, failures; and the sinks' own formats."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Events, Run
from lightning.pytorch import Callback
from models import STEPS, Classifier, detached
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from gradcam_callback import GradCAMCallback
from gradcam_callback.reporting import rendering as picture
from gradcam_callback.reporting import sinks as events
from gradcam_callback.reporting.sinks import BackgroundWriter, FolderSink, TensorBoardSink, append_records

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"


def flat(level: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


class Listing:
    """A sink that notes what comes, slowly if it should, and fails at some tags."""

    def __init__(self, seconds: float = 0, bad: str = "") -> None:
        self.seen: list[Any] = []
        self.threads: set[str] = set()
        self.seconds, self.bad = seconds, bad

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread().name)
        if self.bad and tag.startswith(self.bad):
            raise OSError(f"no space left on device: {tag}")
        self.seen.append((tag, int(pixels.flat[0]), step))

    def text(self, tag: str, markdown: str, step: int) -> None:
        self.seen.append((tag, markdown, step))

    def flush(self) -> None:
        self.seen.append("flush")


def alive() -> bool:
    return "gradcam-writer" in {thread.name for thread in threading.enumerate()}


# The writer


def test_images_and_texts_come_in_order_and_behind_the_caller() -> None:
    sink = Listing(seconds=0.002)
    writer = BackgroundWriter(sink)
    expected: list[Any] = []
    for step in range(20):  # more than may wait
        writer.image("i", lambda step=step: flat(step), step)
        writer.text("t", f"text {step}", step)
        expected += [("i", step, step), ("t", f"text {step}", step)]
    writer.close()

    assert sink.seen == [*expected, "flush"]
    assert sink.threads == {"gradcam-writer"}


def test_drawing_does_not_hold_the_caller() -> None:
    gate, in_time = threading.Event(), []

    def draw() -> np.ndarray:
        in_time.append(gate.wait(5))
        return flat(1)

    writer = BackgroundWriter(Listing())
    writer.image("i", draw, 0)
    gate.set()  # reached while the drawing waits for it
    writer.close()

    assert in_time == [True]


def test_a_slow_disk_makes_the_caller_wait_instead_of_filling_memory() -> None:
    gate = threading.Event()
    drawn: list[int] = []

    def draw() -> np.ndarray:
        gate.wait(5)
        drawn.append(1)
        return flat(0)

    writer = BackgroundWriter(Listing())
    submitting = threading.Thread(target=lambda: [writer.image("i", draw, step) for step in range(30)])
    submitting.start()
    submitting.join(0.2)
    assert submitting.is_alive()
    gate.set()
    submitting.join(5)
    writer.close()
    assert len(drawn) == 30


def test_flush_waits_and_the_writer_goes_on() -> None:
    sink = Listing(seconds=0.05)
    writer = BackgroundWriter(sink)
    writer.image("i", lambda: flat(1), 0)
    writer.flush()
    assert sink.seen == [("i", 1, 0), "flush"]
    writer.image("i", lambda: flat(2), 1)
    writer.close()

    assert sink.seen[2:] == [("i", 2, 1), "flush"]
    assert not alive()


def test_no_thread_before_the_first_job_and_none_after_the_end() -> None:
    writer = BackgroundWriter(Listing())
    assert not alive()
    writer.close()
    writer.text("t", "x", 0)
    assert alive()
    writer.close()
    writer.close()
    assert not alive()


def test_failures_are_kept_and_the_rest_is_written() -> None:
    sink = Listing(bad="bad")
    writer = BackgroundWriter(sink)
    writer.image("bad/1", lambda: flat(1), 0)
    writer.image("good", lambda: flat(2), 0)
    writer.image("worse", lambda: 1 / 0, 0)  # type: ignore[arg-type, return-value]
    writer.close()

    assert ("good", 2, 0) in sink.seen
    written, failures = writer.take_outcome()
    assert written == 1
    assert [type(failure) for failure in failures] == [OSError, ZeroDivisionError]
    assert writer.take_outcome() == (0, [])


# The sinks


def test_tensorboard_gets_images_and_texts_under_their_own_tags(tmp_path: Path) -> None:
    experiment = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(experiment)
    sink.image("gradcam/layer", flat(77), 3)
    sink.text("gradcam/alerts", "**raised** ü", 3)
    sink.flush()

    seen = Events.read(tmp_path)
    assert (seen.pixels("gradcam/layer") == flat(77)).all()
    assert seen.texts == {"gradcam/alerts": [(3, "**raised** ü")]}
    assert seen.steps("gradcam/layer") == [3]
    experiment.close()


def test_tensorboard_shows_the_text_in_its_text_tab(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    experiment = SummaryWriter(str(tmp_path))
    TensorBoardSink(experiment).text("gradcam/alerts", "x", 0)
    experiment.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()

    assert accumulator.SummaryMetadata("gradcam/alerts").plugin_data.plugin_name == "text"


def test_the_folder_gets_a_file_a_step(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "run")
    sink.image("gradcam/model.layer4", flat(7), 120)
    sink.image("gradcam/model.layer4", flat(8), 120)
    sink.text("gradcam/alerts", "x", 1)
    sink.flush()

    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path == tmp_path / "run" / "gradcam" / "model.layer4" / "step=00000120.png"
    assert (np.array(Image.open(path)) == flat(8)).all()


def test_records_are_appended_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "alerts.jsonl"
    append_records(path, [{"a": 1, "text": "zwei\nZeilen ü"}])
    append_records(path, [{"a": 2}, {"a": None}])

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"a": 1, "text": "zwei\nZeilen ü"}, {"a": 2}, {"a": None}]


def test_records_that_cannot_be_written_raise(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        append_records(tmp_path / "file" / "alerts.jsonl", [{}])


# In a Trainer


def cb(**options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers=LAYER, probes=2, **options)


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    compose = picture.compose
    monkeypatch.setattr(picture, "compose", lambda panel: (time.sleep(seconds), compose(panel))[1])


@pytest.fixture
def prompt_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is done before the loop goes on, so that it is certain when a failure is seen."""
    submit = BackgroundWriter._submit

    def submit_and_wait(self: BackgroundWriter, job: Callable[[], None]) -> None:
        submit(self, job)
        self._jobs.join()

    monkeypatch.setattr(BackgroundWriter, "_submit", submit_and_wait)


def test_the_loop_does_not_wait_for_the_drawing(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, in_time, compose = threading.Event(), [], picture.compose
    monkeypatch.setattr(picture, "compose", lambda panel: (in_time.append(gate.wait(5)), compose(panel))[1])

    class Trained(Callback):
        def on_train_end(self, *args: Any) -> None:
            gate.set()

    fit = run(cb(), callbacks=[Trained()]).fit()

    assert in_time == [True, True, True]
    assert len(fit.events.steps(PANEL)) == 3


class Stopping(Classifier):
    """Ends the training in the first batch of its third epoch."""

    def __init__(self, by: Callable[[], None]) -> None:
        super().__init__()
        self.by = by

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == 2:
            self.by()
        return super().training_step(batch, batch_idx)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C arrives: a job in the background inherits it switched off, and Lightning leaves it off when it ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    raise KeyboardInterrupt


def really_interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def fail() -> None:
    raise ArithmeticError("of the user's")


@pytest.mark.parametrize(
    ("by", "error"), [(fail, ArithmeticError), (interrupt, SystemExit), (really_interrupt, SystemExit)]
)
@pytest.mark.usefixtures("interruptible")
def test_what_was_seen_is_on_the_disk_when_the_training_is_stopped(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch, by: Callable[[], None], error: type[BaseException]
) -> None:
    slow_down(monkeypatch, 0.2)
    fit = run(cb(), Stopping(by), max_epochs=5)
    with pytest.raises(error):
        fit.fit()

    assert not alive()
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
    assert fit.events.pixels(PANEL).ndim == 3


def test_without_tensorboard_too(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, 0.2)
    fit = run(cb(), Stopping(fail), max_epochs=5, logger=False)
    with pytest.raises(ArithmeticError):
        fit.fit()

    assert [path.name for path in sorted(fit.folder.rglob("*.png"))] == ["step=00000003.png", "step=00000006.png"]


def test_an_exception_in_validation(run: MakeRun) -> None:
    class Failing(Classifier):
        def validation_step(self, *args: Any) -> None:
            raise ArithmeticError("of the user's")

    with pytest.raises(ArithmeticError):
        run(cb(), Failing()).validate()
    assert not alive()


def test_panels_that_cannot_be_drawn_become_one_alert(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(panel: Any) -> Any:
        raise MemoryError("no room for a picture")

    monkeypatch.setattr(picture, "compose", fail)
    fit = run(cb(on_null="raise")).fit()

    assert fit.trainer.global_step == 3 * STEPS
    assert [(status, subject, cause) for status, subject, cause, _ in fit.alerts][:1] == [
        ("raised", "writing", "writing_failed")
    ]
    assert [line["cause"] for line in fit.alerts_file][:1] == ["writing_failed"]
    assert "no room for a picture" in fit.our_warnings()[0]
    assert len(fit.events.values("gradcam/null_gradients")) == 3


@pytest.mark.usefixtures("prompt_writer")
def test_a_failure_that_repeats_is_neither_cleared_nor_raised_again(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, tag: str, pixels: Any, step: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardSink, "image", fail)
    fit = run(cb(), max_epochs=4).fit()

    assert [(status, cause) for status, _, cause, _ in fit.alerts] == [("raised", "writing_failed")]


@pytest.mark.usefixtures("prompt_writer")
def test_a_failure_that_is_over_is_cleared(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    image = TensorBoardSink.image

    def fail_at_first(self: TensorBoardSink, tag: str, pixels: Any, step: int) -> None:
        if step == STEPS:
            raise OSError("the network drive is away")
        image(self, tag, pixels, step)

    monkeypatch.setattr(TensorBoardSink, "image", fail_at_first)
    fit = run(cb(), max_epochs=4).fit()

    assert [(status, cause) for status, _, cause, _ in fit.alerts] == [
        ("raised", "writing_failed"),
        ("cleared", "writing_failed"),
    ]
    assert fit.events.steps(PANEL) == [2 * STEPS, 3 * STEPS, 4 * STEPS]


def test_a_writing_alert_says_what_to_do(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardSink, "image", fail)
    fit = run(cb(), max_epochs=1).fit()

    assert fit.callback.alerts[0].remedy


def test_the_last_panel_that_fails_is_told_as_well(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, 0.2)

    def fail(self: Any, *args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardSink, "image", fail)
    fit = run(cb(), max_epochs=1).fit()

    assert [cause for _, _, cause, _ in fit.alerts] == ["writing_failed"]
    assert [line["cause"] for line in fit.alerts_file] == ["writing_failed"]


def test_a_directory_that_cannot_be_made(run: MakeRun) -> None:
    fit = run(cb(), detached(), max_epochs=2, logger=False)
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


def test_the_event_file_is_that_of_the_logger(run: MakeRun) -> None:
    """A second one in the same folder would keep TensorBoard from showing one of the two live."""
    fit = run(cb(), max_epochs=1).fit()

    assert len(list(fit.folder.glob("events.out.tfevents.*"))) == 1


def test_validate_after_fit_opens_one_more_event_file(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger closed its file after fit. The loop and the writer must not each open a new one: one would be lost."""
    look = run(cb(), max_epochs=1).fit()
    initialise = FileWriter.__init__

    def slowly(*args: Any, **settings: Any) -> None:
        time.sleep(0.2)
        initialise(*args, **settings)

    monkeypatch.setattr(FileWriter, "__init__", slowly)
    look.validate()

    assert len(list(look.folder.glob("events.out.tfevents.*"))) == 2
    assert look.events.steps(PANEL) == [STEPS, STEPS]
    assert len(look.events.steps("gradcam/null_gradients")) == 2


def test_several_layers_come_in_their_order(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []
    monkeypatch.setattr(events.TensorBoardSink, "image", lambda self, tag, pixels, step: order.append((tag, step)))
    layers = ["model.stage", "model.stem", "model.norm"]
    run(GradCAMCallback(target_layers=layers, probes=2), max_epochs=2).fit()

    assert order == [(f"gradcam/{layer}", step) for step in (STEPS, 2 * STEPS) for layer in layers]
