"""The benchmark runs from end to end and reports what it says it does. Its figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
TOOLS = ["forward alone", "least work", "gradcam_callback"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("benchmarks")
    done = run("--quick", "--rounds", "1", "--images", "2", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "cpu.json").read_text())


def test_the_report_says_where_and_how_it_was_measured(quick: tuple[str, dict[str, Any]]) -> None:
    report = quick[1]
    assert report["device"]
    assert report["threads"] == 1
    assert report["setting"] == {"images": 2, "size": 64, "rounds": 1}
    assert {"python", "torch", "torchvision", "lightning"} <= report["versions"].keys()


def test_each_tool_has_its_time_and_memory(quick: tuple[str, dict[str, Any]]) -> None:
    passes = {row["tool"]: row for row in quick[1]["passes"]}
    assert list(passes) == TOOLS
    assert all(row["network"] == "resnet18" and row["layer"] == "layer4" for row in passes.values())
    assert all(row["milliseconds"] > 0 for row in passes.values())
    assert passes["forward alone"]["over_forward"] == passes["least work"]["over_least"] == 1
    if passes["forward alone"]["mebibytes"] is not None:
        assert all(row["mebibytes"] > 0 for row in passes.values())
        assert passes["forward alone"]["memory_over_forward"] == 1


def test_the_whole_callback_is_measured_in_a_trainer(quick: tuple[str, dict[str, Any]]) -> None:
    (hold,) = quick[1]["callback"]
    assert hold["milliseconds"] > 0
    assert hold["over_forward"] > 0


def test_each_goal_has_a_limit_and_a_verdict(quick: tuple[str, dict[str, Any]]) -> None:
    goals = quick[1]["goals"]
    assert [goal["limit"] for goal in goals] == [1.10, 1.5, 1.3]
    for goal in goals:
        assert goal["met"] is (None if goal["value"] is None else goal["value"] <= goal["limit"])


def test_the_table_names_every_tool_and_goal(quick: tuple[str, dict[str, Any]]) -> None:
    printed, report = quick
    for word in [*TOOLS, *(goal["wish"] for goal in report["goals"])]:
        assert word in printed


def test_rounds_of_none_are_refused() -> None:
    done = run("--rounds", "0")
    assert done.returncode == 2
    assert "at least 1; given: 0" in done.stderr
