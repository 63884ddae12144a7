"""Each file in `configs/` runs for a moment, and the event file read back holds what the callback promises."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradcam_callback import GradientNullWarning
from gradcam_callback.cli import main
from gradcam_callback.demo import broken

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def run(config: str, folder: Path, *more: str) -> EventAccumulator:
    """Two steps and one validation batch; gives back the event file, read."""
    main(
        [
            "fit",
            *("--config", str(CONFIGS / config)),
            *("--trainer.logger.init_args.save_dir", str(folder / "runs")),
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=2",
            "--trainer.limit_val_batches=1",
            "--trainer.log_every_n_steps=1",
            *more,
        ]
    )
    [log_dir] = (folder / "runs").glob("*/version_0")
    events = EventAccumulator(str(log_dir))
    events.Reload()
    return events


def check_tags(events: EventAccumulator, layers: list[str]) -> None:
    assert sorted(tag for tag in events.Tags()["images"] if tag.startswith("gradcam/")) == sorted(
        f"gradcam/{layer}" for layer in layers
    )
    for layer in layers:
        assert len(events.Images(f"gradcam/{layer}")) == 1
        assert events.Scalars(f"gradcam/gradient_norm/{layer}")[-1].value > 0
    assert [event.value for event in events.Scalars("gradcam/null_gradients")] == [0]
    for tag in ("gradcam/empty_maps", "gradcam/seconds", "val/accuracy"):
        assert len(events.Scalars(tag)) == 1


def test_every_config_is_tested_here():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {
        "broken.yaml",
        "demo.yaml",
        "fashion_mnist.yaml",
        "frozen_backbone.yaml",
        "image_folder.yaml",
    }


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_has_a_logger_and_a_place_of_its_own(config):
    text = (CONFIGS / config).read_text()
    assert "lightning.pytorch.loggers.TensorBoardLogger" in text
    assert f"name: {config.removesuffix('.yaml')}" in text
    assert f"gradcam-callback fit --config configs/{config}" in text


def test_demo(tmp_path):
    events = run("demo.yaml", tmp_path)
    check_tags(events, ["network.stages.3"])
    assert [event.step for event in events.Scalars("demo/pointing_game")] == [0, 2]
    [panel] = tmp_path.glob("runs/demo/version_0/gradcam/*.png")
    assert panel.read_bytes() == events.Images("gradcam/network.stages.3")[-1].encoded_image_string


def test_broken_raises_its_alert_and_clears_it(tmp_path):
    config = tmp_path / "broken.yaml"
    config.write_text((CONFIGS / "broken.yaml").read_text().replace("epoch: 3", "epoch: 1"))
    with pytest.warns(GradientNullWarning, match="features.detach") as caught:
        events = run(str(config), tmp_path, "--trainer.max_epochs=2")
    [warning] = [warning for warning in caught if warning.category is GradientNullWarning]
    source = Path(broken.__file__).read_text().splitlines()
    assert Path(warning.filename).name == "broken.py"
    assert "features.detach()" in source[warning.lineno - 1]
    texts = [text.tensor_proto.string_val[0].decode() for text in events.Tensors("gradcam/alerts")]
    assert [text.split("\n")[0] for text in texts] == ["### raised: detached", "### cleared: detached"]
    assert [event.value for event in events.Scalars("gradcam/null_gradients")] == [20, 0]


def test_frozen_backbone(tmp_path):
    events = run("frozen_backbone.yaml", tmp_path)
    check_tags(events, ["network.backbone.3", "network.head.0"])


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: magic number, sizes, bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashion_mnist(tmp_path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 40)):
        write_idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    events = run(
        "fashion_mnist.yaml",
        tmp_path,
        *("--data.init_args.root", str(tmp_path / "data")),
        *("--data.init_args.num_workers", "0"),
        *("--data.init_args.batch_size", "20"),
    )
    check_tags(events, ["network.stages.1", "network.stages.3"])


def test_fashion_mnist_that_is_not_there_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("fashion_mnist.yaml", tmp_path, "--data.init_args.root", str(tmp_path / "nowhere"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "nowhere" / "FashionMNIST" / "raw") in error
    assert "--data.init_args.download true" in error
    assert "Traceback" not in error


def write_photos(root: Path, parts: dict[str, list[str]]) -> None:
    random = np.random.default_rng(0)
    for part, classes in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


SMALL = ["--data.init_args.image_size=64", "--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]


def test_image_folder(tmp_path):
    write_photos(tmp_path, {"train": ["cat", "dog"], "val": ["cat", "dog"]})
    events = run("image_folder.yaml", tmp_path, "--data.init_args.root", str(tmp_path), *SMALL)
    check_tags(events, ["network.layer4"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": ["cat", "dog"]}, "There is no folder"),
        ({"train": ["cat", "dog"], "val": ["cat", "cow"]}, "cat, cow"),
        ({"train": ["cat", "cow", "dog"], "val": ["cat", "cow", "dog"]}, "num_classes to 3"),
    ],
)
def test_folders_that_do_not_fit_say_what_to_do(tmp_path, capsys, parts, message):
    write_photos(tmp_path, parts)
    with pytest.raises(SystemExit) as stop:
        run("image_folder.yaml", tmp_path, "--data.init_args.root", str(tmp_path), *SMALL)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_script_attaches_the_callback(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("train", ROOT / "scripts" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(["--max_epochs", "1", "--limit_train_batches", "2", "--save_dir", str(tmp_path)])
    assert "network.stages.3: maps (6, 8, 8)" in capsys.readouterr().out
    [log_dir] = tmp_path.glob("train/version_0")
    events = EventAccumulator(str(log_dir))
    events.Reload()
    assert events.Images("gradcam/network.stages.3")
