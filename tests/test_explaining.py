"""`gradcam-callback explain`: what it writes of a checkpoint, read back, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from gradcam_callback import compute_cam, read_run
from gradcam_callback.cli import explain_options, main
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.folders import ImageFolderData
from gradcam_callback.demo.networks import torchvision_network

pytestmark = pytest.mark.usefixtures("one_thread", "few_digits")

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def explain(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--trainer.accelerator=cpu", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def changed(config: str, change: Callable[[dict[str, Any]], Any]) -> list[str]:
    content = yaml.safe_load((CONFIGS / config).read_text())
    change(content)
    Path("changed.yaml").write_text(yaml.safe_dump(content))
    return ["--config", "changed.yaml"]


def with_options(config: str = "demo.yaml", **options: Any) -> list[str]:
    def change(content: dict[str, Any]) -> None:
        for callback in content["trainer"]["callbacks"]:
            if callback["class_path"].endswith("GradCAMCallback"):
                callback["init_args"].update(options)

    return changed(config, change)


def photos(folder: str, count: int = 2) -> Path:
    """Images of classes cat and dog, of different sizes."""
    for kind in ("cat", "dog"):
        place = Path(folder, kind)
        place.mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return Path(folder)


@pytest.fixture
def trained() -> tuple[list[str], ImageClassifier]:
    """The configuration for a folder of photographs, with a checkpoint; and the model that is in it."""
    for part in ("train", "val"):
        photos(f"photos/{part}")
    torch.manual_seed(3)
    model = ImageClassifier(torchvision_network("resnet18", num_classes=2))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("best.ckpt")
    options = ["--config", str(CONFIGS / "image_folder.yaml"), "--data.init_args.num_workers=0", "--ckpt", "best.ckpt"]
    return [*options, "--data.init_args.root=photos", "--data.init_args.image_size", "64"], model


def test_files_are_explained_with_the_weights_and_the_transform_of_the_validation(
    trained: tuple[list[str], ImageClassifier], capsys: pytest.CaptureFixture[str]
) -> None:
    options, model = trained
    assert explain(*options, "photos/val/dog", "photos/val/cat/1.png", "-o", "out") == 0

    recording = read_run("out")
    assert recording.probes.names == ("dog/0.png", "dog/1.png", "cat/1.png")
    assert recording.targets == ("predicted",), "files have no labels"
    assert recording.pictures[0].class_names == ("cat", "dog")
    data = ImageFolderData("photos", image_size=64, num_workers=0)
    data.setup("fit")
    transform = data.val_dataloader().dataset.transform  # type: ignore[union-attr]
    images = torch.stack([transform(Image.open(f"photos/val/{name}")) for name in recording.probes.names])
    cams = compute_cam(model, images, "network.layer4").cams["network.layer4"].numpy()
    assert abs(recording.maps["network.layer4"][0, 0] - cams).max() <= cams.max() / 254

    [panel] = Path("out").rglob("*.png")
    assert panel.parent.name == "network.layer4"
    assert Path("out/report.html").stat().st_size > 100_000
    printed = capsys.readouterr().out
    assert "Written: out/report.html" in printed
    assert "1 panel below out/gradcam" in printed
    assert not Path("runs").exists(), "nothing is logged elsewhere"


def test_without_files_the_probes_of_the_validation_are_explained(trained: tuple[list[str], ImageClassifier]) -> None:
    options, _ = trained
    assert explain(*options) == 0
    recording = read_run("explained")
    assert recording.targets == ("predicted", "label")
    assert sorted(recording.probes.labels) == [0, 0, 1, 1]


def test_a_second_time_into_one_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(CONFIGS / "demo.yaml")]
    assert explain(*options) == 0
    assert explain(*options) == 2
    assert "There is a recording in explained already" in capsys.readouterr().err


def test_a_missing_gradient_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="detaches the value"):
        assert explain(*with_options("broken.yaml", on_null="warn"), "-o", "warned") == 1
    assert explain(*with_options("broken.yaml", on_null="raise"), "--output=raised") == 1
    for folder in ("warned", "raised"):
        assert read_run(folder).alerts[0]["cause"] == "detached"
        [line] = Path(folder, "gradcam/alerts.jsonl").read_text().splitlines()
        assert json.loads(line)["status"] == "raised"


def test_several_callbacks_have_folders_of_their_own() -> None:
    def twice(content: dict[str, Any]) -> None:
        callbacks = content["trainer"]["callbacks"]
        callbacks[1:] = [{"class_path": "gradcam_callback.GradCAMCallback", "init_args": {"method": "layercam"}}]

    assert explain(*changed("demo.yaml", twice), "-o", "out") == 0
    assert [read_run(f"out/callback_{number}").method for number in (1, 2)] == ["gradcam", "layercam"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["nothing.png"], "nothing.png is no file or folder"),
        (["empty"], "no file in empty matches"),
        (["--trainer.limit_val_batches=0"], "There is no batch of validation data"),
    ],
)
def test_what_cannot_be_explained_is_said(capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    Path("empty").mkdir()
    assert explain("--config", str(CONFIGS / "demo.yaml"), *more) == 2
    assert said in capsys.readouterr().err
    assert not Path("explained").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("options", "said"), [({"target": 99}, "99"), ({"target_layers": "network.none"}, "none")])
def test_an_option_that_cannot_be_is_said(
    capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    assert explain(*with_options(**options)) == 2
    assert said in capsys.readouterr().err


def test_any_other_failure_ends_with_two_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such device")

    monkeypatch.setattr("gradcam_callback.demo.data.ClutteredMNISTData.setup", fail)
    assert explain("--config", str(CONFIGS / "demo.yaml")) == 2
    assert "OSError: no such device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("--config c.yaml --ckpt b.ckpt images/", '--config c.yaml --ckpt_path b.ckpt --images=["images/"]'),
        ("a.png -c c.yaml b.png -o out", '-c c.yaml --output out --images=["a.png","b.png"]'),
        ("--ckpt=b.ckpt --model.lr -1 --output=o", "--ckpt_path=b.ckpt --model.lr -1 --output=o"),
        ("--help", "--help"),
    ],
)
def test_arguments_as_lightning_takes_them(given: str, taken: str) -> None:
    assert [argument.replace(", ", ",") for argument in explain_options(given.split())] == taken.split()
