"""Batches that hold lists of images of different sizes: probes, passes and panels through a real Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Run, make_run
from lightning.pytorch import LightningModule
from reference import differentiate, gradcam, relative_error
from test_extents import SIZES, Padded, detector
from test_panels import pages_of
from torch import Tensor
from torch.utils.data import DataLoader

from gradcam_callback import GradCAMCallback, ValidationProbes, compute_cam
from gradcam_callback.engine.inputs import IMAGE_LIST, padded
from gradcam_callback.probes.forward_inputs import inputs_of
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.probes.source import CaptureContext
from gradcam_callback.reporting.panel import Panel, PanelStyle
from gradcam_callback.reporting.rendering.composition import compose
from gradcam_callback.reporting.rendering.tiles import tile_size

BRIGHT = [(3, 15), (22, 1), (9, 28)]


def samples(count: int = 6) -> list[tuple[Tensor, dict[str, Tensor]]]:
    torch.manual_seed(3)
    found = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        box = torch.tensor([[2.0, 2.0, width - 2.0, height - 4.0]])
        found.append((torch.rand(3, height, width), {"boxes": box, "labels": torch.tensor([1 + number % 2])}))
    return found


def as_lists(rows: list[Any]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


class Detector(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = detector().train()

    def forward(self, images: list[Tensor]) -> Any:
        assert isinstance(images, list)
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.network(batch[0], batch[1])
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def fitted(folder: Any, module: LightningModule, collate: Any = as_lists, **options: Any) -> Run:
    options.setdefault("target", [{"detection": "best"}, {"detection": "label"}])
    options.setdefault("probes", 4)
    callback = GradCAMCallback(options.pop("layers", "network.backbone.0"), **options)
    run = make_run(folder, callback, module, max_epochs=1, limit_train_batches=1)
    loader: DataLoader[Any] = DataLoader(samples(), batch_size=3, collate_fn=collate)  # type: ignore[arg-type]
    run.trainer.fit(module, loader, loader)
    return run


LAYERS = ["network.backbone.0", "network.backbone"]


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": "shared"}, {"layers": LAYERS, "fuse": True}],
    ids=["plain", "shared scale", "fused"],
)
def test_a_detector_that_takes_a_list(tmp_path: Any, options: dict[str, Any]) -> None:
    """The four probes come from two batches, and their boxes and maps are those of each image."""
    run = fitted(tmp_path, Detector(), **options)
    assert run.callback.alerts == []
    probes, given = run.callback.probes, samples(4)
    assert probes is not None
    assert probes.sizes == tuple(tuple(image.shape[1:]) for image, _ in given)
    assert probes.images.shape == (4, 3, 24, 30)
    for row, (image, _) in zip(probes.images, given, strict=True):
        assert torch.equal(row[:, : image.shape[1], : image.shape[2]], image)
        assert row.sum() == pytest.approx(image.sum().item(), rel=1e-4)
    assert probes.boxes is not None
    assert all(torch.equal(kept[0], own["boxes"]) for kept, (_, own) in zip(probes.boxes, given, strict=True))

    def best(returned: Any) -> Tensor:
        return torch.stack([one["scores"].max() for one in returned])[:, None]

    network = run.module.network.eval()
    images = [image for image, _ in given]
    evidence = differentiate(network, images, "backbone.0", target=0, logits_of=best)
    wanted = gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)
    result = run.callback.last_result
    assert result is not None
    assert relative_error(result.cams["network.backbone.0"], wanted).max() <= 1e-5
    assert result.sizes == probes.sizes
    assert run.events.steps("gradcam/network.backbone.0") == [1]


def drawn(opacity: float, *, shared: bool = False) -> tuple[list[Tensor], Panel]:
    """Three images of different sizes, dark but for one pixel each, and their panel."""
    given = [torch.full((3, *size), 0.25) for size in SIZES]
    for number, (image, (row, column)) in enumerate(zip(given, BRIGHT, strict=True)):
        image[:, row, column] = 1.0 - 0.2 * number
    result = compute_cam(Padded(centred=True), given, "stage", method="hirescam")
    images, sizes = padded({str(number): image for number, image in enumerate(given)})
    probes = ProbeSet(images, None, ("a", "b", "c"), None, None, None, None, "f", sizes=sizes)
    style = PanelStyle("gray", opacity, shared_scale=shared, class_names=None, mean=None, std=None)
    return given, pages_of([result], ["predicted"], probes, style)["stage"][0]


def pictures(panel: Panel, tiles: Tensor) -> list[Tensor]:
    """The middle of each tile, which has the proportions of its image; around it there is paper."""
    found = []
    for tile, size in zip(tiles, SIZES, strict=True):
        height, width = tile_size(*size)
        top, left = (tile.shape[0] - height) // 2, (tile.shape[1] - width) // 2
        around = tile.clone()
        around[top : top + height, left : left + width] = 255
        assert bool((around == 255).all())
        found.append(tile[top : top + height, left : left + width])
    assert len(tiles) == len(SIZES)
    assert panel.inputs.shape[1:] == (168, 180, 3)
    return found


def test_the_picture_of_each_image_keeps_its_proportions() -> None:
    given, panel = drawn(1.0)
    for picture, image in zip(pictures(panel, panel.inputs), given, strict=True):
        factor = picture.shape[0] // image.shape[1]
        wanted = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2).permute(1, 2, 0)
        torch.testing.assert_close(picture.float() / 255, wanted, atol=3e-3, rtol=0)
    assert "64 x 64 cells of the padded batch" in panel.title
    compose(panel)


@pytest.mark.parametrize("shared", [False, True])
def test_the_map_lies_over_its_own_picture(shared: bool) -> None:
    """The map is the brightness of the image: enlarged, its peak is in the bright pixel."""
    given, panel = drawn(1.0, shared=shared)
    peaks = []
    for picture, image, (row, column) in zip(pictures(panel, panel.columns[0].overlays), given, BRIGHT, strict=True):
        factor = picture.shape[0] // image.shape[1]
        brightest = (picture[..., 0] == picture.max()).nonzero().float().mean(0) / factor
        torch.testing.assert_close(brightest, torch.tensor([row + 0.5, column + 0.5]), atol=0.3, rtol=0)
        peaks.append(int(picture.max()))
    assert (peaks[0] > peaks[1] > peaks[2]) if shared else (min(peaks) > 250)


def test_a_batch_that_is_a_list_of_images() -> None:
    images = [image for image, _ in samples(3)]
    collector = ValidationProbes(n=3).start(CaptureContext())
    collector.add(images, 0)
    probes = collector.finish(collector.samples())
    assert probes.sizes == tuple(SIZES)
    assert probes.labels is None

    def forward(images: list[Tensor]) -> Any:
        return images

    inputs = inputs_of(forward, None, probes)
    assert inputs.args == (IMAGE_LIST,)
    assert all(torch.equal(one, other) for one, other in zip(inputs.apart, images, strict=True))


def test_images_of_a_list_with_other_channels_are_refused() -> None:
    collector = ValidationProbes(n=2).start(CaptureContext())
    collector.add([[torch.rand(3, 8, 8), torch.rand(1, 8, 8)], [0, 1]], 0)
    with pytest.raises(ValueError, match="same number of channels"):
        collector.finish(collector.samples())


class Loop(Detector):
    """Each image passes by itself, so a layer runs once an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images: list[Tensor]) -> Any:
        return torch.cat([self.stage(image[None]).mean((2, 3)) for image in images])


def test_a_model_without_one_batch_is_refused_before_the_first_step(tmp_path: Any) -> None:
    module = Loop()
    before = module.stage.weight.clone()
    with pytest.raises(ValueError, match=r"differ in size.*cannot be told.*Resize them to one size"):
        fitted(tmp_path, module, layers="stage", target="predicted")
    assert torch.equal(module.stage.weight, before)


class Stacking(LightningModule):
    """Its steps stack the list that the batch holds; `forward` takes one tensor, and counts those that it gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stage, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        assert images.ndim == 4
        return self.head(self.stage(images).relu().mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(torch.stack(batch[0])), torch.tensor(batch[1]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit_lists(folder: Any, module: LightningModule, size: tuple[int, int] | None = (12, 10), **options: Any) -> Run:
    callback = GradCAMCallback(options.pop("layers", "stage"), probes=4, **options)
    run = make_run(folder, callback, module, max_epochs=2, limit_train_batches=1, num_sanity_val_steps=0)
    rows = [(torch.rand(3, *(size or SIZES[number % 3])), number % 3) for number in range(6)]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=3, collate_fn=as_lists)  # type: ignore[arg-type]
    run.trainer.fit(module, loader, loader)
    return run


@pytest.mark.parametrize("options", [{}, {"layers": "auto"}, {"inputs": {"images": 0}}], ids=str)
def test_a_model_that_stacks_a_list_in_its_steps_gets_it_stacked(
    tmp_path: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = fit_lists(tmp_path, Stacking(), **options)
    assert run.callback.alerts == []
    assert [record.message for record in caplog.records if "takes them as one tensor" in record.message] != []
    assert len({record.message for record in caplog.records if "one tensor" in record.message}) == 1
    probes, result = run.callback.probes, run.callback.last_result
    assert probes is not None
    assert result is not None
    evidence = differentiate(run.module.eval(), probes.images, "stage")
    wanted = gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)
    assert relative_error(result.cams["stage"], wanted).max() <= 1e-5
    assert result.extents == {}


def test_a_model_that_takes_a_list_of_one_size_gets_the_list(tmp_path: Any) -> None:
    kinds = []

    class Listed(Stacking):
        def forward(self, images: Any) -> Tensor:
            kinds.append(type(images))
            return super().forward(torch.stack(list(images)))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0]), torch.tensor(batch[1]))

    run = fit_lists(tmp_path, Listed())
    assert run.callback.alerts == []
    assert set(kinds) == {list}
    assert run.callback.last_result is not None
    assert run.callback.last_result.sizes == ((12, 10),) * 4


def test_a_model_that_takes_neither_says_what_it_raised_on_the_list(tmp_path: Any) -> None:
    class Neither(Stacking):
        def forward(self, images: Any) -> Tensor:
            if not self.training and self._trainer_is_ours(images):
                raise TypeError(f"no {type(images).__name__} in here")
            return super().forward(images)

        def _trainer_is_ours(self, images: Any) -> bool:
            return not torch.is_tensor(images) or len(images) != 3

    run = fit_lists(tmp_path, Neither())
    alert, *_ = run.callback.alerts
    assert alert.cause == "forward_failed"
    assert "no list in here" in alert.message
    assert run.trainer.global_step == 2


def test_images_of_different_sizes_are_never_stacked(tmp_path: Any) -> None:
    class Resizing(Stacking):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            same = [torch.nn.functional.interpolate(image[None], size=(12, 12))[0] for image in batch[0]]
            return super().training_step((same, batch[1]), batch_idx)

    run = fit_lists(tmp_path, Resizing(), size=None)
    alert, *_ = run.callback.alerts
    assert alert.cause == "forward_failed"
    assert run.callback.last_result is None
