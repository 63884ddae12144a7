"""Maps of models that pad their images lie where the image is, not where the padding ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gradcam_callback import compute_cam
from gradcam_callback.engine.output_survey import survey_output
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.results import enlarge


class Padded(nn.Module):
    """Pads its images, and then sums what a 1 x 1 convolution makes of each pixel."""

    def __init__(self, *sides: int, scale: int = 1, mode: str = "constant") -> None:
        super().__init__()
        self.stage, self.sides, self.scale, self.mode = nn.Conv2d(3, 2, 1, bias=False), sides, scale, mode
        nn.init.constant_(self.stage.weight, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        images = F.interpolate(images, scale_factor=self.scale) if self.scale > 1 else images
        maps: Tensor = self.stage(F.pad(images, self.sides, mode=self.mode))
        return maps.mean((2, 3)) * torch.tensor([1.0, -1.0])


def extent(model: nn.Module, images: Tensor, target: Any = 0) -> Any:
    return survey_output(model.eval(), images, CAMRequest.of(targets=[target])).extent


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (Padded(0, 4, 0, 8), (0.0, 0.0, 0.5, 0.6)),
        (Padded(2, 2, 4, 4), (0.25, 0.2, 0.75, 0.8)),
        (Padded(0, 12, 0, 0, scale=2), (0.0, 0.0, 1.0, 0.5)),
        (Padded(0, 0, 0, 0, scale=3), None),
        (Padded(0, 0, 0, 0), None),
        (Padded(0, 4, 0, 4, mode="reflect"), None),
    ],
    ids=["at the end", "around", "enlarged", "enlarged alone", "not at all", "with the image itself"],
)
def test_the_image_is_what_changes_with_it(model: nn.Module, wanted: Any) -> None:
    found = extent(model, torch.rand(2, 3, 8, 6))
    assert found == (None if wanted is None else pytest.approx(wanted))


class Split(Padded):
    """Looks at the halves of each image, or at the first image alone."""

    def __init__(self, step: int) -> None:
        super().__init__(0, 0)
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        parts = torch.cat(images.chunk(2, dim=2))[:: self.step]
        return self.stage(parts).mean((2, 3)).sum(0).expand(len(images), -1)


@pytest.mark.parametrize("step", [1, 4], ids=["more", "fewer"])
def test_where_there_is_not_one_for_each_image_it_cannot_be_told(step: int) -> None:
    assert extent(Split(step), torch.rand(2, 3, 8, 6)) is None


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (2, 2, 4, 4)], ids=["whole", "padded"])
def test_no_pass_is_made_for_it_but_of_an_image_alone(count: int, sides: tuple[int, ...]) -> None:
    begun: list[int] = []

    class Counted(Padded):
        def forward(self, images: Tensor) -> Tensor:
            begun.append(len(images))
            return super().forward(images)

    found = extent(Counted(*sides), torch.rand(count, 3, 8, 6))
    assert found == (pytest.approx((0.25, 0.2, 0.75, 0.8)) if any(sides) else None)
    assert begun == ([2] * 3 if count == 2 else [1] * (3 if any(sides) else 1))


def test_a_heatmap_lies_on_the_image() -> None:
    """Of a model that keeps each pixel, the map is the image, whatever is padded."""
    images = torch.rand(2, 3, 8, 6)
    result = compute_cam(Padded(2, 4, 4, 8), images, target=0)
    assert result.cams["stage"].shape == (2, 20, 12)
    wanted = images.sum(1) / images.sum(1).amax((1, 2), keepdim=True)
    torch.testing.assert_close(result.heatmaps()["stage"], wanted, rtol=1e-4, atol=1e-5)


def test_the_part_of_a_map_is_that_of_the_enlarged_map() -> None:
    maps = torch.rand(2, 4, 4)
    enlarged = F.interpolate(maps.unsqueeze(1), size=(16, 16), mode="bilinear").squeeze(1)
    torch.testing.assert_close(enlarge(maps, (8, 8), torch.tensor([[1.0, 0.0, 3.0, 2.0]] * 2)), enlarged[:, 4:12, :8])


def test_a_detector_pads_to_a_multiple_of_32() -> None:
    class Backbone(nn.Sequential):
        out_channels = 32

    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    backbone = Backbone(nn.Conv2d(3, 32, 3, stride=4, padding=1))
    net = FCOS(backbone, 3, anchor_generator=anchors, score_thresh=0.0, min_size=48, max_size=96)
    # 48 x 60 pixels, padded to 64 x 64
    found = extent(net, torch.rand(2, 3, 16, 20), {"detection": "best"})
    assert found == pytest.approx((0.0, 0.0, 0.75, 60 / 64))
