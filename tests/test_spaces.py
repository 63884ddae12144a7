"""Signals and volumes: maps of one and of three axes, against autograd, and how they are drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
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
from gradcam_callback.errors import BadInputError
from gradcam_callback.reporting.rendering import signals, volumes
from gradcam_callback.results import enlarge

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


def expected(net: nn.Module, inputs: Tensor, layer: str, method: str, **options: Any) -> Tensor:
    """The formulas of images, with the axes of space laid out as rows and columns: their sums do not know the order."""
    evidence = differentiate(net, inputs, layer, **options)
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


# What the axes are


class Prepared(nn.Module):
    """A convolution behind a step of the model's own."""

    def __init__(self, step: Callable[[Tensor], Tensor], conv: nn.Module) -> None:
        super().__init__()
        self.step, self.conv, self.head = step, conv, nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.conv(self.step(inputs))).flatten(2).mean(2))
        return logits


class Functional(nn.Module):
    """A convolution that is a function, so that no layer's kind tells."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        maps: Tensor = getattr(F, f"conv{inputs.ndim - 2}d")(inputs, self.weight, padding="same")
        return maps


class ChannelAttention(nn.Module):
    """Weighs the channels of maps by a one-dimensional convolution over their means."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.weigh = Functional(4, 1, 3, 3), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.maps(inputs)
        weights: Tensor = self.weigh(maps.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return maps * weights.sigmoid()[:, :, None, None]


def axes_of(model: nn.Module, *shape: int, layout: Any = None) -> int:
    return with_axes(model, ModelInputs.of(torch.rand(2, *shape)), ReplicaOptions(), layout).axes


def standardised(inputs: Tensor) -> Tensor:
    return (inputs - inputs.mean(-1, keepdim=True)) / inputs.std(-1, keepdim=True)


def patches(images: Tensor) -> Tensor:
    """Tokens `(N, K, T)` of 4 x 4 pixels, row by row."""
    return images.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2).transpose(1, 2)


def spectrogram(signals: Tensor) -> Tensor:
    window = torch.hann_window(16)
    return torch.stft(signals.flatten(0, 1), 16, 8, window=window, return_complex=True).abs().unsqueeze(1)


@pytest.mark.parametrize(
    ("model", "axes"),
    [
        (nn.Sequential(nn.Conv1d(8, 4, 3)), 1),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), 2),
        (nn.Sequential(nn.Linear(9, 4)), 2),
        (nn.Sequential(nn.Conv1d(8, 4, 3), nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 4, 3)), 1),
        (nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 4, (8, 3)), nn.Flatten(2), nn.Conv1d(4, 4, 3)), 2),
        (Functional(4, 8, 3), 1),
        (Prepared(lambda images: images.unsqueeze(1), ChannelAttention()), 2),
        (Prepared(standardised, nn.Conv1d(8, 4, 3)), 1),
        (Prepared(lambda signals: F.pad(signals, (2, 0)), nn.Conv1d(8, 4, 3)), 1),
        (Prepared(lambda images: F.interpolate(images.unsqueeze(1), (12, 7)), nn.Conv2d(1, 4, 3)), 2),
    ],
    ids=[
        *("signals", "images", "neither", "signals first", "images first", "function", "channel attention"),
        *("standardised", "padded", "resized"),
    ],
)
def test_the_first_convolution_tells_what_three_axes_are(model: nn.Module, axes: int) -> None:
    assert axes_of(model, 8, 9) == axes


@pytest.mark.parametrize(
    ("step", "conv", "shape", "gets"),
    [
        (lambda clips: clips.transpose(1, 2), nn.Conv3d(3, 4, 3), (5, 3, 8, 8), "(N, 3, 5, 8, 8)"),
        (lambda clips: clips.transpose(1, 2), nn.Conv3d(3, 4, 3), (3, 3, 8, 8), "(N, 3, 3, 8, 8)"),
        (lambda clips: clips.flip(2), nn.Conv3d(3, 4, 3), (3, 5, 8, 8), "(N, 3, 5, 8, 8)"),
        (lambda signals: signals.mT, nn.Conv1d(2, 4, 3), (24, 2), "(N, 2, 24)"),
        (lambda signals: signals.mT, nn.Conv1d(1, 4, 3), (24, 1), "(N, 1, 24)"),
        (lambda signals: standardised(signals.mT), nn.Conv1d(2, 4, 3), (24, 2), "(N, 2, 24)"),
        (spectrogram, nn.Conv2d(1, 4, 3), (1, 96), "(N, 1, 9, 13)"),
        (lambda signals: signals.unflatten(2, (4, 6)), nn.Conv2d(2, 4, 3), (2, 24), "(N, 2, 4, 6)"),
        (patches, nn.Conv1d(16, 4, 3), (16, 20), "(N, 16, 20)"),
    ],
    ids=[
        *(
            "turned clips",
            "turned clips of three frames",
            "backwards",
            "turned signals",
            "turned signals of one channel",
        ),
        *("turned and standardised", "spectrogram", "folded", "patches"),
    ],
)
def test_what_does_not_lie_over_the_inputs_is_refused(step: Any, conv: nn.Module, shape: Any, gets: str) -> None:
    net, inputs = Prepared(step, conv), torch.rand(2, *shape)
    for layers in ("conv", "auto"):
        with pytest.raises(ValueError, match=re.escape(f"gets {gets}, which does not lie over the last axes")):
            compute_cam(net, inputs, layers)


def test_a_convolution_beside_the_images_tells_nothing() -> None:
    class Beside(Network):
        def __init__(self) -> None:
            super().__init__(1)
            self.table = nn.Conv2d(1, 3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            beside: Tensor = self.table(torch.ones(1, 1, 2, 2)).flatten(1)
            return super().forward(inputs) + beside

    assert axes_of(Beside(), 2, 24) == 1


class Linear3d(nn.Module):
    """Blocks of 2 x 4 x 4 voxels, each through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(2 * 32, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        blocks = inputs.unfold(2, 2, 2).unfold(3, 4, 4).unfold(4, 4, 4).movedim(1, 4)
        logits: Tensor = self.head(F.relu(self.embed(blocks.flatten(4).flatten(1, 3))).mean(1))
        return logits


def test_five_axes_without_a_convolution_need_a_layout() -> None:
    net, inputs = Linear3d(), torch.rand(2, 2, 4, 8, 12)
    with pytest.raises(ValueError, match=re.escape("is told by a 3-D convolution, and there is none")):
        compute_cam(net, inputs, "embed")
    result = compute_cam(net, inputs, "embed", layout={"grid": [2, 2, 3]})
    evidence = differentiate(net, inputs, "embed")
    a, g = evidence.activation.double(), evidence.gradient.double()
    wanted = (a * g.mean(1, keepdim=True)).sum(2).clamp(min=0).view(2, 2, 2, 3)
    assert relative_error(result.cams["embed"], wanted) <= 1e-5
    assert result.input_size == (4, 8, 12)


def test_frames_one_by_one_are_refused_with_what_the_first_convolution_gets() -> None:
    net = Prepared(lambda clips: clips.movedim(1, 2).flatten(0, 1), nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=re.escape("the first is a 2-D one that gets (4, 3, 8, 8)")):
        compute_cam(net, torch.rand(2, 3, 4, 8, 8), "conv", target=0)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 6, 8, 10), lambda maps: maps.flatten(2, 3)), ((6, 8, 10), "ncdhw")],
    ids=["an image of a volume", "a volume of an image"],
)
def test_maps_of_another_number_of_axes_are_refused(shape: tuple[int, ...], layout: Any) -> None:
    channels = 2 if len(shape) == 4 else 1
    net = Prepared(lambda inputs: inputs.view(-1, channels, 6, 8, 10), nn.Conv3d(channels, 4, 1))
    with pytest.raises(ValueError, match=r"with \d axes of space: the inputs have \d"):
        compute_cam(net, torch.rand(2, *shape), "conv", layout=layout)


# Video


@pytest.mark.parametrize(
    ("name", "layer", "cells"),
    [
        ("r3d_18", "layer4", (1, 2, 2)),
        ("mc3_18", "layer4", (4, 2, 2)),
        ("r2plus1d_18", "layer4", (1, 2, 2)),
        ("s3d", "features", (1, 2, 2)),
    ],
)
def test_networks_for_video(name: str, layer: str, cells: tuple[int, ...]) -> None:
    net, clip = getattr(video, name)(weights=None, num_classes=3), torch.rand(1, 3, 4, 32, 32)
    if name == "s3d":
        net.avgpool, clip = nn.AdaptiveAvgPool3d(1), torch.rand(1, 3, 8, 64, 64)  # its own needs 224 pixels
    results = [compute_cam(net, clip, target=target) for target in range(3)]
    drawn = next((target, result) for target, result in enumerate(results) if result.cams[layer].any())
    assert {layer: tuple(cam.shape[1:]) for layer, cam in drawn[1].cams.items()} == {layer: cells}
    assert relative_error(drawn[1].cams[layer], expected(net, clip, layer, "gradcam", target=drawn[0])) <= 1e-5


def test_windows_of_a_video() -> None:
    net, clip = video.swin3d_t(weights=None, num_classes=3), torch.rand(1, 3, 4, 64, 64)
    result = compute_cam(net, clip)
    assert result.layouts == {"norm": "channels last"}
    evidence = differentiate(net, clip, "norm")
    a, g = evidence.activation.double(), evidence.gradient.double()
    wanted = (a * g.mean((1, 2, 3), keepdim=True)).sum(-1).clamp(min=0)
    assert wanted.shape == (1, 2, 2, 2)
    assert relative_error(result.cams["norm"], wanted) <= 1e-5


def test_tokens_of_a_video_with_a_class_token() -> None:
    """Of MViT the blocks count that have all tokens; where they are pooled, nothing tells which one is extra."""
    options = {"kernel_q": [3] * 3, "kernel_kv": [3] * 3, "num_heads": 2}
    blocks = [
        video.mvit.MSBlockConfig(
            input_channels=16, output_channels=32, stride_q=[1] * 3, stride_kv=[1, 4, 4], **options
        ),
        video.mvit.MSBlockConfig(
            input_channels=32, output_channels=32, stride_q=[1, 2, 2], stride_kv=[1, 2, 2], **options
        ),
    ]
    net = video.MViT((32, 48), 8, blocks, True, False, True, True, num_classes=3).eval()
    clip = torch.rand(1, 3, 8, 32, 48)
    result = compute_cam(net, clip)
    assert result.layouts == {"blocks.0": "tokens, 1 extra"}
    kept: list[Tensor] = []
    net.blocks[0].register_forward_hook(lambda _module, _args, output: kept.append(output[0]))
    (gradient,) = torch.autograd.grad(net(clip).amax(1).sum(), kept[0])
    a, g = kept[0].detach().double()[:, 1:], gradient.double()[:, 1:]
    wanted = (a * g.mean(1, keepdim=True)).sum(2).clamp(min=0).view(1, 4, 8, 12)
    assert relative_error(result.cams["blocks.0"], wanted) <= 1e-5
    with pytest.raises(ValueError, match="where 97 tokens, and no layer before has as many"):
        compute_cam(net, clip, "blocks.1")


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


def curve_of(signal: Tensor) -> Tensor:
    """Where a curve is drawn on white, bool `(th, tw)`."""
    ground = torch.full((1, *signals.SIZE, 3), 255, dtype=torch.uint8)
    return signals.draw_curves(ground, signal.view(1, 1, -1))[0, ..., 0] < 128


@pytest.mark.parametrize("length", [256, 1000, 5000, 100_003])
def test_a_spike_of_one_sample_is_drawn_where_it_is(length: int) -> None:
    for place in (0, 1, length // 3, length // 2 + 1, length - 1):
        for sign in (1, -1):
            signal = torch.zeros(length)
            signal[place] = sign
            drawn = curve_of(signal)
            tip = drawn[:10] if sign > 0 else drawn[-10:]
            column = int((place + 0.5) / length * 256)
            reached = tip.any(0).nonzero().flatten().tolist()
            assert column in reached
            assert all(abs(other - column) <= 1 for other in reached)


def test_a_long_noisy_signal_fills_what_lies_between_its_extremes() -> None:
    signal = torch.rand(100 * 256)
    height = len(curve_of(signal))
    rows = curve_of(signal).float().sum(0)
    parts = signal.view(256, 100)
    spans = (parts.amax(1) - parts.amin(1)) / (signal.max() - signal.min()) * (height - 13)
    assert bool(((rows - spans).abs() <= 4).all())


@pytest.mark.parametrize("length", [2, 5, 24, 255, 256, 1024])
def test_curve_and_map_lie_over_each_other(length: int) -> None:
    """The same numbers as a signal and as a map: where the map is enlarged to its middle, the curve is there, too."""
    step = (torch.arange(length) >= length // 2).float()
    across = enlarge(step[None], (256,))[0] > 0.5
    drawn = curve_of(step)
    upper = drawn[: len(drawn) // 2].any(0)
    assert int((upper != across).sum()) <= 1


@pytest.mark.parametrize(
    ("count", "channels", "told"),
    [
        (1, None, ""),
        (2, None, "channels 0 dark, 1 red"),
        (12, None, "channels 0 dark, 1 red, 2 blue of 12"),
        (12, [7, 1, 3], "channels 7 dark, 1 red, 3 blue of 12"),
        (12, [7], "channel 7 of 12"),
    ],
)
def test_each_curve_is_named(count: int, channels: Any, told: str) -> None:
    assert signals.name_curves(count, channels) == told


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
    assert panel.input_title == ("input\nchannels 0 dark, 1 red" if axes == 1 else "input\nmean of 2 channels")
    result = run.callback.last_result
    assert result is not None
    assert relative_error(result.cams["network.stage"], expected(module, *_probes(run), "gradcam")) <= 1e-5


@pytest.mark.parametrize("axes", [1, 3])
def test_impossible_channels_are_refused_before_the_first_step(tmp_path: Any, axes: int) -> None:
    module = Learner(axes)
    run: Run = make_run(tmp_path, GradCAMCallback(probes=3, channels=[2]), module, max_epochs=1)
    loader: DataLoader[Any] = DataLoader(TensorDataset(some(axes, 6), torch.arange(6) % 3), batch_size=3)
    with pytest.raises(BadInputError, match=r"one or three of 0 to 1, but \[2\] were given"):
        run.trainer.fit(module, loader, loader)
    assert run.trainer.global_step == 0


def _probes(run: Run) -> tuple[Tensor, str]:
    assert run.callback.probes is not None
    return run.callback.probes.images, "network.stage"


def test_turned_clips_are_an_alert_and_the_training_goes_on(tmp_path: Any) -> None:
    class Turned(Learner):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.transpose(1, 2))

    module = Turned(3)
    run: Run = make_run(tmp_path, GradCAMCallback(probes=3), module, max_epochs=2)
    clips = torch.rand(6, 6, 2, 8, 10)
    loader: DataLoader[Any] = DataLoader(TensorDataset(clips, torch.arange(6) % 3), batch_size=3)
    run.trainer.fit(module, loader, loader)
    assert run.trainer.global_step == 4
    [alert] = run.callback.alerts
    assert "gets (N, 2, 6, 8, 10), which does not lie over the last axes of the inputs" in alert.message
    assert run.callback.last_result is None
