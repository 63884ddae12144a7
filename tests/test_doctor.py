"""The doctor: exit status, tables and JSON, on the demo's configurations and on programs of a user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from models import Classifier, loader

from gradcam_callback import GradCAMCallback, pages
from gradcam_callback.cli import main
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.networks import ResidualNetwork
from gradcam_callback.doctor import examine

pytestmark = pytest.mark.usefixtures("one_thread", "few_digits")

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def doctor(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def of_config(config: str, *more: str) -> list[str]:
    return ["--config", str(CONFIGS / config), "--trainer.accelerator=cpu", *more]


# The list of layers


def test_layers_of_a_configuration(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    main(["layers", *of_config("demo.yaml")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "type", "returns", "cells", "gradient", "auto"]
    [chosen] = [line for line in lines if line.rstrip().endswith("takes it")]
    assert chosen.split()[:2] == ["network.stages", "ResidualStages"]
    assert "8 x 8" in chosen
    assert any("no: a part of the signal goes past it" in line for line in lines)


def test_layers_as_json(capsys):
    main(["layers", *of_config("broken.yaml"), "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert {"name", "kind", "output", "layout", "cells", "gradient", "reason", "chosen"} == set(listed[0])
    assert sum(layer["chosen"] for layer in listed) == 1


# A configuration


def test_a_healthy_model(tmp_path, capsys):
    assert doctor(*of_config("demo.yaml", "--trainer.devices=2")) == 0  # one is enough for it
    printed = capsys.readouterr().out
    for words in ("network.stages.3 · predicted, label · healthy", "nn.functional.linear", "alive", "under no_grad"):
        assert words in printed
    assert printed.rstrip().endswith("Every gradient is there.")
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_broken_model_is_told_with_its_line(capsys):
    assert doctor(*of_config("broken.yaml")) == 1
    printed = capsys.readouterr().out
    for words in ("detached", "Tensor.detach", "cut here", "broken.py", "features.detach()", "What to do"):
        assert words in printed
    assert "gradcam-callback explain-cause detached" in printed
    assert printed.rstrip().endswith("Gradients are missing at network.stages.3.")


def test_json_is_for_machines(capsys):
    assert doctor(*of_config("broken.yaml", "--json")) == 1
    [report] = json.loads(capsys.readouterr().out)
    assert report["targets"] == ["predicted", "label"]
    assert (report["layer"], report["cause"]) == ("network.stages.3", "detached")
    assert report["probes"] == list(range(10))
    assert report["location"]["file"].endswith("broken.py")
    assert report["more"] == pages.url("detached")
    steps = [(step["operation"], step["alive"], step["state"]) for step in report["path"]]
    assert steps[:2] == [("layer", True, "not reached"), ("Tensor.detach", False, "cut here")]


def test_the_weights_of_a_checkpoint(tmp_path, capsys):
    model = ImageClassifier(ResidualNetwork(widths=(24, 48, 96, 96), strides=(2, 2, 2, 1)))
    torch.nn.init.zeros_(model.network.head.weight)
    trainer = Trainer(logger=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "zeros.ckpt")
    assert doctor(*of_config("demo.yaml", f"--ckpt_path={tmp_path / 'zeros.ckpt'}")) == 1
    assert "zero_gradient" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.callbacks=lightning.pytorch.callbacks.LearningRateMonitor", "There is no GradCAMCallback"),
        ("--data.init_args.canvas=5", "a digit needs at least 28"),
        ("--trainer.limit_val_batches=0", "no batch of validation data"),
        ("--config={folder}/unknown_layer.yaml", "closest"),
    ],
)
def test_what_cannot_be_examined_ends_with_two(tmp_path, capsys, option, message):
    config = (CONFIGS / "demo.yaml").read_text().replace("network.stages.3", "network.stage.3")
    (tmp_path / "unknown_layer.yaml").write_text(config)
    assert doctor(*of_config("demo.yaml", option.format(folder=tmp_path))) == 2
    assert message in capsys.readouterr().err


def test_any_other_failure_ends_with_two_and_its_traceback(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("no such device")

    monkeypatch.setattr("gradcam_callback.demo.data.ClutteredMNISTData.setup", fail)
    assert doctor(*of_config("demo.yaml")) == 2
    assert "OSError: no such device" in capsys.readouterr().err


def test_a_model_that_raises_is_a_null(capsys):
    assert doctor(*of_config("demo.yaml", "--model.init_args.network.init_args.in_channels=3")) == 1
    assert "forward_failed" in capsys.readouterr().out


def test_batches_are_read_until_the_callbacks_have_their_probes():
    read = []

    class Counting(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            read.append(len(batch[0]))
            return batch

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    [report] = examine(trainer, [GradCAMCallback("model.stage", probes=12)], Counting(), loader(32))
    assert report.diagnosis.cause is None
    assert "all 12 probes" in report.diagnosis.message
    assert read == [8, 8]


# A program

NETWORK = """
import sys
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset
from gradcam_callback import GradCAMCallback


class Net(LightningModule):
    def __init__(self, width: int = 4, fault: str = ""):
        super().__init__()
        self.fault = fault
        self.conv, self.head = torch.nn.Conv2d(1, width, 3), torch.nn.Linear(width, 3)

    def forward(self, images):
        features = self.conv(images)
        if self.fault == "raises":
            raise KeyError("no such feature")
        if self.fault == "detaches":
            features = features.detach()
        return self.head(features.mean((2, 3)))

    def on_validation_start(self):
        self.logger.experiment.add_text("a hook", "of the model")

    def validation_step(self, batch, _):
        raise AssertionError("the doctor has no need of it")

    training_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(LightningDataModule):
    def setup(self, stage):
        print("setting up for", stage)
        if stage == "fit":
            self.samples = TensorDataset(torch.rand(10, 1, 8, 8), torch.arange(10) % 3)

    def train_dataloader(self):
        return DataLoader(self.samples, 4)

    val_dataloader = train_dataloader


OPTIONS = {"accelerator": "cpu", "max_epochs": 1}
"""


def program(body: str) -> str:
    """Write a program into the folder; give back its name."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    Path("train.py").write_text(f'{NETWORK}\n\nif __name__ == "__main__":\n{indented}')
    return "train.py"


def test_a_lightning_cli_of_their_own(tmp_path):
    name = program("LightningCLI(Net, Data, trainer_defaults=OPTIONS)")
    code = "from gradcam_callback.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", name, "fit", "--model.width=5", "--model.fault=detaches"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "300"},  # so that no path is broken into lines
    )
    assert done.returncode == 1, done.stderr
    for words in ("conv · predicted · detached", "8 x 5 x 6 x 6", "train.py", "features = features.detach()"):
        assert words in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_json_of_a_program_that_prints(capsys):
    fit, argv, path = Trainer.fit, sys.argv, sys.path
    name = program("print(sys.argv[1:])\nTrainer(**OPTIONS).fit(Net(), Data())")
    assert doctor("--json", name, "--json", "1") == 0
    printed = capsys.readouterr()
    [report] = json.loads(printed.out)
    assert (report["layer"], report["cause"], report["targets"]) == ("conv", None, ["predicted"])
    assert "['--json', '1']\nsetting up for fit" in printed.err
    assert (Trainer.fit, sys.argv, sys.path) == (fit, argv, path)


def test_a_module_with_callbacks_of_its_own(capsys):
    program(
        "gradcam = GradCAMCallback(target_layers='conv', target=[2, 'label'], class_names=['a', 'b', '[/]'])\n"
        "images, labels = torch.rand(10, 1, 8, 8), torch.arange(10) % 3\n"
        "loader = DataLoader(TensorDataset(images, labels), 4)\n"
        "Trainer(**OPTIONS, callbacks=[gradcam]).fit(Net(), loader, loader)"
    )
    assert doctor("-m", "train") == 0
    assert "conv · [/], label · healthy" in capsys.readouterr().out


def test_a_program_whose_model_raises(capsys):
    assert doctor(program("Trainer(**OPTIONS).fit(Net(fault='raises'), datamodule=Data())")) == 1
    printed = capsys.readouterr().out
    assert "auto · every target · forward_failed" in printed
    assert 'raise KeyError("no such feature")' in printed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('nothing to train')", "train.py ended without a call of `trainer.fit`"),
        ("sys.exit('no data')", "train.py ended (status 'no data') without a call"),
        ("Trainer(**OPTIONS, devices=2).fit(Net(), Data())", "The trainer wants 2 processes"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_program_that_cannot_be_examined_ends_with_two(capsys, body, message):
    assert doctor(program(body)) == 2
    assert message in capsys.readouterr().err


def test_a_program_that_is_not_there(capsys):
    assert doctor("trian.py") == 2
    assert "There is no file trian.py" in capsys.readouterr().err
