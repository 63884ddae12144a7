"""The doctor: exit status, tables and JSON, by the command line on the demo's own configurations."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gradcam_callback import Cause, Cut, Diagnosis, PathStep, SourceLocation
from gradcam_callback.cli import main
from gradcam_callback.doctor import Report, gather, print_reports

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).parents[1] / "configs"


def doctor(config: str, *more: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--config", str(CONFIGS / config), "--trainer.accelerator=cpu", *more])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_healthy_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor("demo.yaml") == 0
    printed = capsys.readouterr().out
    for words in ("network.stages.3 · predicted, label · healthy", "nn.functional.linear", "alive", "Rescued"):
        assert words in printed
    assert printed.rstrip().endswith("Every gradient is there.")
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_broken_model_is_told_with_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor("broken.yaml") == 1
    printed = capsys.readouterr().out
    for words in ("detached", "Tensor.detach", "cut here", "broken.py", "features.detach()", "What to do"):
        assert words in printed
    assert "docs/why-is-my-gradient-none.md#detached" in printed
    assert printed.rstrip().endswith("Gradients are missing at network.stages.3.")


def test_json_is_for_machines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor("broken.yaml", "--json") == 1
    [report] = json.loads(capsys.readouterr().out)
    assert report["targets"] == ["predicted", "label"]
    assert (report["layer"], report["cause"]) == ("network.stages.3", "detached")
    assert report["probes"] == list(range(10))
    assert report["location"]["file"].endswith("broken.py")
    assert [step["operation"] for step in report["path"]][:2] == ["layer", "Tensor.detach"]
    assert [step["alive"] for step in report["path"]][:2] == [True, False]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.callbacks=lightning.pytorch.callbacks.LearningRateMonitor", "There is no GradCAMCallback"),
        ("--data.init_args.canvas=5", "a digit needs at least 28"),
        ("--trainer.callbacks.target_layers=network.stage.3", "closest"),
    ],
)
def test_what_cannot_be_looked_at_ends_with_two(tmp_path, monkeypatch, capsys, option, message):
    monkeypatch.chdir(tmp_path)
    if "target_layers" in option:
        config = tmp_path / "unknown_layer.yaml"
        config.write_text((CONFIGS / "demo.yaml").read_text().replace("network.stages.3", "network.stage.3"))
        assert doctor(str(config)) == 2
    else:
        assert doctor("demo.yaml", option) == 2
    assert message in capsys.readouterr().err


def test_any_other_failure_ends_with_two_and_its_traceback(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("no such device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradcam_callback.demo.data.ClutteredMNISTData.setup", fail)
    assert doctor("demo.yaml") == 2
    assert "OSError: no such device" in capsys.readouterr().err


def test_a_model_that_raises_is_a_null(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor("demo.yaml", "--model.init_args.network.init_args.in_channels=3") == 1
    assert "forward_failed" in capsys.readouterr().out


# Rendering

HERE = SourceLocation(__file__, 1, "forward", "maps = maps.detach()", "stage")


def diagnosis(cause: Cause | None = None, path: tuple[PathStep, ...] = ()) -> Diagnosis:
    cuts = () if cause is None else (Cut(cause, HERE, "Tensor.detach"),)
    return Diagnosis("stage", cause, HERE if cause else None, (0,), path, (), "seen", "do this", cuts)


def text_of(*reports: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_reports(reports, as_json=False, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_way_goes_from_the_score_back_to_the_layer():
    path = (
        PathStep("stage", "layer", (2, 4, 3, 3), True, None),
        PathStep("", "Tensor.detach", (2, 4, 3, 3), False, None),
        PathStep("head", "nn.functional.linear", (2, 5), False, None),
    )
    lines = text_of(Report(("predicted",), diagnosis(Cause.DETACHED, path))).splitlines()
    rows = [
        next(i for i, line in enumerate(lines) if word in line) for word in ("score", "linear", "cut here", "layer")
    ]
    assert rows == sorted(rows)
    assert "lost" in lines[rows[1]]
    assert "(model)" in lines[rows[2]]
    assert "not reached" in lines[rows[3]]


@pytest.mark.parametrize(
    ("norm", "mark"), [(0.0, "zero"), (2.0, "alive"), (float("nan"), "not finite"), (float("inf"), "not finite")]
)
def test_each_state_of_a_gradient_has_its_mark(norm, mark):
    path = (PathStep("stage", "layer", (2, 4, 3, 3), True, norm),)
    [row] = [line for line in text_of(Report(("predicted",), diagnosis(None, path))).splitlines() if "layer" in line]
    assert mark in row


def test_a_narrow_terminal_cuts_no_line():
    printed = text_of(Report(("predicted",), diagnosis(Cause.DETACHED)), width=50)
    assert max(map(len, printed.splitlines())) == 50
    assert "do this" in printed


def test_what_is_the_same_for_several_targets_is_said_once():
    found = [("predicted", diagnosis(Cause.DETACHED)), ("label", diagnosis(Cause.DETACHED)), ("cat", diagnosis())]
    assert [report.targets for report in gather(found)] == [("predicted", "label"), ("cat",)]
