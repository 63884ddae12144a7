"""The sinks' own formats, the names of files, and that no sink takes the last room of a disk from the user."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import Events
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from test_recording import ORIGIN, look
from torch.utils.tensorboard.writer import SummaryWriter

from gradcam_callback import read_run
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.reporting.alerts import Alert, Finding, Status
from gradcam_callback.reporting.recorder import PendingRecord
from gradcam_callback.reporting.rendering.composition import EncodedImage
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.disk_space import MARGIN, NoSpaceError, ensure_space
from gradcam_callback.reporting.sinks.files import AlertFile, PanelFiles, RecordingFile, file_path, run_folder
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink

LAYER = "gradcam/model.layer4"


def encoded(pixels: np.ndarray) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return EncodedImage(buffer.getvalue(), *pixels.shape[:2])


def flat(level: int) -> np.ndarray:
    return np.full((4, 6, 3), level, np.uint8)


def report(step: int = 3, *alerts: str, **images: np.ndarray) -> Any:
    """A report whose panels are composed already."""
    findings = [Finding(text, CallbackIssue.CALLBACK_FAILED, (), (), text, "Mend it.") for text in alerts]
    raised = tuple(Alert(Status.RAISED, finding, step, 0) for finding in findings)
    made = Report(step, 0, alerts=raised)
    vars(made)["images"] = {f"gradcam/{name}": encoded(pixels) for name, pixels in images.items()}
    return made


# TensorBoard


def test_tensorboard_gets_panels_and_alerts_under_their_tags(tmp_path: Path) -> None:
    experiment = SummaryWriter(str(tmp_path))
    sink = TensorBoardSink(experiment)
    sink.write(report(3, "fault ü", "other", layer=flat(77)))
    sink.flush()

    seen = Events.read(tmp_path)
    assert (seen.pixels("gradcam/layer") == flat(77)).all()
    [(step, text)] = seen.texts["gradcam/alerts"]
    assert (step, text.count("### raised: callback_failed"), "fault ü" in text) == (3, 2, True)
    assert seen.steps("gradcam/layer") == [3]
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert accumulator.SummaryMetadata("gradcam/alerts").plugin_data.plugin_name == "text"
    experiment.close()


# Files


def folders(tmp_path: Path, kind: str) -> tuple[str, Any]:
    """A folder, and the file system that it is on."""
    if kind == "disk":
        return str(tmp_path / "run"), fsspec.filesystem("file")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return "memory://bucket/run", memory


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_files_on_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder, system = folders(tmp_path, kind)
    panels, alerts = PanelFiles(folder), AlertFile(folder)
    for sink in (panels, alerts):
        sink.write(report(120, "zwei\nZeilen ü \udce9", **{"model.layer4": flat(7)}))
        sink.write(report(120, **{"model.layer4": flat(8)}))
        sink.write(report(130, "third"))
        sink.flush()

    root = folder.replace("memory://", "/")
    expected = [f"{root}/gradcam/alerts.jsonl", f"{root}/{LAYER}/step=00000120.png"]
    assert sorted(system.find(root)) == expected
    assert (np.array(Image.open(io.BytesIO(system.cat_file(expected[1])))) == flat(8)).all()
    lines = [json.loads(line) for line in system.cat_file(expected[0]).decode().splitlines()]
    assert [line["step"] for line in lines] == [120, 130]
    assert lines[0]["message"].startswith("zwei\nZeilen ü")
    assert kind == "disk" or os.listdir(tmp_path) == []


def test_a_file_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = PanelFiles(tmp_path)

    def half(path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:10])
        raise OSError(errno.EIO, "broken cable")

    monkeypatch.setattr(sink._folder._system, "pipe_file", half)
    with pytest.raises(OSError, match="broken cable"):
        sink.write(report(layer=flat(1)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_cannot_be_appended_whole_is_not_appended_at_all(tmp_path: Path) -> None:
    """Behind half a record nobody could find the next one."""
    run = RecordingFile(tmp_path)
    records = [PendingRecord("gradcam/recording", partial(look, origin=replace(ORIGIN, number=n))) for n in range(3)]
    run.write(Report(0, 0, records=records[:1]))
    [file] = tmp_path.iterdir()
    size = file.stat().st_size
    with at_most(size + 100), pytest.raises(OSError, match="File too large"):
        run.write(Report(0, 0, records=records[1:2]))
    assert file.stat().st_size == size
    run.write(Report(0, 0, records=records[2:]))
    recording = read_run(tmp_path)
    assert len(recording) == 2
    assert "A record" not in " ".join(recording.notes)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may become larger."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_in_the_way_raises(tmp_path: Path) -> None:
    (tmp_path / "gradcam").touch()
    for sink in (PanelFiles(tmp_path), AlertFile(tmp_path)):
        with pytest.raises(OSError, match="gradcam"):
            sink.write(report(3, "fault", layer=flat(1)))


NAMES = [
    "a b",
    "a:b",
    "a_b",
    "a%20b",
    "a",
    "A",
    "a.",
    "a..",
    "..",
    ".",
    "",
    "con",
    "CON.x",
    "aux",
    "ä",
    "a\u0308",
    "a\\b",
]
NAMES += ["a*", "a?", 'a"', "a<b", "a|b", "~", "a~b", "x" * 300, "x" * 301, "a\n", " ", "a ", "nul.layer", "\udce9"]


def test_no_two_tags_share_a_file_and_none_leaves_the_folder(tmp_path: Path) -> None:
    tags = [f"gradcam/{'/'.join(names)}" for names in itertools.product(NAMES, repeat=2)]
    sink = PanelFiles(tmp_path)
    paths = [sink._directory(tag) for tag in tags]

    assert len({path.casefold() for path in paths}) == len(tags)
    for part in {part for path in paths for part in path.split("/")}:
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%#=_-.~")
        assert 0 < len(part) <= 140
        assert part[-1] != "."
        assert part.lower().split(".")[0] not in {"con", "aux", "nul"}
    assert file_path(LAYER + "#-1") == LAYER + "#-1"  # a usual name stays as it is


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_each_run_has_a_folder_of_its_own(tmp_path: Path, kind: str) -> None:
    folder, system = folders(tmp_path, kind)
    assert [run_folder(folder), run_folder(folder)] == [f"{folder}/gradcam_logs/version_{n}" for n in (0, 1)]
    system.makedirs(f"{folder}/gradcam_logs/version_7", exist_ok=True)
    assert run_folder(f"{folder}/") == f"{folder}/gradcam_logs/version_8"
    assert run_folder(folder, "my project", "../x1") == f"{folder}/my%20project/..%2Fx1"
    assert run_folder(folder, None, 3) == f"{folder}/3"


def test_an_object_store_has_no_folders_and_runs_are_told_apart_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, system = folders(tmp_path, "memory")
    monkeypatch.setattr(type(system), "makedirs", lambda *args, **options: None)
    first = run_folder(folder)
    system.pipe_file(f"{first}/gradcam/alerts.jsonl", b"")
    assert (first, run_folder(folder)) == tuple(f"{folder}/gradcam_logs/version_{n}" for n in (0, 1))


def test_a_folder_that_another_run_makes_meanwhile_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradcam_callback.reporting.sinks import files

    run_folder(tmp_path)
    monkeypatch.setattr(files, "_names", lambda *_: [])  # it was listed before the other run came
    assert run_folder(tmp_path).endswith("version_1")


# Room


def noise() -> np.ndarray:
    """A picture of half a megabyte, whatever compression does."""
    return np.random.default_rng(0).integers(0, 256, (400, 440, 3), dtype=np.uint8)


def cannot_reserve(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, "not on this file system")


@pytest.mark.parametrize("reserves", [True, False], ids=["reserving", "writing zeros"])
@pytest.mark.parametrize("kind", ["events", "files"])
def test_a_full_disk_ends_our_writing_and_not_the_users(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reserves: bool
) -> None:
    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", cannot_reserve)
    experiment = SummaryWriter(str(small_disk))
    sink = TensorBoardSink(experiment) if kind == "events" else PanelFiles(small_disk)
    panels = [report(step, layer=noise()) for step in range(6)]  # each of half a megabyte

    def fill_the_disk() -> None:
        for panel in panels:
            sink.write(panel)

    with pytest.raises(NoSpaceError, match="No space left"):
        fill_the_disk()

    experiment.flush()
    assert shutil.disk_usage(small_disk).free >= MARGIN / 2  # what is kept for the user, but for the last writes
    assert shutil.disk_usage(small_disk).used >= 2 * len(panels[0].images["gradcam/layer"].content)
    for step in range(100):
        experiment.add_scalar("of the user's", step, step)
    experiment.close()
    assert len(Events.read(small_disk).steps("of the user's")) == 100


LIMITED = """
import resource, sys
sys.path[:0] = {path}
from test_sinks import *
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
experiment = SummaryWriter({folder!r})
sink = TensorBoardSink(experiment)
for step in range(20):
    try:
        sink.write(report(step, layer=noise()))
    except NoSpaceError as error:
        print(step, error)
        break
for step in range(100):
    experiment.add_scalar("of the user's", step, step)
experiment.close()
AlertFile({folder!r}).write(report(3, "there is room for another file"))
"""


def test_a_limit_of_the_file_size_ends_our_writing_and_not_the_users(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="NOT TESTED: this system has no limits")
    code = textwrap.dedent(LIMITED).format(path=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "may not grow beyond 3145728 bytes" in done.stdout
    assert int(done.stdout.split()[0]) in range(2, 5)  # panels that did fit were written
    events = Events.read(tmp_path)
    assert len(events.steps("of the user's")) == 100
    assert len(events.steps("gradcam/layer")) == int(done.stdout.split()[0])
    assert (tmp_path / "gradcam" / "alerts.jsonl").exists()


def test_a_folder_that_is_gone_ends_our_writing_and_not_the_users(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    experiment = SummaryWriter(str(folder))
    sink = TensorBoardSink(experiment)
    experiment.flush()
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        sink.write(report(3, "fault", layer=flat(1)))

    folder.mkdir()  # the network drive is back
    experiment.add_scalar("of the user's", 1, 1)
    experiment.close()
    assert len(os.listdir(folder)) == 1


def test_room_is_not_asked_for_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_space("memory://bucket/run", 1 << 60)


def test_a_quota_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(NoSpaceError, match="quota"):
        ensure_space(str(tmp_path), 1)


def test_nothing_is_left_of_the_trial(tmp_path: Path) -> None:
    ensure_space(str(tmp_path), 1 << 16)
    assert os.listdir(tmp_path) == []
