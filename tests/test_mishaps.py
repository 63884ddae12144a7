"""Whatever goes wrong in our own code, or on the disk, becomes an alert, and the training ends in the same bits."""

from __future__ import annotations

import errno
import importlib.util
import inspect
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Events
from lightning.pytorch import Callback, LightningModule, Trainer
from models import UNPICKLE, Classifier, detached
from recorder import LAYER, MIDDLE, Case, Data, Training, cb, differences, one, train

from gradcam_callback import GradCAMCallback
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink

# The model's gradient is lost, so that reasons are looked for, maps are drawn across the cut, and there are alerts.
CASE = Case(detached, settings=MIDDLE)
WORD = "sabotaged"


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The training as it is without us."""
    return train(CASE, tmp_path_factory.mktemp("without"))


def trained_as(without: Training, folder: Path, callback: GradCAMCallback, case: Case = CASE) -> list[str]:
    """Train with ours; all that was said, in alerts and in warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_it = train(case, folder, [callback])
    assert differences(without.moments, with_it.moments) == []
    return [*(alert.message for alert in callback.alerts), *(str(warning.message) for warning in caught)]


# In our own code


def _raise(*args: Any, **kwargs: Any) -> Any:
    raise ArithmeticError("sabotaged")


def sabotage(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Let a function or a method of ours raise, for whoever calls it, by whatever name they imported it."""
    names = place.split(".")
    path = f"gradcam_callback.{names.pop(0)}"
    while importlib.util.find_spec(path).submodule_search_locations is not None:  # type: ignore[union-attr]
        path += f".{names.pop(0)}"
    owner: Any = importlib.import_module(path)
    for name in names[:-1]:
        owner = getattr(owner, name)
    function = inspect.unwrap(getattr(owner, names[-1]))  # out of a context manager's wrapping
    if function.__closure__ is None and not names[-1].startswith("__"):
        monkeypatch.setattr(function, "__code__", _raise.__code__)
    else:
        monkeypatch.setattr(owner, names[-1], _raise)


class Saboteur(Callback):
    """Does it when the first epoch has been looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        self.monkeypatch, self.place = monkeypatch, place

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            sabotage(self.monkeypatch, self.place)


PLACES = [
    "diagnosis.diagnoser.diagnose",
    "diagnosis.messages.message",
    "diagnosis.source.locate",
    "diagnosis.tracer.Tracer.begin",
    "engine.capture.recorded",
    "engine.copying.structure.StructureCopier.finished",
    "engine.device_results.judge",
    "engine.explain.explain",
    "engine.forward.forward_pass",
    "engine.gradients.differentiate",
    "engine.health.examine",
    "engine.layers.find_layers",
    "engine.explain.make_map",
    "engine.replica.isolated",
    "execution.probe_pass.ProbePass.resolve",
    "execution.probe_pass.ProbePass.run",
    "probe_capture.ProbeCapture.add",
    "probe_capture.ProbeCapture.finish",
    "probe_capture.ProbeCapture.start",
    "probes.probe_set.ProbeSet.__init__",
    "probes.validation.ValidationProbes.start",
    "reporting.alert_reporter.AlertReporter.close",
    "reporting.alert_reporter.AlertReporter.open",
    "reporting.alert_reporter.AlertReporter.publish",
    "reporting.alert_reporter.AlertReporter.record",
    "reporting.alerts.Alert.as_markdown",
    "reporting.alerts.Alert.as_record",
    "reporting.alerts.AlertTracker.update",
    "reporting.findings.find_nulls",
    "reporting.panels.PanelRenderer.panels",
    "reporting.panels.PanelRenderer.render",
    "reporting.rendering.composition.compose",
    "reporting.rendering.tiles.overlays",
    "reporting.sinks.files.AlertFile.write",
    "reporting.sinks.disk_space.ensure_space",
    "reporting.sinks.tensorboard.TensorBoardSink.__init__",
    "reporting.sinks.tensorboard.TensorBoardSink.flush",
    "reporting.sinks.tensorboard.TensorBoardSink.write",
    "reporting.writer.BackgroundWriter.__init__",
    "reporting.writer.BackgroundWriter.close",
    "reporting.writer.BackgroundWriter.submit",
    "results.CAMResult.__init__",
    "run_reporter.RunReporter.open",
    "session.Session.collect",
    "session.Session.probe",
    "settings.Memory.state_dict",
    "trainer_context.log_scalars",
    "trainer_context.open_sinks",
    "trainer_context.replica_options",
]
# A cause that is known is not looked for again, probes are captured once, a run is opened once, and what is wrong is
# written once.
ONCE = {
    "diagnosis.diagnoser.diagnose",
    "diagnosis.messages.message",
    "diagnosis.source.locate",
    "diagnosis.tracer.Tracer.begin",
    "execution.probe_pass.ProbePass.resolve",
    "probe_capture.ProbeCapture.add",
    "probe_capture.ProbeCapture.finish",
    "probe_capture.ProbeCapture.start",
    "probes.probe_set.ProbeSet.__init__",
    "probes.validation.ValidationProbes.start",
    "reporting.alert_reporter.AlertReporter.open",
    "reporting.alerts.Alert.as_markdown",
    "reporting.alerts.Alert.as_record",
    "reporting.sinks.files.AlertFile.write",
    "reporting.sinks.tensorboard.TensorBoardSink.__init__",
    "reporting.writer.BackgroundWriter.__init__",
    "run_reporter.RunReporter.open",
    "trainer_context.open_sinks",
}


@pytest.mark.parametrize("place", PLACES)
def test_our_own_failure_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training, place: str
) -> None:
    [callback] = one()
    with monkeypatch.context() as patch:
        sabotage(patch, place)
        said = trained_as_or_closed(without, tmp_path, callback)

    assert any(WORD in text for text in said), said


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ONCE])
def test_our_own_failure_in_the_middle_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training, place: str
) -> None:
    [callback] = one()
    with monkeypatch.context() as patch:
        saboteur = Saboteur(patch, place)
        said = trained_as_or_closed(without, tmp_path, callback, replace(CASE, others=lambda: [saboteur]))

    assert any(WORD in text for text in said), said


def trained_as_or_closed(without: Training, folder: Path, callback: GradCAMCallback, case: Case = CASE) -> list[str]:
    """As `trained_as`; where it was the end of the writer that failed, the writer is ended afterwards."""
    try:
        return trained_as(without, folder, callback, case)
    finally:
        for thread in threading.enumerate():
            if thread.name == "gradcam-writer":
                _end(thread)


def _end(thread: threading.Thread) -> None:
    work = thread._target  # type: ignore[attr-defined]
    work.__self__._reports.put(None)
    thread.join(10)


def test_where_warnings_are_errors_training_goes_on(tmp_path: Path, without: Training) -> None:
    [callback] = one()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        with_it = train(CASE, tmp_path, [callback])

    assert differences(without.moments, with_it.moments) == []
    assert [str(alert.cause) for alert in callback.alerts] == ["detached"]


def test_a_failure_of_auto_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training) -> None:
    with monkeypatch.context() as patch:
        sabotage(patch, "engine.auto.choose_layer")
        said = trained_as(without, tmp_path, cb("auto"))

    assert any(WORD in text for text in said), said


def test_alerts_that_cannot_be_loaded_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training
) -> None:
    first = train(CASE, tmp_path / "first", one())
    assert differences(without.moments, first.moments) == []

    def go_on(trainer: Trainer, module: LightningModule, data: Data) -> None:
        trainer.fit(module, *data, ckpt_path=tmp_path / "first" / "kept" / "epoch=1-step=3.ckpt", **UNPICKLE)

    case, [callback] = replace(CASE, do=go_on), one()
    resumed = train(case, tmp_path / "resumed without")
    with monkeypatch.context() as patch:
        sabotage(patch, "reporting.alerts.AlertTracker.load")
        said = trained_as(resumed, tmp_path / "resumed with", callback, case)

    assert any(WORD in text for text in said), said


# On the disk


class Full:
    """A disk without room."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("method", ["write", "flush"])
def test_a_full_disk_is_an_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training, method: str
) -> None:
    monkeypatch.setattr(TensorBoardSink, method, Full())
    [callback] = one()
    said = trained_as(without, tmp_path, callback)

    assert any("No space left" in text and "could not be written" in text for text in said), said
    assert "writing_failed" in [str(alert.cause) for alert in callback.alerts]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_said(tmp_path: Path, without: Training) -> None:
    (tmp_path / "gradcam").mkdir()
    (tmp_path / "gradcam" / "alerts.jsonl").symlink_to("/dev/full")
    said = trained_as(without, tmp_path, *one())

    assert any("No space left" in text and "alerts could not be written" in text for text in said), said


def test_a_file_where_our_folder_should_be_is_said(tmp_path: Path, without: Training) -> None:
    (tmp_path / "gradcam").write_text("in the way")
    said = trained_as(without, tmp_path, *one())

    assert any("alerts could not be written" in text for text in said), said


def test_a_folder_that_cannot_be_written_is_an_alert(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = {**MIDDLE, "logger": False, "default_root_dir": tmp_path / "file" / "runs"}
    case, [callback] = Case(detached, settings=settings), one()
    without = train(case, tmp_path / "without")
    said = trained_as(without, tmp_path / "with", callback, case)

    assert any("There is no place to write to: NotADirectoryError" in text for text in said), said
    assert [str(alert.cause) for alert in callback.alerts] == ["writing_failed", "detached"]


class Closing(Callback):
    """Closes the event file in the middle of the training, as a user's own code may."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            experiment = trainer.logger.experiment  # type: ignore[union-attr]
            experiment.flush() if self.how == "flush" else experiment.close()


@pytest.mark.parametrize("how", ["close", "flush"])
def test_a_closed_event_file_is_no_end(tmp_path: Path, how: str) -> None:
    case, [callback] = Case(Classifier, settings=MIDDLE, others=lambda: [Closing(how)]), one()
    without = train(case, tmp_path / "without")
    trained_as(without, tmp_path / "with", callback, case)

    # A panel that was on its way is lost, and that is said; the next ones are in the file that was opened since.
    assert {str(alert.cause) for alert in callback.alerts} <= {"writing_failed"}
    assert Events.read(tmp_path / "with").steps(f"gradcam/{LAYER}")[-1] == without.trainer.global_step


def test_a_writer_that_is_closed_behind_our_back_is_an_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training
) -> None:
    """What the user's own metrics go through stays open, so that the training itself is not in the way."""

    class Closed:
        def add_image(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("Writer is closed")

        def _get_file_writer(self) -> Any:
            return self

        def add_summary(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("Writer is closed")

        def flush(self) -> None:
            raise OSError("Writer is closed")

    sink = TensorBoardSink.__init__
    monkeypatch.setattr(TensorBoardSink, "__init__", lambda self, _experiment: sink(self, Closed()))
    [callback] = one()
    said = trained_as(without, tmp_path, callback)

    assert any("Writer is closed" in text for text in said), said
    assert "writing_failed" in [str(alert.cause) for alert in callback.alerts]


def test_no_thread_to_be_had_is_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "gradcam-writer":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    [callback] = one()
    said = trained_as(without, tmp_path, callback)

    assert any("can't start new thread" in text for text in said), said


def test_a_job_that_ends_its_thread_does_not_hang_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Training
) -> None:
    """An exit is no `Exception`; a thread that ended by it would be waited for, for ever."""

    def leave(*args: Any, **kwargs: Any) -> None:
        raise SystemExit("out of here")

    monkeypatch.setattr(TensorBoardSink, "write", leave)
    [callback] = one()
    said = trained_as(without, tmp_path, callback)

    assert any("out of here" in text for text in said), said
