"""The plugin over HTTP, in a TensorBoard of its own process, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recordings import MadeUpRun, write_run
from tensorboards import TensorBoard, tensorboard

LOOKS = 1000
ROUTE = "data/plugin/gradcam"


@pytest.fixture(scope="module", params=[[], ["--load_fast=false"]], ids=["fast loader", "slow loader"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorBoard]:
    """A long run, one with a hostile record, and one cut short; no option says how many looks to keep."""
    folder = tmp_path_factory.mktemp("board")
    run = MadeUpRun(looks=LOOKS, probes=2, cells=(3, 3))
    write_run(folder / "long", run)
    hostile = write_run(folder / "hostile", MadeUpRun(looks=3, session=(2.0, "b")))
    write_hostile(hostile, MadeUpRun(looks=4, session=(2.0, "b")).look(3))
    torn = write_run(folder / "torn", MadeUpRun(looks=3, session=(3.0, "c")))
    torn.write_bytes(torn.read_bytes()[:-50])
    with tensorboard(folder, "--path_prefix", "/a/b", *request.param) as started:
        started.wait_for_runs(3)
        yield started


def write_hostile(path: Path, record: Any) -> None:
    """Append a record of a schema that nobody knows."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    from gradcam_callback.recording.summaries import summary_of

    summary = summary_of("gradcam/recording", record)
    content = summary.value[0].tensor.string_val[0]
    summary.value[0].tensor.string_val[0] = content[:3] + b"\x09" + content[4:]
    with path.open("ab") as file:
        event = Event(wall_time=record.origin.wall_time, step=record.origin.step, summary=summary)
        RecordWriter(file).write(event.SerializeToString())


def index_of(board: TensorBoard, run: str, looks: int) -> dict[str, Any]:
    """The JSON of a run's bundle, once it holds so many looks."""
    import time

    end = time.monotonic() + 60
    while True:
        status, data = board.get(f"{ROUTE}/bundle?run={run}")
        if status == 200:
            index: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "little")])
            if len(index["series"][0]["epochs"]) >= looks:
                return index
        assert time.monotonic() < end, (status, data[:300])
        time.sleep(0.1)


def test_no_look_is_sampled_away(board: TensorBoard) -> None:
    [series] = index_of(board, "long", LOOKS)["series"]
    assert series["epochs"] == list(range(LOOKS))
    assert series["steps"] == [10 * (epoch + 1) for epoch in range(LOOKS)]
    assert [series["probeSets"][0]["names"], series["targets"]] == [["#0", "#1"], ["predicted", "label"]]


def test_the_runs_have_versions(board: TensorBoard) -> None:
    index_of(board, "long", LOOKS)
    _, first = board.get(f"{ROUTE}/runs")
    _, second = board.get(f"{ROUTE}/runs")
    assert first == second
    assert [run["name"] for run in json.loads(first)["runs"]] == ["hostile", "long", "torn"]
    assert len({run["version"] for run in json.loads(first)["runs"]}) == 3


def test_a_record_of_the_future_is_skipped_and_said(board: TensorBoard) -> None:
    index = index_of(board, "hostile", 3)
    assert len(index["series"][0]["epochs"]) == 3
    assert "it is of schema 9" in index["notes"][0]


def test_a_file_that_is_cut_short_shows_what_it_has(board: TensorBoard) -> None:
    assert len(index_of(board, "torn", 2)["series"][0]["epochs"]) == 2


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("bundle?run=nope", 404, "There is no recording of the run 'nope'"),
        ("bundle", 400, "Say which run"),
        ("web/nope.js", 404, "has no file 'nope.js'"),
        ("web/../../../../pyproject.toml", 404, ""),
        ("web/%2e%2e/report.py", 404, ""),
        ("web//etc/passwd", 404, ""),
    ],
)
def test_what_cannot_be_answered_says_why(board: TensorBoard, path: str, status: int, reason: str) -> None:
    code, body = board.get(f"{ROUTE}/{path}")
    assert code == status
    assert reason in body.decode()
    assert b"Traceback" not in body
    assert b"import" not in body


def test_the_front_end_is_served(board: TensorBoard) -> None:
    status, body = board.get(f"{ROUTE}/web/tab.js")
    assert status == 200
    assert b"export async function render" in body
    assert board.get(f"{ROUTE}/web/view/page.js")[0] == 200
    listing = json.loads(board.get("data/plugins_listing")[1])["gradcam"]
    assert (listing["tab_name"], listing["enabled"]) == ("Grad-CAM", True)


def test_logdir_spec(tmp_path: Path) -> None:
    write_run(tmp_path / "x", MadeUpRun())
    write_run(tmp_path / "y", MadeUpRun(looks=3, session=(2.0, "b")))
    spec = ["--logdir_spec", f"first:{tmp_path / 'x'},second:{tmp_path / 'y'}"]
    with tensorboard(tmp_path, "--load_fast=false", logdir=spec) as board:
        assert board.wait_for_runs(2) == ["first/.", "second/."]  # as TensorBoard names them


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_entry_point_imports_the_standard_library_alone() -> None:
    code = """
import sys
before = set(sys.modules)
import gradcam_callback.tensorboard_plugin.entry
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    assert python(code) == "['gradcam_callback']"


def test_neither_torch_nor_lightning_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MadeUpRun())
    code = f"""
import sys
from types import SimpleNamespace
from importlib.metadata import entry_points
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
[entry] = [one for one in entry_points(group="tensorboard_plugins") if one.name == "gradcam"]
loader = entry.load()()
flags = SimpleNamespace(samples_per_plugin={{}})
loader.fix_flags(flags)
assert flags.samples_per_plugin == {{"gradcam": 0}}
multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory({str(tmp_path)!r})
multiplexer.Reload()
provider = data_provider.MultiplexerDataProvider(multiplexer, {str(tmp_path)!r})
plugin = loader.load(SimpleNamespace(data_provider=provider))
from werkzeug.test import Client
app = plugin.get_plugin_apps()["/bundle"]
answer = Client(app).get("/data/plugin/gradcam/bundle?run=run")
assert answer.status_code == 200, answer.text
assert answer.data[:4] == b"GCV1"
print([name for name in ("torch", "lightning", "matplotlib") if name in sys.modules])
"""
    assert python(code) == "[]"


def test_a_plugin_that_cannot_be_loaded_leaves_tensorboard_running() -> None:
    code = """
import sys
sys.modules["gradcam_callback.tensorboard_plugin.plugin"] = None  # importing it fails
from gradcam_callback.tensorboard_plugin import entry
print(entry.Loader().load(None))
"""
    assert python(code) == "None"


def test_an_error_inside_is_an_answer() -> None:
    code = """
from types import SimpleNamespace
from werkzeug.test import Client
from gradcam_callback.tensorboard_plugin.plugin import GradCAMPlugin

class Provider:
    def list_tensors(self, **_):
        raise ZeroDivisionError("<b>no data</b>")

plugin = GradCAMPlugin(SimpleNamespace(data_provider=Provider()))
answer = Client(plugin.get_plugin_apps()["/runs"]).get("/runs")
print(answer.status_code, answer.content_type, answer.json["error"])
"""
    assert python(code) == ("500 application/json This could not be read: ZeroDivisionError: <b>no data</b>")
