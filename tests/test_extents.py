"""Images of different sizes, in detectors that resize and pad them: which part of its map each image is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import differentiate, gradcam, relative_error
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gradcam_callback import compute_cam, diagnose
from gradcam_callback.engine.device_results import DeviceResults, judge
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.transfer import copy_to_host
from gradcam_callback.results import zero_within

SIZES = [(16, 20), (24, 16), (17, 30)]


class Backbone(nn.Sequential):
    out_channels = 32


def detector(least: int = 32, most: int = 48) -> nn.Module:
    torch.manual_seed(0)
    backbone = Backbone(nn.Conv2d(3, 32, 3, stride=4, padding=1), nn.ReLU())
    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    return FCOS(backbone, 3, anchor_generator=anchors, score_thresh=0.0, min_size=least, max_size=most).eval()


def images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(3, *size) for size in sizes]


class Padded(nn.Module):
    """The brightness of each image, resized by some factor, in a canvas of zeros; the score is its sum."""

    def __init__(self, factor: int = 1, *, centred: bool = False, side: int = 64) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.stage.weight, 1 / 3)
        self.factor, self.centred, self.side = factor, centred, side

    def batched(self, images: Sequence[Tensor]) -> Tensor:
        batch = images[0].new_zeros(len(images), 3, self.side, self.side)
        for row, image in zip(batch, images, strict=True):
            large = image.repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)
            top, left = ((self.side - side) // 2 if self.centred else 0 for side in large.shape[1:])
            row[:, top : top + large.shape[1], left : left + large.shape[2]] = large
        return batch

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return self.stage(self.batched(images)).sum((2, 3))


@pytest.mark.parametrize("centred", [False, True], ids=["upper left", "centred"])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_heatmap_lies_over_its_own_image(factor: int, centred: bool) -> None:
    """The map is the brightness, so its peak has to be the one bright pixel of each image, wherever it is padded."""
    given, bright = [torch.zeros(3, *size) for size in SIZES], [(3, 15), (22, 1), (9, 28)]
    for image, (row, column) in zip(given, bright, strict=True):
        image[:, row, column] = 1.0
    result = compute_cam(Padded(factor, centred=centred), given, "stage")
    heatmaps = result.heatmaps()["stage"]
    assert result.input_size == (24, 30)
    assert heatmaps.shape == (3, 24, 30)
    for heatmap, image in zip(heatmaps, given, strict=True):
        height, width = image.shape[1:]
        torch.testing.assert_close(heatmap[:height, :width], image[0], atol=1e-5, rtol=0)
        assert heatmap[height:].sum() + heatmap[:, width:].sum() == 0


def test_a_detector_of_torchvision() -> None:
    net, given = detector(), images()
    result = compute_cam(net, given, "backbone.0", target={"detection": "best"})

    def best(returned: Any) -> Tensor:
        return torch.stack([one["scores"].max() for one in returned])[:, None]

    evidence = differentiate(net, given, "backbone.0", target=0, logits_of=best)
    wanted = gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)
    assert relative_error(result.cams["backbone.0"], wanted).max() <= 1e-5
    batch, _ = net.transform(given)
    height, width = batch.tensors.shape[2:]
    shares = torch.tensor([[0, 0, own[0] / height, own[1] / width] for own in batch.image_sizes])
    assert (shares[:, 2:] < 1).any()
    assert len({tuple(row) for row in shares.tolist()}) == 3
    grid = wanted.shape[1:]
    torch.testing.assert_close(result.extents["backbone.0"], shares * torch.tensor([*grid, *grid]))
    assert result.boxes is not None
    for box, (own_height, own_width) in zip(result.boxes, SIZES, strict=True):
        assert (box <= torch.tensor([own_width, own_height] * 2)).all()
    assert list(compute_cam(net, given, target={"detection": "best"}).cams) == ["backbone"]
    assert diagnose(net, given, "backbone.0", target={"detection": "best"}).cause is None


def test_heatmaps_are_read_off_the_map_point_by_point() -> None:
    result = compute_cam(detector(), images(), "backbone.0", target={"detection": "best"})
    cams, extents = result.cams["backbone.0"], result.extents["backbone.0"]
    for heatmap, cam, (top, left, bottom, right), (height, width) in zip(
        result.heatmaps()["backbone.0"], cams, extents.tolist(), SIZES, strict=True
    ):
        rows = [top + (bottom - top) * (row + 0.5) / height - 0.5 for row in range(height)]
        columns = [left + (right - left) * (column + 0.5) / width - 0.5 for column in range(width)]
        wanted = torch.tensor([[between(cam, row, column) for column in columns] for row in rows])
        torch.testing.assert_close(heatmap[:height, :width], wanted / wanted.max(), atol=1e-5, rtol=1e-4)


def between(cam: Tensor, row: float, column: float) -> float:
    """The value between cells, by weights; beyond the middle of the outermost ones, theirs."""
    row, column = min(max(row, 0), cam.shape[0] - 1), min(max(column, 0), cam.shape[1] - 1)
    up, left = math.floor(row), math.floor(column)
    down, right = min(up + 1, cam.shape[0] - 1), min(left + 1, cam.shape[1] - 1)
    upper = cam[up, left] * (1 - column + left) + cam[up, right] * (column - left)
    lower = cam[down, left] * (1 - column + left) + cam[down, right] * (column - left)
    return float(upper * (1 - row + up) + lower * (row - up))


@pytest.mark.parametrize("kind", [list, torch.stack])
def test_images_of_one_size_may_be_padded_too(kind: Any) -> None:
    net, given = detector(30, 40), images([(18, 24)] * 2)
    result = compute_cam(net, kind(given), "backbone.0", target={"detection": "best"})
    batch, _ = net.transform(given)
    assert batch.tensors.shape[2:] == (32, 64)  # padded to multiples of 32
    assert batch.image_sizes == [(30, 40)] * 2
    extents = result.extents["backbone.0"]
    torch.testing.assert_close(extents, torch.tensor([[0, 0, 8 * 30 / 32, 16 * 40 / 64]] * 2))
    assert result.heatmaps()["backbone.0"].shape == (2, 18, 24)


def test_what_fills_the_batch_has_no_extents() -> None:
    result = compute_cam(detector(32, 32), images([(32, 32)] * 2), "backbone.0", target={"detection": "best"})
    assert result.extents == {}


def test_slices_of_the_samples_give_the_same_heatmaps() -> None:
    """The batches of the slices are padded to other sizes, and so are their maps."""
    request = CAMRequest.of("stage", [0])

    class Tight(Padded):
        def batched(self, images: Sequence[Tensor]) -> Tensor:
            sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
            return torch.stack([F.pad(one, (0, sides[1] - one.shape[2], 0, sides[0] - one.shape[1])) for one in images])

    net, inputs = Tight(), ModelInputs.of(images())
    whole = explain(net, inputs, request)
    parts = DeviceResults.concat([explain(net, inputs[part], request) for part in (slice(0, 1), slice(1, 3))])
    assert parts.input_size == whole.input_size == (24, 30)
    assert parts.sizes == tuple(SIZES)
    one, other = (found.by_target[0].examinations["stage"] for found in (whole, parts))
    assert one.extents is not None
    assert other.extents is not None
    torch.testing.assert_close(one.extents, other.extents)
    torch.testing.assert_close(one.cam, other.cam)


@pytest.mark.parametrize("last", [8, 16], ids=["one fills it", "all fill it"])
def test_an_image_that_fills_the_map_of_its_slice_stays_as_it_is(last: int) -> None:
    """Beside it stand maps with more cells, and those that it gets then are no part of it."""

    class Coarse(Padded):
        def forward(self, images: Sequence[Tensor]) -> Tensor:
            height = max(image.shape[1] for image in images)
            batch = torch.stack([F.pad(image, (0, 0, 0, height - image.shape[1])) for image in images])
            return self.stage(F.avg_pool2d(batch, 4)).sum((2, 3))

    net, given = Coarse(), images([(24, 16), (16, 16), (last, 16)])
    inputs, request = ModelInputs.of(given), CAMRequest.of("stage", [1])
    parts = DeviceResults.concat([explain(net, inputs[part], request) for part in (slice(0, 1), slice(1, 3))])
    [result] = judge(parts, *copy_to_host([parts.verdicts]))
    alone = compute_cam(net, given[1:], "stage", target=1).heatmaps()["stage"]
    torch.testing.assert_close(result.heatmaps()["stage"][1:, :16], alone)


def test_images_that_the_model_resizes_to_one_size_are_all_of_it() -> None:
    class Resized(Padded):
        def batched(self, images: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.interpolate(image[None], size=(12, 12)) for image in images])

    result = compute_cam(Resized(), images(), "stage")
    assert result.extents == {}
    [heatmap, *_] = result.heatmaps()["stage"]
    wanted = F.interpolate(result.cams["stage"][:1, None], size=SIZES[0], mode="bilinear")[0, 0]
    torch.testing.assert_close(heatmap[: SIZES[0][0], : SIZES[0][1]], wanted / wanted.max())


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_a_map_is_empty_where_its_own_image_has_nothing(kind: str) -> None:
    """The padding is bright. Of the first image nothing else is, and of the second one pixel in the corner."""

    class Bright(Padded):
        def batched(self, images: Sequence[Tensor]) -> Tensor:
            batch = torch.ones(len(images), 3, 20, 24)
            for row, image in zip(batch, images, strict=True):
                row[:, : image.shape[1], : image.shape[2]] = image
            return batch

    given = [torch.zeros(3, 8, 10), torch.zeros(3, 8, 10 if kind == "tensor" else 12)]
    given[1][:, -1, -1] = 1.0
    inputs = given if kind == "list" else torch.stack(given)
    net = Bright()
    result = compute_cam(net, inputs, "stage" if kind == "list" else "auto")
    assert result.health["stage"].empty == (True, False)
    first, second = result.heatmaps()["stage"]
    assert not first.any()
    assert second[7, given[1].shape[2] - 1] == second.max() == 1


def test_a_cell_that_an_image_has_a_part_of_counts() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[:, 2, 1] = 1.0
    extents = torch.tensor([[0.0, 0.0, 2.0000002, 4.0], [0.0, 0.0, 2.25, 4.0], [0.0, 1.9999998, 4.0, 4.0]])
    assert zero_within(maps, extents).tolist() == [True, False, True]
    assert not zero_within(torch.full_like(maps, torch.nan), extents).any()


class OneByOne(Padded):
    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return torch.cat([self.stage(image[None]).mean((2, 3)) for image in images])


class Mixed(Padded):
    def batched(self, images: Sequence[Tensor]) -> Tensor:
        batch = super().batched(images)
        return batch - batch.mean(0)


class WithoutWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.AdaptiveAvgPool2d(4)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        return self.stage(Padded().batched(images)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (OneByOne(), r"16 x 20, 24 x 16, 17 x 30.*it is \(1, 3, 16, 20\)"),
        (Mixed(), r"cannot be told \(it is \(3, 3, 64, 64\)\)"),
        (WithoutWeights(), "no module with weights gets a batch of images"),
    ],
    ids=["one by one", "mixed", "without weights"],
)
def test_where_the_images_lie_unknown_there_is_no_map(model: nn.Module, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compute_cam(model, images(), "stage")


def test_boxes_as_shares_are_those_of_each_image() -> None:
    class Queries(Padded):
        def forward(self, images: Sequence[Tensor]) -> Any:
            scores = super().forward(images)
            boxes = scores.new_tensor([0.5, 0.5, 1.0, 0.5]).expand(len(images), 1, 4)
            return {"logits": torch.stack([scores, -scores], dim=2), "pred_boxes": boxes}

    result = compute_cam(Queries(), images(), "stage", target={"detection": "best"})
    wanted = [[0, 0.25 * height, width, 0.75 * height] for height, width in SIZES]
    torch.testing.assert_close(result.boxes, torch.tensor(wanted))


@pytest.mark.parametrize("target", ["reconstruction", {"segmentation": 0}], ids=str)
def test_targets_that_need_one_size_say_so(target: Any) -> None:
    class Maps(Padded):
        def forward(self, images: Sequence[Tensor]) -> Tensor:
            return self.stage(self.batched(images))

    with pytest.raises(ValueError, match="needs images of one size"):
        compute_cam(Maps(), images(), "stage", target=target)
