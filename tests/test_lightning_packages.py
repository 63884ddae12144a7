"""The two packages of Lightning: a Trainer of either takes the callback, with both installed and with either alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
from conftest import Events
from lightning.pytorch.callbacks import Callback

import gradcam_callback
from gradcam_callback import lightning_api

PROGRAM = Path(__file__).parent / "programs" / "either_package.py"
OTHER = "pytorch_lightning"


@pytest.mark.parametrize(
    ("package", "settings", "imported"),
    [
        pytest.param("pytorch_lightning", (), ["pytorch_lightning"], marks=pytest.mark.slow),
        ("pytorch_lightning", ("--late",), ["lightning", "pytorch_lightning"]),
        ("pytorch_lightning", ("--hide=lightning", "--late"), ["pytorch_lightning"]),
        pytest.param(
            *("lightning.pytorch", ("--hide=pytorch_lightning", "--hide=lightning_fabric"), ["lightning"]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["both installed", "both, and ours imported first", "pytorch_lightning alone", "lightning alone"],
)
def test_a_trainer_of_either_package(
    package: str, settings: tuple[str, ...], imported: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(OTHER, reason="NOT TESTED beside the package pytorch_lightning: it is not installed")
    command = [sys.executable, str(PROGRAM), package, *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["is_callback"]
    assert result["packages"] == imported  # the other one is not imported for our sake
    assert result["log"] == f"{package}.utilities.rank_zero"  # what Lightning says goes where its user expects it
    assert result["trained"]["alerts"] == []
    assert result["trained"]["smallest"] == pytest.approx(-0.5, abs=1e-3)  # the model's hook has seen the probes
    assert result["cut"] == ["detached"]
    assert result["by_command_line"] == ["body"]
    assert result["resumed"] == {"epochs": 3, "indices": [0, 1, 2]}

    events = Events.read(tmp_path / "trained" / "lightning_logs" / "version_0")
    assert events.steps("gradcam/body") == [3, 6]
    assert len(events.images["gradcam/body"]) == 2
    assert events.values("gradcam/null_gradients") == [0, 0]
    assert Events.read(tmp_path / "by_cli" / "lightning_logs" / "version_0").steps("gradcam/body") == [3, 6]
    assert Events.read(tmp_path / "resumed" / "lightning_logs" / "version_0").steps("gradcam/body") == [9]


def test_a_class_of_lightning_as_each_imported_package_has_it() -> None:
    kinds = lightning_api.each(lightning.pytorch.Trainer)
    assert lightning.pytorch.Trainer in kinds
    assert [kind.__module__.partition(".")[0] for kind in kinds] == [
        package.__name__.partition(".")[0] for package in lightning_api.imported()
    ]


def test_a_callback_inherits_once_from_each_package() -> None:
    class Bare:
        pass

    class Ours(Bare):
        pass

    for _ in range(2):
        assert issubclass(lightning_api.inherit(Ours), Callback)
    assert Ours.__bases__.count(Callback) == 1
    assert gradcam_callback.GradCAMCallback is gradcam_callback.callback.GradCAMCallback


@pytest.mark.slow
def test_the_doctor_examines_a_program_of_the_other_package(tmp_path: Path) -> None:
    pytest.importorskip(OTHER)
    command = [str(Path(sys.executable).with_name("gradcam-callback")), "doctor", "--json", str(PROGRAM), OTHER]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [report["layer"] for report in json.loads(done.stdout)] == ["body"]
