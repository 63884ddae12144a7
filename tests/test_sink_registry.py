"""Which sink belongs to which logger, sinks of one's own, and what is said of those that cannot be opened."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from models import STEPS, detached
from test_docs import SECTIONS, instantiated

from gradcam_callback import GradCAMCallback, Report, Sink, SinkContext, read_run
from gradcam_callback.reporting.sinks import registry
from gradcam_callback.reporting.sinks.files import PanelFiles

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"
HERE = "test_sink_registry"


class Notes:
    """A sink that writes down what it gets."""

    name = "notes"
    made: list[Notes] = []  # noqa: RUF012

    def __init__(self, context: SinkContext, prefix: str = "") -> None:
        self.context, self.prefix = context, prefix
        self.seen: list[tuple[str, int]] = []
        self.html = ""
        Notes.made.append(self)

    def write(self, report: Report) -> None:
        tags = [*report.images, *(["alerts"] if report.alerts else []), *(record.tag for record in report.records)]
        self.seen += [(self.prefix + tag, report.step) for tag in tags]

    def flush(self) -> None:
        self.html = self.context.html()


class OtherNotes(Notes):
    name = "other notes"


class Broken:
    def __init__(self, context: SinkContext) -> None:
        raise ConnectionError("nobody there")


def no_sink(context: SinkContext) -> Any:
    return 7


class OwnLogger(CSVLogger):
    """A logger that nobody else knows."""


class OwnBoard(TensorBoardLogger):
    """Lightning's, with a change of the user's."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.setattr(Notes, "made", [])


def cb(**settings: Any) -> GradCAMCallback:
    return GradCAMCallback(LAYER, 4, **settings)


# By the class of the logger


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(
    ("logger", "module", "sink"),
    [
        (WandbLogger, "wandb", "wandb:WandbSink"),
        (MLFlowLogger, "mlflow", "mlflow:MLFlowSink"),
        (CometLogger, "comet", "comet:CometSink"),
        (TensorBoardLogger, "tensorboard", "tensorboard:TensorBoardSink.of"),
    ],
)
def test_loggers_are_known_by_name_under_both_names_of_lightning(
    logger: type, module: str, sink: str, package: str
) -> None:
    assert (logger.__module__, logger.__name__) == (f"lightning.pytorch.loggers.{module}", logger.__name__)
    twin = type(logger.__name__, (), {"__module__": f"{package}.loggers.{module}"})
    child = type("Child", (twin,), {})
    for kind in (twin, child):
        [name] = [name for name in registry._class_names(kind) if name in registry._BUILT_IN]
        assert registry._BUILT_IN[name].endswith(f".{sink}")
        assert registry.is_logger(kind(), registry.TENSORBOARD) is (module == "tensorboard")


def test_a_logger_of_another_name_has_none(run: MakeRun, tmp_path: Path) -> None:
    fit = run(cb(), logger=OwnLogger(tmp_path), max_epochs=1).fit()
    [file] = tmp_path.rglob("*.png")
    assert file.parent.parent.parent == Path(fit.trainer.log_dir)


def test_a_subclass_is_its_base(run: MakeRun, tmp_path: Path) -> None:
    loggers = [OwnBoard(tmp_path / "a", name="", version=""), TensorBoardLogger(tmp_path / "b", name="", version="")]
    fit = run(cb(), logger=loggers, max_epochs=1).fit()
    assert fit.alerts == []
    for folder in ("a", "b"):
        assert read_run(tmp_path / folder).steps.tolist() == [STEPS]
    assert not list(tmp_path.rglob("*.png"))


def test_another_package_brings_a_sink(run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_package(tmp_path, monkeypatch, f"{HERE}.OwnLogger = {HERE}:Notes")
    fit = run(cb(), detached(), logger=OwnLogger(tmp_path), max_epochs=1).fit()

    [notes] = Notes.made
    assert notes.context == SinkContext(fit.trainer.logger, fit.trainer.log_dir)
    assert notes.seen == [
        ("gradcam/recording/alerts", 0),
        ("alerts", 0),
        ("gradcam/recording/probes", STEPS),
        ("gradcam/recording", STEPS),
        (PANEL, STEPS),
    ]
    assert notes.html == read_run(notes.context.folder).to_html()
    assert not list(tmp_path.rglob("*.png"))


def test_the_class_itself_goes_before_its_base_and_an_option_before_all(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_package(tmp_path, monkeypatch, f"{HERE}.OwnBoard = {HERE}:Notes")
    logger = OwnBoard(tmp_path, name="", version="")
    run(cb(panels="never"), logger=logger, max_epochs=1).fit()
    option = {"class_path": f"{HERE}.OtherNotes", "logger": f"{HERE}.OwnBoard"}
    run(cb(sinks=[option]), logger=logger, max_epochs=1).fit()
    assert [note.name for note in Notes.made] == ["notes", "other notes"]


def add_package(folder: Path, monkeypatch: pytest.MonkeyPatch, entry_point: str) -> None:
    """Install a package that says nothing but this."""
    info = folder / "site" / "own-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{entry_point}\n")
    monkeypatch.syspath_prepend(folder / "site")


# By the option


@pytest.mark.parametrize("kind", ["name", "class", "function", "with arguments", "object"])
def test_a_sink_for_the_whole_run(run: MakeRun, kind: str) -> None:
    own = Notes(SinkContext(None, "elsewhere"))
    own.flush = lambda: None  # type: ignore[method-assign]
    given = {
        "name": f"{HERE}.Notes",
        "class": Notes,
        "function": lambda context: Notes(context),
        "with arguments": {"class_path": f"{HERE}:Notes", "init_args": {"prefix": "own "}},
        "object": own,
    }
    Notes.made.clear()
    fit = run(cb(sinks=[given[kind]]), max_epochs=2).fit()

    [notes] = Notes.made or [own]
    prefix = "own " if kind == "with arguments" else ""
    assert [step for tag, step in notes.seen if tag == prefix + PANEL] == [STEPS, 2 * STEPS]
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]  # besides, and not instead
    if kind != "object":
        assert notes.context == SinkContext(None, fit.trainer.log_dir)
        assert notes.html == read_run(fit.folder).to_html()


def test_the_sink_in_the_documents(run: MakeRun) -> None:
    [section] = [section for section in SECTIONS if str(section) == "loggers.md#add-one"]
    names: dict[str, Any] = {}
    exec(section.in_language("python")[0].code, names)
    fit = run(cb(sinks=[names["JournalSink"]]), detached(), max_epochs=1).fit()

    size = len(fit.events.images[PANEL][0][1])
    lines = (fit.folder / "journal.txt").read_text().splitlines()
    assert lines == ["step 0: raised detached", f"step {STEPS}: {PANEL}, {size} bytes"]
    assert (fit.folder / "journal.html").read_text() == read_run(fit.folder).to_html()
    assert fit.alerts == [("raised", LAYER, "detached", 0)]


def test_panels_as_files_besides(run: MakeRun) -> None:
    fit = run(cb(sinks=["gradcam_callback.reporting.sinks.files.PanelFiles.of"]), max_epochs=1).fit()
    assert (fit.folder / PANEL / f"step={STEPS:08d}.png").read_bytes() == fit.events.images[PANEL][0][1]


def test_a_sink_in_yaml() -> None:
    given = [
        f"{HERE}.Notes",
        {"class_path": f"{HERE}.Notes", "init_args": {"prefix": "x"}, "logger": f"{HERE}.OwnBoard"},
    ]
    callback = instantiated({"class_path": "gradcam_callback.GradCAMCallback", "init_args": {"sinks": given}})
    first, second = callback.settings.sinks
    assert (first.text, first.logger) == (f"{HERE}.Notes", None)
    assert (second.text, second.logger) == (f"{HERE}.Notes(prefix='x')", f"{HERE}.OwnBoard")
    assert second.make(SinkContext(None, "")).prefix == "x"  # type: ignore[attr-defined]


def test_callbacks_with_other_sinks_are_told_apart_the_same_way_in_every_run() -> None:
    keys = [cb(sinks=sinks).state_key for sinks in (None, [Notes], [PanelFiles.of])]
    assert len(set(keys)) == 3
    assert cb(sinks=[Notes(SinkContext(None, ""))]).state_key == keys[1]
    assert pickle.loads(pickle.dumps(cb(sinks=[Notes]))).state_key == keys[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("one", "`sinks` is a list; given: 'one'"),
        ([7], "cannot be 7"),
        (["nowhere.Sink"], "'nowhere.Sink' in `sinks` could not be imported: ModuleNotFoundError"),
        ([f"{HERE}.Nothing"], "could not be imported: AttributeError"),
        ([f"{HERE}.HERE"], "cannot be 'test_sink_registry'"),
        ([{"init_args": {}}], "cannot be {'init_args': {}}"),
        ([{"class_path": f"{HERE}.Notes", "args": 1}], "'args': 1"),
        ([{"class_path": f"{HERE}.Notes", "logger": 7}], "`logger` of a sink is a class"),
    ],
)
def test_what_is_no_sink_is_refused_before_anything_is_trained(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^") as raised:
        cb(sinks=given)
    assert said in str(raised.value)


# What cannot be opened


@pytest.mark.parametrize(("name", "said"), [("Broken", "ConnectionError: nobody there"), ("no_sink", "int is no sink")])
@pytest.mark.parametrize("way", ["option", "logger", "entry point"])
def test_a_sink_that_cannot_be_opened_is_said_and_the_others_go_on(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str, way: str
) -> None:
    sinks: list[Any] = [f"{HERE}.Notes"]
    if way == "entry point":
        add_package(tmp_path, monkeypatch, f"{HERE}.OwnLogger = {HERE}:{name}")
    else:
        option = {"class_path": f"{HERE}.{name}", "logger": OwnLogger if way == "logger" else None}
        sinks.insert(0, option)
    loggers = [OwnLogger(tmp_path / "own"), TensorBoardLogger(tmp_path, name="", version="")]
    fit = run(cb(sinks=sinks), logger=loggers, max_epochs=2).fit()

    assert fit.alerts == [("raised", "sinks", "writing_failed", 0)]
    assert said in fit.callback.alerts[0].message
    assert any(said in text for text in fit.our_warnings())
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
    assert len(fit.alerts_file) == 1
    assert [step for tag, step in Notes.made[0].seen if tag == PANEL] == [STEPS, 2 * STEPS]


def test_a_package_that_is_broken_is_said(run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_package(tmp_path, monkeypatch, f"{HERE}.OwnLogger = not_there:Sink")
    fit = run(cb(), logger=OwnLogger(tmp_path), max_epochs=1).fit()
    assert "OwnLogger gets no panels and alerts: ModuleNotFoundError" in fit.callback.alerts[0].message
    assert len(list(tmp_path.rglob("*.png"))) == 1  # nobody else takes them


def test_without_a_folder_the_sinks_go_on(run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    fit = run(cb(sinks=[OtherNotes, Notes]), logger=False, default_root_dir=tmp_path / "file" / "runs", max_epochs=1)
    fit.fit()
    for notes in Notes.made:
        assert (PANEL, STEPS) in notes.seen
    assert {alert.finding.subject for alert in fit.callback.alerts} == {"sinks", "writing"}  # there is no report


def test_the_protocol_is_what_is_asked_for() -> None:
    assert isinstance(Notes(SinkContext(None, "")), Sink)
    assert not isinstance(7, Sink)
