"""Runs that are logged to W&B, MLflow and Comet, with the real packages and without a network: what they have kept."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from logger_stores import Stored, read_comet, read_mlflow, read_wandb
from models import STEPS, Classifier, Network, detached
from PIL import Image
from test_sinks import flat, report
from torch import Tensor

from gradcam_callback import GradCAMCallback, read_run

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"
SERVICES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet_ml"}
LOOKS = [STEPS, 2 * STEPS]


def cb(layer: str = LAYER, **settings: Any) -> GradCAMCallback:
    return GradCAMCallback(layer, 4, **settings)


class Service:
    """One of the services, which keeps its runs below a folder; `begin` gives a logger, `read` what was kept."""

    def __init__(self, name: str, folder: Path) -> None:
        pytest.importorskip(SERVICES[name], reason=f"NOT TESTED: {SERVICES[name]} is not installed")
        self.name, self.folder = name, folder / name
        self.folder.mkdir(parents=True)

    def begin(self, **settings: Any) -> Logger:
        if self.name == "wandb":
            return WandbLogger(project="project", save_dir=self.folder, **settings)
        if self.name == "mlflow":
            return MLFlowLogger("experiment", **{"tracking_uri": f"file:{self.folder}", **settings})
        if "online" not in inspect.signature(CometLogger).parameters:
            pytest.skip("NOT TESTED: the CometLogger of this version of Lightning is another one")
        quick = {"log_code": False, "log_env_details": False, "log_git_metadata": False, "auto_output_logging": False}
        return CometLogger(project="project", offline_directory=str(self.folder), **quick, **settings)

    def read(self, logger: Any) -> Stored:
        if self.name == "wandb":
            logger.experiment.finish()
            importlib.import_module("wandb").teardown()  # waits until the file is whole
            return read_wandb(self.folder)
        if self.name == "mlflow":
            return read_mlflow(logger.experiment, logger.run_id)
        logger.experiment.end()
        return read_comet(self.folder)

    def tag(self, tag: str) -> str:
        """What a panel is called there."""
        return {"wandb": tag, "mlflow": tag.replace("/", "-"), "comet": f"{tag}.png"}[self.name]


@pytest.fixture(autouse=True)
def _without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "of wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    yield
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].run.finish()
        sys.modules["wandb"].teardown()


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Service:
    return Service(request.param, tmp_path)


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


class Mends(Callback):
    """Mends a network that is cut off, after its first epoch: the alert is cleared."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.model.on_map = None


def assert_panels(stored: Stored, service: Service, fit: Run, looks: list[int]) -> None:
    """The panels are those that TensorBoard got in the same run, pixel by pixel."""
    assert list(stored.images) == [service.tag(PANEL)]
    kept = stored.images[service.tag(PANEL)]
    assert [step for step, _ in kept] == fit.events.steps(PANEL) == looks
    for position, (_, content) in enumerate(kept):
        np.testing.assert_array_equal(pixels(content), fit.events.pixels(PANEL, position))


# Each service


def test_a_service_gets_panels_alerts_and_the_report_beside_tensorboard(service: Service, run: MakeRun) -> None:
    logger = service.begin()
    loggers = [logger, TensorBoardLogger(service.folder.parent, name="", version="")]
    network = Classifier(Network(detached().model.on_map))
    fit = run(cb(), network, logger=loggers, max_epochs=2, callbacks=[Mends()]).fit()

    stored = service.read(logger)
    assert_panels(stored, service, fit, LOOKS)
    assert [step for step, _ in stored.alerts] == [0, 2 * STEPS]
    for (_, text), status in zip(stored.alerts, ("raised", "cleared"), strict=True):
        assert f"### {status}: detached" in text
    assert stored.report == read_run(fit.folder).to_html()
    if service.name == "wandb":
        assert stored.notifications == (f"Grad-CAM: detached at {LAYER}",)
    nulls = [(step, value) for name, step, value in stored.metrics if name == "gradcam/null_gradients"]
    assert nulls == [(STEPS, 4), (2 * STEPS, 0)]
    assert [alert[:3] for alert in fit.alerts] == [
        ("raised", LAYER, "detached"),
        ("cleared", LAYER, "detached"),
    ]


def test_without_tensorboard_the_recording_and_the_alerts_are_files(service: Service, run: MakeRun) -> None:
    logger = service.begin()
    fit = run(cb(), detached(), logger=logger, max_epochs=2).fit().validate()

    recording = read_run(service.folder if service.name != "mlflow" else fit.folder)
    assert recording.steps.tolist() == LOOKS
    assert list(recording.others) == ["validate"]
    assert [line["status"] for line in fit.alerts_file] == ["raised", "raised"]  # once a run
    assert not list(fit.folder.rglob("step=*.png"))  # these the logger has
    stored = service.read(logger)
    assert stored.report == recording.to_html()
    assert set(stored.images) == {service.tag(PANEL), service.tag(f"gradcam/validate/{LAYER}")}


def test_the_users_metrics_stay_as_they_are(service: Service, run: MakeRun, tmp_path: Path) -> None:
    stored = []
    for folder in ("with", "without"):
        own = Service(service.name, tmp_path / folder)
        logger = own.begin()
        trainer = run(cb(), logger=logger, max_epochs=2, folder=folder, log_every_n_steps=1)
        if folder == "without":
            trainer.trainer.callbacks.remove(trainer.callback)  # type: ignore[attr-defined]
        trainer.fit()
        stored.append(own.read(logger).users_metrics())

    assert {name for name, *_ in stored[0]} >= {"val_loss", "val_accuracy"}
    assert stored[0] == stored[1]


class LogsInForward(Classifier):
    """Holds what a logger logs with, and uses it in each forward pass."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self.client, self.run_id = logger.experiment, logger.run_id

    def forward(self, images: Tensor) -> Tensor:
        self.client.log_metric(self.run_id, "passes", 1.0)
        return super().forward(images)


def test_what_a_replica_logs_reaches_nobody(run: MakeRun, tmp_path: Path) -> None:
    logger = Service("mlflow", tmp_path).begin()
    counts = []
    for is_watched in (True, False):
        before = len(logger.experiment.get_metric_history(logger.run_id, "passes"))
        fit = run(cb(), LogsInForward(logger), logger=logger, max_epochs=2)
        if not is_watched:
            fit.trainer.callbacks.remove(fit.callback)  # type: ignore[attr-defined]
        fit.fit()
        counts.append(len(logger.experiment.get_metric_history(logger.run_id, "passes")) - before)
    assert counts[0] == counts[1] > 0


def test_an_older_step_than_that_of_the_metrics_is_kept(service: Service) -> None:
    """Panels are written behind the training, which may be at a later step by then."""
    logger = service.begin()
    made = sink_of(service, logger)
    logger.log_metrics({"loss": 1.0}, step=100)
    made.write(report(3, "fault", layer=flat(7)))
    logger.log_metrics({"loss": 2.0}, step=101)

    stored = service.read(logger)
    [(step, content)] = stored.images[service.tag("gradcam/layer")]
    assert (step, (pixels(content) == flat(7)).all()) == (3, True)
    assert [step for step, _ in stored.alerts] == [3]
    assert [(step, value) for name, step, value in stored.metrics if name == "loss"] == [(100, 1.0), (101, 2.0)]


def test_two_threads_do_not_get_each_others_steps(service: Service) -> None:
    logger = service.begin()
    made = sink_of(service, logger)
    reports = [report(step, layer=flat(step)) for step in range(20)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writer = threading.Thread(target=lambda: [made.write(one) for one in reports])
        writer.start()
        for step in range(1000, 1200):
            logger.log_metrics({"loss": float(step)}, step=step)
        writer.join()
    finally:
        sys.setswitchinterval(before)

    stored = service.read(logger)
    assert [(step, value) for name, step, value in stored.metrics if name == "loss"] == [
        (step, step) for step in range(1000, 1200)
    ]
    kept = {step: pixels(content)[0, 0, 0] for step, content in stored.images[service.tag("gradcam/layer")]}
    assert kept == {step: step for step in range(20)}


def sink_of(service: Service, logger: Any) -> Any:
    from gradcam_callback.reporting.sinks.registry import OpenedSinks, add_logger_sinks

    opened = OpenedSinks()
    add_logger_sinks(opened, [logger], str(service.folder), [])
    [made] = opened.sinks
    return made


# What goes wrong


def blocked(service: Service, folder: Path) -> Any:
    """A logger that takes metrics and has no room for pictures: a file is where their folder would be."""
    (folder / "file").write_text("in the way")
    if service.name == "mlflow":
        return service.begin(artifact_location=f"file:{folder}/file/below")
    logger = service.begin()
    if service.name == "wandb":
        Path(logger.experiment.dir, "media").write_text("in the way")
    else:
        logger.experiment.end()  # Comet takes metrics after that, too, and says nothing
    return logger


def test_a_service_that_fails_is_said_and_the_others_go_on(service: Service, run: MakeRun, tmp_path: Path) -> None:
    others = [Service(name, tmp_path / "others") for name in SERVICES if name != service.name]
    good = [one.begin() for one in others]
    board = TensorBoardLogger(tmp_path, name="", version="")
    fit = run(cb(), logger=[blocked(service, tmp_path), *good, CSVLogger(tmp_path), board], max_epochs=2).fit()

    assert fit.trainer.global_step == 2 * STEPS
    assert [alert[:3] for alert in fit.alerts] == [("raised", "writing", "writing_failed")], fit.callback.alerts
    named = {"wandb": "W&B", "mlflow": "MLflow", "comet": "Comet"}[service.name]
    assert f"could not be written to {named}: " in fit.callback.alerts[0].message
    assert fit.events.steps(PANEL) == LOOKS
    for one, logger in zip(others, good, strict=True):
        stored = one.read(logger)
        assert_panels(stored, one, fit, LOOKS)
        assert any("writing_failed" in text for _, text in stored.alerts)


def test_a_disabled_experiment_of_comet_is_no_failure(run: MakeRun, tmp_path: Path) -> None:
    logger = Service("comet", tmp_path).begin(disabled=True)
    fit = run(cb(), logger=logger, max_epochs=1).fit()
    assert fit.alerts == []
    assert not list(tmp_path.rglob("*.zip"))


def test_what_names_of_mlflow_cannot_hold_is_replaced(run: MakeRun, tmp_path: Path) -> None:
    service = Service("mlflow", tmp_path)
    logger = service.begin()
    fit = run(cb(f"{LAYER}#-1"), detached(), logger=logger, max_epochs=1).fit()
    assert [str(alert.cause) for alert in fit.callback.alerts] == ["detached"]
    stored = service.read(logger)
    assert set(stored.images) == {f"gradcam-{LAYER}--1"}
    assert len(stored.alerts) == 1


@pytest.mark.slow
def test_mlflow_in_a_database(run: MakeRun, tmp_path: Path) -> None:
    """As MLflow keeps its runs by default; the database is written to from two threads."""
    pytest.importorskip("sqlalchemy", reason="NOT TESTED: sqlalchemy is not installed; `make test-stores` does")
    service = Service("mlflow", tmp_path)
    logger = service.begin(tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=f"file:{tmp_path}/kept")
    board = TensorBoardLogger(tmp_path, name="", version="")
    fit = run(cb(), logger=[logger, board], max_epochs=10).fit()
    assert fit.alerts == []
    assert_panels(service.read(logger), service, fit, [STEPS * epoch for epoch in range(1, 11)])


# ClearML, which takes what is written to TensorBoard

CLEARML = """
import sys
sys.path[:0] = {path}
from pathlib import Path
from clearml import Task
Task.set_offline(True)
task = Task.init("project", "task", auto_connect_arg_parser=False)
from conftest import make_run
from gradcam_callback import GradCAMCallback
from models import detached
fit = make_run(Path({folder!r}), GradCAMCallback("model.stage", 4), detached(), max_epochs=2).fit()
assert len(fit.callback.alerts) == 1, fit.callback.alerts
assert fit.events.steps("gradcam/model.stage") == [3, 6]
print("kept in", task.get_offline_mode_folder())
task.close()
"""


@pytest.mark.slow
def test_clearml_gets_what_tensorboard_gets(tmp_path: Path) -> None:
    pytest.importorskip("clearml", reason="NOT TESTED: clearml is not installed; `make test-stores` does")
    code = CLEARML.format(path=sys.path, folder=str(tmp_path / "run"))
    environment = {**os.environ, "CLEARML_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    kept = Path(done.stdout.split("kept in ")[1].splitlines()[0], "data")
    assert {file.parent.relative_to(file.parents[2]).as_posix() for file in kept.rglob("*.jpeg")} == {PANEL}
    assert len(list(kept.rglob("*.jpeg"))) == 2
    [alert] = kept.rglob("alerts/*.txt")
    assert "### raised: detached" in alert.read_text()


# No logger of these


WITHOUT = """
import sys
sys.path[:0] = {path}
from pathlib import Path
from conftest import make_run
from gradcam_callback import GradCAMCallback
from lightning.pytorch.loggers import CSVLogger
fit = make_run(Path({folder!r}), GradCAMCallback("model.stage", 4), logger=CSVLogger({folder!r}), max_epochs=1).fit()
assert fit.alerts == [], fit.alerts
assert list(Path({folder!r}).rglob("step=00000003.png"))
loaded = {{"wandb", "mlflow", "comet_ml", "comet_ml"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_no_logger_is_imported_that_is_not_used(tmp_path: Path) -> None:
    code = WITHOUT.format(path=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
