"""Signals and volumes: maps of one and of three axes, against autograd, and how they are drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models.video as video
from conftest import Run, make_run
from lightning.pytorch import LightningModule
from reference import METHODS, differentiate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradcam_callback import GradCAMCallback, compute_cam, diagnose
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.engine.spaces import with_axes
from gradcam_callback.reporting.rendering import signals, volumes

KINDS: dict[int, tuple[Any, Any]] = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}
SIZES = {1: (24,), 3: (6, 8, 10)}


class Network(nn.Module):
    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv, norm = KINDS[axes]
        self.stem, self.norm = conv(2, 4, 3, stride=2, padding=1), norm(4)
        self.stage, self.head = conv(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = F.relu(self.stage(F.relu(self.norm(self.stem(inputs)))))
        logits: Tensor = self.head(maps.flatten(2).mean(2))
        return logits


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def some(axes: int, count: int = 3) -> Tensor:
    return torch.rand(count, 2, *SIZES[axes])


def expected(net: nn.Module, inputs: Tensor, layer: str, method: str) -> Tensor:
    """The formulas of images, with the axes of space laid out as rows and columns: their sums do not know the order."""
    evidence = differentiate(net, inputs, layer)
    a, g = evidence.activation.double(), evidence.gradient.double()
    maps = METHODS[method](a.flatten(2).unsqueeze(2), g.flatten(2).unsqueeze(2)).clamp(min=0)
    return maps.view(len(a), *a.shape[2:])


def relative_error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["stem", "stage"])
def test_the_map_is_the_textbook_map(axes: int, method: str, layer: str) -> None:
    net, inputs = Network(axes), some(axes)
    result = compute_cam(net, inputs, layer, method=method)
    assert relative_error(result.cams[layer], expected(net, inputs, layer, method)) <= 1e-5
    assert result.input_size == SIZES[axes]
    assert result.layouts == {layer: "channels first"}


@pytest.mark.parametrize(("axes", "mode"), [(1, "linear"), (3, "trilinear")])
def test_auto_and_heatmaps(axes: int, mode: str) -> None:
    result = compute_cam(Network(axes), some(axes))
    [(layer, cam)] = result.cams.items()
    assert layer == "stage"
    enlarged = F.interpolate(cam.unsqueeze(1), size=SIZES[axes], mode=mode).squeeze(1)
    peaks = enlarged.flatten(1).amax(1).view(-1, *[1] * axes)
    torch.testing.assert_close(result.heatmaps()[layer], enlarged / peaks)


@pytest.mark.parametrize("axes", [1, 3])
def test_a_null_is_a_row_of_nan_and_is_diagnosed(axes: int) -> None:
    class Cut(Network):
        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(self.stage(self.stem(inputs)).detach().flatten(2).mean(2))
            return logits

    result = compute_cam(Cut(axes), some(axes), "stem")
    assert result.cams["stem"].isnan().all()
    assert result.cams["stem"].ndim == 1 + axes
    found = diagnose(Cut(axes), some(axes), "stem")
    assert found.cause == "detached"
    assert found.location is not None
    assert ".detach()" in found.location.code


@pytest.mark.parametrize(("axes", "name"), [(1, "nwc"), (3, "ndhwc")])
def test_channels_that_stand_last(axes: int, name: str) -> None:
    class Last(Network):
        def __init__(self, axes: int) -> None:
            super().__init__(axes)
            self.turn = nn.Identity()

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.turn(F.relu(self.stage(self.stem(inputs))).movedim(1, -1))
            logits: Tensor = self.head(maps.flatten(1, -2).mean(1))
            return logits

    net, inputs = Last(axes), some(axes)
    evidence = differentiate(net, inputs, "turn")
    a, g = (tensor.movedim(-1, 1).double() for tensor in (evidence.activation, evidence.gradient))
    weights = g.flatten(2).mean(2).view(len(a), -1, *[1] * axes)
    wanted = (weights * a).sum(1).clamp(min=0)
    for layout in (None, name):
        result = compute_cam(net, inputs, "turn", layout=layout)
        assert relative_error(result.cams["turn"], wanted) <= 1e-5
        assert result.layouts == {"turn": "channels last"}


def test_a_layer_that_never_ran_keeps_the_axes() -> None:
    net = Network(3)
    net.spare = nn.Conv3d(2, 4, 1)
    assert compute_cam(net, some(3), ["stage", "spare"]).cams["spare"].ndim == 4


# Signals, or grey images


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (nn.Sequential(nn.Conv1d(8, 4, 3)), 1),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), 2),
        (nn.Sequential(nn.Linear(8, 4)), 2),
        (nn.Sequential(nn.Conv1d(8, 4, 3), nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 4, 3)), 1),
        (nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 4, (8, 3)), nn.Flatten(2), nn.Conv1d(4, 4, 3)), 2),
    ],
    ids=["signals", "images", "neither", "signals first", "images first"],
)
def test_the_first_convolution_tells_what_three_axes_are(model: nn.Module, axes: int) -> None:
    inputs = ModelInputs.of(torch.rand(2, 8, 9))
    assert with_axes(model, inputs, ReplicaOptions()).axes == axes


# Video


@pytest.mark.parametrize(("name", "cells"), [("r3d_18", (1, 2, 2)), ("mc3_18", (4, 2, 2)), ("r2plus1d_18", (1, 2, 2))])
def test_networks_for_video(name: str, cells: tuple[int, ...]) -> None:
    net, clip = getattr(video, name)(weights=None, num_classes=3), torch.rand(1, 3, 4, 32, 32)
    result = compute_cam(net, clip)
    assert {layer: tuple(cam.shape[1:]) for layer, cam in result.cams.items()} == {"layer4": cells}
    assert relative_error(result.cams["layer4"], expected(net, clip, "layer4", "gradcam")) <= 1e-4


def test_windows_of_a_video() -> None:
    net = video.swin3d_t(weights=None, num_classes=3)
    result = compute_cam(net, torch.rand(1, 3, 4, 64, 64))
    assert {layer: tuple(cam.shape[1:]) for layer, cam in result.cams.items()} == {"norm": (2, 2, 2)}
    assert result.layouts == {"norm": "channels last"}


# Drawing


def test_the_slice_with_the_peak_is_drawn() -> None:
    maps = torch.zeros(3, 4, 2, 2)
    maps[0, 3, 1, 0] = 1
    maps[1, 0, 0, 1] = 2
    maps[2] = torch.nan
    assert volumes.peak_slices(maps, 8).tolist() == [7, 1, 4]
    assert volumes.peak_slices(maps, 4).tolist() == [3, 0, 2]
    clip = torch.arange(3 * 8.0).view(3, 1, 8, 1, 1).expand(3, 2, 8, 4, 5)
    slices = torch.tensor([7, 0, 4])
    assert volumes.take_slices(clip, slices)[:, 0, 0, 0].tolist() == [7, 8, 20]


@pytest.mark.parametrize("depth", [4, 7, 8])
def test_the_map_of_a_slice_is_that_of_the_enlarged_map(depth: int) -> None:
    maps = torch.rand(depth, 4, 3, 3)
    enlarged = F.interpolate(maps.unsqueeze(1), size=(depth, 3, 3), mode="trilinear").squeeze(1)
    slices = torch.arange(depth)
    torch.testing.assert_close(volumes.map_slices(maps, slices, depth), enlarged[slices, slices])


def test_a_curve_is_drawn_from_left_to_right() -> None:
    """A rising line ends at the top right; where it is not, the ground stays."""
    ground = torch.full((1, *signals.SIZE, 3), 255, dtype=torch.uint8)
    drawn = signals.draw_curves(ground, torch.linspace(-3, 5, 40).view(1, 1, 40))[0]
    rows = (drawn[..., 0] < 128).float()
    places = (rows * torch.arange(len(rows))[:, None]).sum(0) / rows.sum(0)
    assert bool((places[1:] <= places[:-1]).all())
    assert places[0] > len(rows) - 12
    assert places[-1] < 12
    assert rows.mean() < 0.05


def test_what_is_not_finite_is_drawn_as_zero() -> None:
    ground = torch.full((1, *signals.SIZE, 3), 255, dtype=torch.uint8)
    assert signals.draw_curves(ground, torch.tensor([[[0.0, torch.nan, 1.0, torch.inf]]])).shape == ground.shape


# Through a Trainer


class Learner(LightningModule):
    def __init__(self, axes: int) -> None:
        super().__init__()
        self.network = Network(axes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(("axes", "cells"), [(1, "12 cells"), (3, "3 x 4 x 5 cells")])
def test_a_panel_of_each(tmp_path: Any, axes: int, cells: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcam_callback.reporting import panels

    drawn: list[Any] = []
    original = panels.PanelRenderer.panels

    def keep(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        drawn.append(found)
        return found

    monkeypatch.setattr(panels.PanelRenderer, "panels", keep)
    module = Learner(axes)
    run: Run = make_run(tmp_path, GradCAMCallback(probes=3, target=["predicted", 1]), module, max_epochs=1)
    loader: DataLoader[Any] = DataLoader(TensorDataset(some(axes, 6), torch.arange(6) % 3), batch_size=3)
    run.trainer.fit(module, loader, loader)
    assert run.callback.alerts == []
    assert run.events.steps("gradcam/network.stage") == [2]
    [panel] = drawn[-1]["network.stage"]
    assert f" · {cells} · " in panel.title
    told = [caption.splitlines()[-1] for column in panel.columns for caption in column.captions]
    assert all(text.startswith("slice ") and text.endswith(" of 6") for text in told) is (axes == 3)
    result = run.callback.last_result
    assert result is not None
    assert relative_error(result.cams["network.stage"], expected(module, *_probes(run), "gradcam")) <= 1e-5


def _probes(run: Run) -> tuple[Tensor, str]:
    assert run.callback.probes is not None
    return run.callback.probes.images, "network.stage"
