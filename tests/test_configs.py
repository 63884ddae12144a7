"""Each file in `configs/` runs for a moment, and the event file read back holds what the callback promises."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import Events
from PIL import Image

from gradcam_callback import GradientNullWarning
from gradcam_callback.cli import main
from gradcam_callback.demo import broken

pytestmark = pytest.mark.usefixtures("one_thread", "few_digits")

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
STAGE = "network.stages.3"
LAYERS = {
    "broken.yaml": [STAGE],
    "demo.yaml": [STAGE],
    "detection.yaml": ["detector.backbone"],
    "fashion_mnist.yaml": [STAGE, "network.stages.1"],
    "frozen_backbone.yaml": ["network.backbone.3", "network.head.0"],
    "image_folder.yaml": ["network.layer4"],
    "multilabel.yaml": ["stages"],
    "reconstruction.yaml": ["encoder"],
    "regression.yaml": ["stages"],
    "segmentation.yaml": ["stages"],
    "shortcut.yaml": [STAGE],
    "signal.yaml": ["stages"],
    "similarity.yaml": ["stages"],
    "volume.yaml": ["stages"],
}
TASKS = ("detection", "multilabel", "reconstruction", "regression", "segmentation", "signal", "similarity", "volume")


def run(config: str, folder: Path, *more: str) -> Events:
    """Two steps and one validation batch; gives back the event file, read."""
    settings = [
        "accelerator=cpu",
        "max_epochs=1",
        "limit_train_batches=2",
        "limit_val_batches=1",
        "log_every_n_steps=1",
    ]
    place = f"--trainer.logger.init_args.save_dir={folder / 'runs'}"
    main(["fit", "--config", str(CONFIGS / config), place, *(f"--trainer.{setting}" for setting in settings), *more])
    return Events.read(folder / "runs" / Path(config).stem / "version_0")


def check_tags(events: Events, layers: list[str], metric: str = "val/accuracy") -> None:
    assert {tag for tag in events.images if tag.startswith("gradcam/")} == {f"gradcam/{layer}" for layer in layers}
    for layer in layers:
        assert events.steps(f"gradcam/{layer}") == [2]
        assert events.values(f"gradcam/gradient_norm/{layer}")[-1] > 0
    assert events.values("gradcam/null_gradients") == [0]
    for tag in ("gradcam/empty_maps", "gradcam/seconds", metric):
        assert len(events.values(tag)) == 1


def test_every_config_is_tested_here():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(LAYERS)


@pytest.mark.parametrize("config", LAYERS)
def test_every_config_has_a_logger_and_a_place_of_its_own(config):
    text = (CONFIGS / config).read_text()
    assert "lightning.pytorch.loggers.TensorBoardLogger" in text
    assert f"name: {config.removesuffix('.yaml')}" in text
    assert f"gradcam-callback fit --config configs/{config}" in text


def test_demo(tmp_path):
    events = run("demo.yaml", tmp_path)
    check_tags(events, LAYERS["demo.yaml"])
    assert events.steps("demo/pointing_game") == [0, 2]
    [panel] = tmp_path.glob("runs/demo/version_0/gradcam/*.png")
    assert panel.read_bytes() == events.images[f"gradcam/{STAGE}"][-1][1]


def test_broken_raises_its_alert_and_clears_it(tmp_path):
    config = tmp_path / "broken.yaml"
    config.write_text((CONFIGS / "broken.yaml").read_text().replace("epoch: 3", "epoch: 1"))
    with pytest.warns(GradientNullWarning, match="features.detach") as caught:
        events = run(str(config), tmp_path, "--trainer.max_epochs=2")
    [warning] = [warning for warning in caught if warning.category is GradientNullWarning]
    source = Path(broken.__file__).read_text().splitlines()
    assert Path(warning.filename).name == "broken.py"
    assert "features.detach()" in source[warning.lineno - 1]
    texts = [text.split("\n")[0] for _, text in events.texts["gradcam/alerts"]]
    assert texts == ["### raised: detached", "### cleared: detached"]
    assert events.values("gradcam/null_gradients") == [20, 0]


def test_frozen_backbone(tmp_path):
    check_tags(run("frozen_backbone.yaml", tmp_path), LAYERS["frozen_backbone.yaml"])


def test_shortcut(tmp_path, capsys):
    events = run("shortcut.yaml", tmp_path, "--data.init_args.batch_size=8")
    check_tags(events, LAYERS["shortcut.yaml"])
    assert 0 <= events.values(f"gradcam/energy_inside/{STAGE}")[-1] <= 1
    assert events.values(f"gradcam/pointing_game/{STAGE}")[-1] in [pytest.approx(count / 10) for count in range(11)]
    assert "where the squares say nothing" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_each_task(tmp_path, task):
    events = run(f"{task}.yaml", tmp_path, "--data.init_args.batch_size=8")
    check_tags(events, LAYERS[f"{task}.yaml"], "val/loss")
    assert "gradcam/alerts" not in events.texts
    # A list of targets, read back from what Lightning writes down, is the same.
    saved = (tmp_path / "runs" / task / "version_0" / "config.yaml").read_text()
    assert "Unable to serialize" not in saved


def test_all_tasks_run_by_one_command():
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("TASKS :=")]
    assert sorted(line.split()[2:]) == sorted(TASKS)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: magic number, sizes, bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashion_mnist(tmp_path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    data = [f"root={tmp_path / 'data'}", "num_workers=0", "batch_size=10"]
    events = run("fashion_mnist.yaml", tmp_path, *(f"--data.init_args.{option}" for option in data))
    check_tags(events, LAYERS["fashion_mnist.yaml"])


def test_image_folder(tmp_path):
    write_photos(tmp_path, {"train": ["cat", "dog"], "val": ["cat", "dog"]})
    check_tags(run("image_folder.yaml", tmp_path, *small_photos(tmp_path)), LAYERS["image_folder.yaml"])


def write_photos(root: Path, parts: dict[str, list[str]]) -> None:
    random = np.random.default_rng(0)
    for part, classes in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


def small_photos(root: Path) -> list[str]:
    return [
        f"--data.init_args.{option}" for option in (f"root={root}", "image_size=64", "batch_size=4", "num_workers=0")
    ]


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        ("fashion_mnist.yaml", {}, "FashionMNIST/raw"),
        ("fashion_mnist.yaml", {}, "--data.init_args.download true"),
        ("image_folder.yaml", {"train": ["cat", "dog"]}, "There is no folder"),
        ("image_folder.yaml", {"train": ["cat", "dog"], "val": ["cat", "cow"]}, "cat, cow"),
        ("image_folder.yaml", {"train": ["cat", "cow", "dog"], "val": ["cat", "cow", "dog"]}, "num_classes to 3"),
    ],
)
def test_data_that_are_not_there_or_do_not_fit_say_what_to_do(tmp_path, capsys, config, parts, message):
    write_photos(tmp_path, parts)
    options = small_photos(tmp_path) if parts else [f"--data.init_args.root={tmp_path}"]
    with pytest.raises(SystemExit) as stop:
        run(config, tmp_path, *options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path) in error or "num_classes" in message
    assert "Traceback" not in error


def test_the_script_attaches_the_callback(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("train", ROOT / "scripts" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--max_epochs", "1", "--limit_train_batches", "2", "--save_dir", str(tmp_path)])
    assert f"{STAGE}: maps (6, 8, 8)" in capsys.readouterr().out
    assert f"gradcam/{STAGE}" in Events.read(tmp_path / "train" / "version_0").images
