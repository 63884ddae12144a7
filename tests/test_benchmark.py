"""The benchmark runs from end to end and reports what it says it does. Its figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import needs_browser

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
TOOLS = ["forward alone", "least work", "gradcam_callback"]
LIMITS = {
    "probe pass: time over the least work": 1.10,
    "probe pass: memory over the least work": 1.25,
    "attached: hold over a validation without": 0.01,
    "attached: hold over a forward of the probes": 1.3,
    "growth: last quarter of the epochs over the first": 1.10,
}

Reports = dict[str, dict[str, Any]]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Reports]:
    folder = tmp_path_factory.mktemp("benchmarks")
    done = run("--quick", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    names = ("passes", "methods", "attached", "growth")
    assert {path.name for path in folder.iterdir()} == {f"cpu-{name}.json" for name in names}
    return done.stdout, {name: json.loads((folder / f"cpu-{name}.json").read_text()) for name in names}


def test_each_report_says_where_and_how_it_was_measured(quick: tuple[str, Reports]) -> None:
    for report in quick[1].values():
        assert report["device"]
        assert report["threads"] == 1
        assert report["setting"] == {"rounds": 1, "seconds": 0.0}
        assert {"python", "torch", "torchvision", "lightning"} <= report["versions"].keys()


def test_each_tool_has_its_time_and_memory(quick: tuple[str, Reports]) -> None:
    passes = {row["tool"]: row for row in quick[1]["passes"]["passes"]}
    assert list(passes) == TOOLS
    for row in passes.values():
        assert (row["network"], row["layer"], row["images"], row["rounds"]) == ("resnet18", "layer4", 2, 1)
        assert row["milliseconds"] > 0
    assert passes["forward alone"]["over_forward"] == passes["least work"]["over_least"]
    assert passes["least work"]["over_least"] == {"median": 1, "low": 1, "high": 1}
    if passes["forward alone"]["mebibytes"] is not None:
        assert all(row["mebibytes"] > 0 for row in passes.values())
        assert passes["forward alone"]["memory_over_forward"] == passes["least work"]["memory_over_least"] == 1


def test_validations_are_measured_with_and_without_the_callback(quick: tuple[str, Reports]) -> None:
    demo, other = quick[1]["attached"]["attached"]
    assert (demo["what"], demo["layer"], demo["batches"]) == ("the demo", "network.stages.3", 1)
    assert other["batches"] == 2
    for row in (demo, other):
        assert (row["probes"], row["rounds"]) == (8, 1)
        assert row["milliseconds_with"] > row["hold_milliseconds"] > 0
        assert row["over_without"]["median"] == row["milliseconds_with"] / row["milliseconds_without"]


def test_the_ends_of_a_long_training_are_compared(quick: tuple[str, Reports]) -> None:
    time, size = quick[1]["growth"]["growth"]
    assert (time["what"], size["what"]) == ("gradcam/seconds (ms)", "log directory (bytes)")
    for row in (time, size):
        assert row["epochs"] == 4
        assert row["last_over_first"] == row["last"] / row["first"]
    assert size["first"] > 1000  # a panel


def test_each_goal_has_a_limit_and_a_verdict(quick: tuple[str, Reports]) -> None:
    goals = [goal for report in quick[1].values() for goal in report["goals"]]
    assert {goal["wish"]: goal["limit"] for goal in goals} == LIMITS
    for goal in goals:
        assert goal["met"] is (None if goal["value"] is None else goal["value"] <= goal["limit"])


def test_the_tables_name_every_row_and_goal(quick: tuple[str, Reports]) -> None:
    printed, reports = quick
    missed = [goal["wish"] for report in reports.values() for goal in report["goals"] if goal["met"] is False]
    for word in ["resnet18 layer4", "the demo", "log directory (bytes)", *LIMITS]:
        assert f"| {word}" in printed
    for wish in LIMITS:  # once in the summary, and once for each time that it was missed
        assert printed.count(f"| {wish} ") == 1 + missed.count(wish)


def test_one_table_alone(tmp_path: Path) -> None:
    done = run("--quick", "--only", "growth", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-growth.json"]
    assert "gradcam/seconds" in done.stdout
    assert "resnet18" not in done.stdout


@needs_browser
@pytest.mark.slow
def test_the_viewer_is_measured_in_a_browser(tmp_path: Path) -> None:
    done = run("--quick", "--only", "viewer", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "cpu-viewer.json").read_text())
    lost = [row["value"] for row in report["viewer"] if row["what"] == "looks that are lost"]
    assert lost == [0, 0, 0]
    assert all(row["value"] > 0 for row in report["viewer"] if row["what"] != "looks that are lost")
    assert len(report["goals"]) == 5 + 2 * 5 + 1


def test_rounds_of_none_are_refused() -> None:
    done = run("--rounds", "0")
    assert done.returncode == 2
    assert "at least 1; given: 0" in done.stderr
