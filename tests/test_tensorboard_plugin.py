"""TensorBoard as a process, asked over HTTP: every look is served, with both loaders, and nothing takes it down."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
from conftest import Run, make_run
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_INT64, DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from test_recording import ALERT, BAD, ORIGIN, look, pictures

from gradcam_callback import GradCAMCallback, Recording, read_run
from gradcam_callback.recording.records import Record
from gradcam_callback.recording.summaries import summary_of
from gradcam_callback.tensorboard_plugin import entry
from gradcam_callback.viewer.report import WEB

LOOKS = 1000
SECONDS = 90
"""What does not answer in this time never will."""
ROOT = Path(__file__).parents[1]
OPENER = build_opener(ProxyHandler({}))  # none stands between this machine and itself


# What TensorBoard is shown


def written(folder: Path, *records: Record, tag: str = "gradcam/recording") -> Path:
    """An event file with these records."""
    summaries = [
        (record.origin.step, summary_of(tag + ("" if record.KIND == "look" else f"/{record.KIND}"), record))
        for record in records
    ]
    return written_summaries(folder, summaries)


def written_summaries(folder: Path, summaries: list[tuple[int, Summary]]) -> Path:
    writer = EventFileWriter(str(folder))
    for step, summary in summaries:
        writer.add_event(Event(step=step, wall_time=1.7e9 + step, summary=summary))
    writer.close()
    return folder


def looks(count: int, first: int = 0) -> list[Record]:
    numbers = range(first, first + count)
    return [
        look(origin=replace(ORIGIN, callback=1, number=1 + n, epoch=n, step=3 * n, wall_time=1.7e9 + n))
        for n in numbers
    ]


def run_of(count: int) -> list[Record]:
    return [pictures(origin=replace(ORIGIN, callback=1, number=0, step=0)), *looks(count)]


def tensor_summary(tensor: TensorProto, tag: str = "gradcam/recording") -> Summary:
    """A summary that says it is ours, and holds another tensor."""
    summary = summary_of(tag, look())
    summary.value[0].tensor.CopyFrom(tensor)
    return summary


def payload_summary(content: bytes, tag: str = "gradcam/recording") -> Summary:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    return tensor_summary(TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[content]), tag)


def shaped(*sizes: int) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])


ODD_TENSORS = {
    "a number": TensorProto(dtype=DT_FLOAT, tensor_shape=shaped(), float_val=[1.0]),
    "a number that bytes would be made of": TensorProto(dtype=DT_INT64, tensor_shape=shaped(1), int64_val=[1 << 33]),
    "nothing": TensorProto(dtype=DT_STRING, tensor_shape=shaped(0)),
    "two texts": TensorProto(dtype=DT_STRING, tensor_shape=shaped(2), string_val=[b"a", b"b"]),
    "other numbers than its shape says": TensorProto(dtype=DT_FLOAT, tensor_shape=shaped(3), float_val=[1.0, 2.0]),
}


def write_runs(folder: Path) -> None:
    """One run of each kind."""
    written(folder / "long", *run_of(LOOKS))
    written(folder / "short" / "وصف <b>", replace(look(alerts=(ALERT,)), origin=ORIGIN))
    bad = [(3 * n, payload_summary(content)) for n, content in enumerate(BAD.values(), start=10) if len(content) < 1e5]
    good = [(one.origin.step, summary_of("gradcam/recording", one)) for one in looks(5)]
    written_summaries(folder / "hostile", good + bad)
    odd = [(1, tensor_summary(tensor, f"gradcam/recording/{n}")) for n, tensor in enumerate(ODD_TENSORS.values())]
    written_summaries(folder / "odd", good + odd)
    written_summaries(folder / "unreadable", [(0, payload_summary(b"GCR\x01nothing"))])
    [file] = written(folder / "truncated", *run_of(5)).iterdir()
    os.truncate(file, file.stat().st_size - 100)
    written_summaries(folder / "plain", [(0, Summary(value=[Summary.Value(tag="loss", simple_value=1.0)]))])


# TensorBoard, and how it is asked


@dataclass
class Board:
    """TensorBoard as a process.

    Attributes:
        process: It.
        root: Its address, with a slash.
        log: What it says.
        loader: How it was started.
    """

    process: subprocess.Popen[bytes]
    root: str
    log: Path
    loader: str = field(default="")

    def ask(self, route: str) -> tuple[int, bytes, Any]:
        """Status, body and headers of an answer, whatever it is."""
        try:
            with OPENER.open(self.root + route, timeout=SECONDS) as answer:
                return answer.status, answer.read(), answer.headers
        except HTTPError as refusal:
            return refusal.code, refusal.read(), refusal.headers

    def plugin(self, route: str) -> tuple[int, bytes]:
        return self.ask(f"data/plugin/gradcam/{route}")[:2]

    def bundle(self, run: str) -> Bundle:
        run += "/." if self.loader == "logdir_spec" and "/" not in run else ""  # as TensorBoard calls it then
        status, body = self.plugin(f"bundle?run={quote(run)}")
        assert status == 200, body
        return Bundle.parsed(body)

    def runs(self) -> dict[str, str]:
        """Each run with its version."""
        status, body = self.plugin("runs")
        assert status == 200, body
        return {run["name"].removesuffix("/."): run["version"] for run in json.loads(body)["runs"]}

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until something is so: TensorBoard reads its files behind its answers."""
        end = time.monotonic() + SECONDS
        while not self._is(condition):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def _is(self, condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except (URLError, ConnectionError, AssertionError):
            return False


@dataclass
class Bundle:
    """A bundle as the viewer reads it."""

    index: dict[str, Any]
    blocks: bytes

    @classmethod
    def parsed(cls, body: bytes) -> Bundle:
        assert body[:4] == b"GCV1"
        (length,) = struct.unpack("<I", body[4:8])
        assert (8 + length) % 8 == 0
        return cls(json.loads(body[8 : 8 + length], parse_constant=pytest.fail), body[8 + length :])

    def array(self, name: str, series: int = 0) -> np.ndarray:
        told = self.index["series"][series]["arrays"][name]
        assert told["offset"] % 8 == 0
        dtype = np.dtype(told["dtype"]).newbyteorder("<")
        count = int(np.prod(told["shape"]))
        return np.frombuffer(self.blocks, dtype, count, told["offset"]).reshape(told["shape"])

    @property
    def steps(self) -> list[int]:
        steps: list[int] = self.index["series"][0]["steps"]
        return steps

    @property
    def notes(self) -> str:
        return "\n".join(self.index["notes"])


@contextmanager
def tensorboard(folder: Path, *flags: str, prefix: str = "") -> Iterator[Board]:
    """TensorBoard, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "tensorboard.log"
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        yield Board(process, f"http://127.0.0.1:{port}{prefix}/", log)
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_runs(folder)
    return folder


KINDS = {
    "fast loader": ["--load_fast=true"],
    "slow loader": ["--load_fast=false"],
    "path prefix": ["--path_prefix=/some/where"],
    "logdir_spec": [],
}


@pytest.fixture(scope="module", params=KINDS)
def board(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    kind = request.param
    flags = [*KINDS[kind], f"--logdir={folder}"]
    if kind == "logdir_spec":
        runs = [path.name for path in folder.iterdir() if path.is_dir()]
        flags = ["--logdir_spec", ",".join(f"{name}:{folder / name}" for name in runs)]
    prefix = "/some/where" if kind == "path prefix" else ""
    with tensorboard(tmp_path_factory.mktemp("board"), *flags, prefix=prefix) as started:
        started.loader = kind
        started.wait(lambda: len(started.bundle("long").steps) == LOOKS and len(started.runs()) == 6)
        yield started


# What it serves


def test_every_look_is_served_without_an_option(board: Board) -> None:
    bundle = board.bundle("long")
    assert bundle.steps == [3 * n for n in range(LOOKS)]
    [series] = bundle.index["series"]
    assert series["epochs"] == list(range(LOOKS))
    assert bundle.array("levels/0").shape == (LOOKS, 2, 3, 7, 7)
    assert bundle.notes == ""
    first = look()
    for name, array in {
        "levels/0": first.layers[0].levels,
        "peaks/0": first.layers[0].peaks,
        "states/0": first.layers[0].states,
        "flags/0": first.layers[0].flags,
        "norms/0": first.layers[0].norms,
        "classes": first.classes,
        "predictions": first.predictions,
        "scores": first.scores,
    }.items():
        np.testing.assert_array_equal(bundle.array(name)[LOOKS // 2], array)


def test_the_pictures_of_the_probes_are_in_the_bundle(board: Board) -> None:
    bundle = board.bundle("long")
    [probe_set] = bundle.index["series"][0]["probeSets"]
    found = [bundle.blocks[one["offset"] : one["offset"] + one["length"]] for one in probe_set["images"]]
    assert found == [image.content for image in pictures().images]
    assert set(bundle.index["series"][0]["probeSetOf"]) == {0}


def test_the_runs_with_a_recording_are_listed(board: Board) -> None:
    assert set(board.runs()) == {"long", "short/وصف <b>", "hostile", "odd", "unreadable", "truncated"}
    assert board.runs() == board.runs()


def test_text_of_a_run_stays_text(board: Board) -> None:
    [alert] = board.bundle("short/وصف <b>").index["series"][0]["alerts"]
    assert alert["message"] == ALERT["message"]
    status, _, headers = board.ask("data/plugin/gradcam/bundle?run=short/%D9%88%D8%B5%D9%81%20%3Cb%3E")
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_records_that_cannot_be_read_are_skipped_and_said(board: Board) -> None:
    bundle = board.bundle("hostile")
    assert bundle.steps == [0, 3, 6, 9, 12]
    small = [name for name, content in BAD.items() if len(content) < 1e5]
    # "nothing" is a tensor that TensorBoard may leave out.
    assert bundle.notes.count("A record could not be read") >= len(small) - 1
    assert "schema 2, and this version reads 1" in bundle.notes


def test_tensors_that_are_no_records_are_skipped_and_said(board: Board) -> None:
    bundle = board.bundle("odd")
    assert bundle.steps == [0, 3, 6, 9, 12]
    assert bundle.notes.count("A record could not be read") == len(ODD_TENSORS)
    for number in range(len(ODD_TENSORS)):
        assert f"gradcam/recording/{number}" in bundle.notes


def test_a_file_that_ends_in_a_record_has_all_others(board: Board) -> None:
    """TensorBoard waits for the rest of it, and tells the plugin nothing."""
    assert board.bundle("truncated").steps == [0, 3, 6, 9]


def assert_refused(board: Board, route: str, status: int) -> str:
    given, body = board.plugin(route)
    assert given == status, body
    text = body.decode()
    assert "Traceback" not in text
    assert ".py" not in text
    assert board.process.poll() is None
    return text


def test_a_run_that_is_not_there_is_not_found(board: Board) -> None:
    for run in ("nowhere", "plain", "", "../long", "long/", "%00", "<script>"):
        reason = json.loads(assert_refused(board, f"bundle?run={quote(run)}", 404))["error"]
        assert "There is no recording of the run" in reason


def test_a_bundle_of_no_run_is_a_bad_request(board: Board) -> None:
    assert "Say which run" in json.loads(assert_refused(board, "bundle", 400))["error"]
    assert_refused(board, "bundle?ran=long", 400)


def test_a_run_of_which_nothing_can_be_read_says_why(board: Board) -> None:
    run = "unreadable/." if board.loader == "logdir_spec" else "unreadable"
    reason = json.loads(assert_refused(board, f"bundle?run={run}", 404))["error"]
    assert f"No record of the run {run!r} could be read" in reason
    assert "it is damaged" in reason


@pytest.mark.parametrize(
    "name",
    [
        "../plugin.py",
        "..%2fplugin.py",
        "%2e%2e/plugin.py",
        "../../viewer/report.py",
        "a/../../report.py",
        "....//report.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "..%5creport.py",
        "__init__.py",
        "nothing.js",
        "",
        ".",
    ],
)
def test_only_the_viewers_own_files_are_served(board: Board, name: str) -> None:
    status, body = board.plugin(f"web/{name}")
    assert status == 404, body
    assert b"Traceback" not in body
    assert b"import" not in body
    assert b"root:" not in body


@pytest.mark.skipif(not WEB.is_dir(), reason="NOT TESTED: the viewer is not there")
def test_the_viewers_own_files_are_served_as_what_they_are(board: Board) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in WEB.rglob("*"):
        if path.is_file():
            status, body, headers = board.ask(f"data/plugin/gradcam/web/{path.relative_to(WEB).as_posix()}")
            assert (status, body) == (200, path.read_bytes()), path
            if path.suffix in kinds:
                assert headers["Content-Type"].startswith(kinds[path.suffix])


def test_the_plugin_is_active_and_says_where_its_front_end_is(board: Board) -> None:
    _, body, _ = board.ask("data/plugins_listing")
    listed = json.loads(body)["gradcam"]
    assert listed["enabled"]
    assert listed["tab_name"] == "Grad-CAM"
    assert not listed["disable_reload"]
    assert listed["loading_mechanism"]["type"] == "IFRAME"
    page = listed["loading_mechanism"]["module_path"]
    assert page.endswith("data/plugin/gradcam/web/tab.js")


def test_tensorboard_goes_on_beside_it(board: Board) -> None:
    """Whatever was asked of the plugin, another one has its data."""
    status, body, _ = board.ask("data/plugin/scalars/tags")
    assert status == 200
    assert "loss" in json.loads(body.replace(b"/.", b""))["plain"]
    assert "Traceback" not in board.log.read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="NOT TESTED: this system does not tell")
def test_the_process_has_no_library_of_torch_in_its_memory(board: Board) -> None:
    mapped = Path(f"/proc/{board.process.pid}/maps").read_text()
    assert "numpy" in mapped
    assert "torch" not in mapped


def test_many_may_ask_at_the_same_time(board: Board) -> None:
    with ThreadPoolExecutor(8) as threads:
        bundles = list(threads.map(board.bundle, ["long", "hostile", "odd", "truncated", "short/وصف <b>"] * 4))
    assert [len(bundle.steps) for bundle in bundles] == [LOOKS, 5, 5, 4, 1] * 4


@pytest.mark.parametrize("flag", ["--load_fast=true", "--load_fast=false"])
def test_new_looks_appear_and_change_the_version(tmp_path: Path, flag: str) -> None:
    file = tmp_path / "logs" / "live" / "events.out.tfevents.1.host"
    file.parent.mkdir(parents=True)
    append(file, run_of(2))
    with tensorboard(tmp_path, f"--logdir={tmp_path / 'logs'}", flag, "--reload_interval=1") as board:
        board.wait(lambda: len(board.bundle("live").steps) == 2)
        before = board.runs()["live"]
        append(file, looks(1, first=2))
        board.wait(lambda: board.runs()["live"] != before)
        assert board.bundle("live").steps == [0, 3, 6]
        shutil.rmtree(file.parent)
        assert board.ask("")[0] == 200


def append(file: Path, records: list[Record]) -> None:
    buffer = io.BytesIO()
    frames = RecordWriter(buffer)
    for record in records:
        tag = "gradcam/recording" + ("" if record.KIND == "look" else f"/{record.KIND}")
        event = Event(step=record.origin.step, wall_time=record.origin.wall_time, summary=summary_of(tag, record))
        frames.write(event.SerializeToString())
    with file.open("ab") as stream:
        stream.write(buffer.getvalue())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two callbacks, two validations at one step, and another stage."""
    second = GradCAMCallback("model.stem", 2)
    settings = {"accumulate_grad_batches": 3, "val_check_interval": 1, "max_epochs": 2, "callbacks": [second]}
    fit = make_run(tmp_path_factory.mktemp("real"), GradCAMCallback("model.stage", 4), **settings)
    return fit.fit().validate()


@pytest.mark.parametrize("flag", ["--load_fast=true", "--load_fast=false"])
def test_a_real_run_is_served_as_it_is_read(real: Run, tmp_path: Path, flag: str) -> None:
    recording = read_run(real.folder)
    assert recording.steps.tolist() == [0, 0, 1, 1, 1, 2]
    with tensorboard(tmp_path, f"--logdir={real.folder}", flag) as board:
        board.wait(lambda: [len(one["steps"]) for one in board.bundle(".").index["series"]] == [6, 6, 1, 1])
        bundle = board.bundle(".")
    every = [recording, *recording.others.values()]
    names = ["fit", "fit, callback 2", "validate", "validate, callback 2"]
    assert [series["name"] for series in bundle.index["series"]] == names
    for number, one in enumerate(every):
        assert_same(bundle, number, one)


@pytest.mark.parametrize("flag", ["--load_fast=true", "--load_fast=false"])
def test_a_run_that_was_resumed_from_an_earlier_step_is_served_as_it_is_read(tmp_path: Path, flag: str) -> None:
    """A smaller step after a larger one: the loaders differ in what they keep then."""
    folder = tmp_path / "logs"
    for session, steps in enumerate(([0, 3, 6, 9, 12], [6, 9], [9, 12, 15])):
        origin = replace(ORIGIN, callback=1, session=(1.7e9 + session, str(session)))
        numbered = [replace(origin, number=n, step=step, epoch=step // 3) for n, step in enumerate([steps[0], *steps])]
        made = [look(origin=one, scores=np.full((2, 3), session, np.float32)) for one in numbered[1:]]
        written(folder / str(session), pictures(origin=numbered[0]), *made)
        # Files are read in the order of their names. A later session has a later second there; of files of one second
        # only a count of the process tells which is the later one, and "10" comes before "9".
        (folder / "run").mkdir(exist_ok=True)
        [file] = (folder / str(session)).iterdir()
        file.rename(folder / "run" / f"events.out.tfevents.{1_700_000_000 + session}.host.1.0")
        file.parent.rmdir()
    recording = read_run(folder)
    assert recording.steps.tolist() == [0, 3, 6, 9, 12, 15]
    assert recording.scores[:, 0, 0].tolist() == [0, 0, 1, 2, 2, 2]
    with tensorboard(tmp_path, f"--logdir={folder}", flag) as board:
        # The last step may be there before all that belongs to it.
        board.wait(lambda: assert_same(board.bundle("run"), 0, recording) is None)


def assert_same(bundle: Bundle, number: int, recording: Recording) -> None:
    series = bundle.index["series"][number]
    assert series["steps"] == recording.steps.tolist()
    assert series["epochs"] == recording.epochs.tolist()
    assert tuple(series["targets"]) == recording.targets
    [layer] = recording.layers
    np.testing.assert_array_equal(bundle.array("levels/0", number), recording.levels[layer])
    np.testing.assert_array_equal(bundle.array("peaks/0", number), recording.peaks[layer])
    np.testing.assert_array_equal(bundle.array("targetProbabilities", number), recording.probabilities)


# What it imports, and what happens where it cannot


def python(code: str, *args: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_entry_module_imports_the_standard_library_alone() -> None:
    for node in ast.parse(Path(entry.__file__).read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert str(name).split(".")[0] in sys.stdlib_module_names
    code = """
import sys
before = {name.split(".")[0] for name in sys.modules}
import gradcam_callback.tensorboard_plugin.entry
print(*({name.split(".")[0] for name in sys.modules} - before))
"""
    assert set(python(code).split()) - set(sys.stdlib_module_names) == {"gradcam_callback"}


IN_PROCESS = """
import sys
from importlib.metadata import EntryPoint
from tensorboard import default, program
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin

point = EntryPoint("gradcam", "gradcam_callback.tensorboard_plugin.entry:Loader", "tensorboard_plugins")
loader = point.load()()
multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"gradcam": 0})
multiplexer.AddRunsFromDirectory(sys.argv[1])
multiplexer.Reload()
provider = data_provider.MultiplexerDataProvider(multiplexer, sys.argv[1])
plugin = loader.load(base_plugin.TBContext(data_provider=provider))
"""


def test_the_process_of_tensorboard_imports_neither_torch_nor_lightning(folder: Path) -> None:
    code = f"""{IN_PROCESS}
assert plugin.is_active()
environ = {{"QUERY_STRING": "run=long", "REQUEST_METHOD": "GET", "wsgi.input": None, "SERVER_NAME": "x"}}
environ |= {{"SERVER_PORT": "1", "wsgi.url_scheme": "http", "PATH_INFO": "/data/plugin/gradcam/bundle"}}
said = []
body = b"".join(plugin.get_plugin_apps()["/bundle"](environ, lambda status, headers: said.append(status)))
assert said == ["200 OK"] and body.startswith(b"GCV1"), (said, body[:500])
loaded = {{"torch", "torchvision", "lightning", "matplotlib"}} & set(sys.modules)
assert not loaded, loaded
"""
    python(code, str(folder))


@pytest.mark.parametrize("missing", ["tensorboard_plugin.plugin", "recording.event_files", "viewer.report"])
def test_a_plugin_that_cannot_be_imported_is_left_out(missing: str) -> None:
    code = f"""
import logging, sys
from tensorboard.plugins import base_plugin
from gradcam_callback.tensorboard_plugin import entry
logging.basicConfig(stream=sys.stdout)
sys.modules["gradcam_callback.{missing}"] = None
print("plugin:", entry.Loader().load(base_plugin.TBContext()))
"""
    said = python(code)
    assert "plugin: None" in said
    assert "There is no Grad-CAM tab" in said


def test_tensorboard_starts_without_a_plugin_that_is_broken(folder: Path, tmp_path: Path) -> None:
    """As a process, with a module in the way of ours."""
    code = """
import sys
sys.modules["gradcam_callback.tensorboard_plugin.plugin"] = None
from tensorboard.main import run_main
sys.argv[0] = "tensorboard"
run_main()
"""
    script = tmp_path / "board.py"
    script.write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(script), f"--logdir={folder}", "--host=127.0.0.1", f"--port={port}"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        board = Board(process, f"http://127.0.0.1:{port}/", log)
        board.wait(lambda: board.ask("data/plugins_listing")[0] == 200)
        listing = json.loads(board.ask("data/plugins_listing")[1])
        assert "scalars" in listing
        assert "gradcam" not in listing
        assert "There is no Grad-CAM tab" in log.read_text()
    finally:
        process.terminate()
        process.wait(SECONDS)


def test_a_flag_of_the_user_for_our_samples_wins() -> None:
    class Flags:
        samples_per_plugin = {"images": 5, "gradcam": 7}  # noqa: RUF012 - as argparse has it

    flags = Flags()
    entry.Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {"images": 5, "gradcam": 7}
    flags.samples_per_plugin = {"images": 5}
    entry.Loader().fix_flags(flags)
    assert flags.samples_per_plugin == {"images": 5, "gradcam": 0}
    entry.Loader().fix_flags(object())


def test_no_file_of_the_viewer_lies_outside_its_folder() -> None:
    for path in WEB.rglob("*"):
        assert path.resolve().is_relative_to(WEB.resolve())
