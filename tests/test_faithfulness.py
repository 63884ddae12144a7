"""Measures of faithfulness: areas in closed form, references in plain loops, and grad-cam where it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from gradcam_callback.engine import faithfulness
from gradcam_callback.engine.faithfulness import (
    Faithfulness,
    FaithfulnessOptions,
    average_drop,
    blurred_images,
    deletion,
    forward_passes,
    impute,
    increase,
    insertion,
    measure,
    ranks,
    road,
)

Measure = Callable[..., Tensor]
MEASURES: dict[str, Measure] = {
    "insertion": insertion,
    "deletion": deletion,
    "average_drop": average_drop,
    "increase": increase,
    "road": road,
}


def mean_score(images: Tensor, rows: Tensor) -> Tensor:
    """A linear model: each pixel counts alike."""
    return images.mean(dim=(1, 2, 3))


class Small(nn.Module):
    """A network whose probabilities are neither near 0 nor near 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.conv(images)).amax((2, 3)))
        return logits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return Small().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def heatmaps() -> Tensor:
    return torch.rand(5, 10, 10, generator=torch.Generator().manual_seed(2))


CLASSES = torch.tensor([0, 1, 2, 3, 1])


def scorer(model: nn.Module) -> faithfulness.Scorer:
    return lambda images, rows: model(images).softmax(dim=1)[torch.arange(len(rows)), CLASSES[rows]]


def probability(model: nn.Module, image: np.ndarray[Any, Any], row: int) -> float:
    with torch.no_grad():
        return float(model(torch.from_numpy(image).float()[None]).softmax(dim=1)[0, CLASSES[row]])


# The order of the pixels


def test_of_equal_values_the_first_pixel_counts_as_larger() -> None:
    maps = torch.tensor([[[0.5, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert ranks(maps).tolist() == [[[1, 0], [2, 3]], [[0, 1], [2, 3]]]


# In closed form, of a linear model


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_straight_line_has_half_the_area(steps: int) -> None:
    ones = torch.ones(2, 1, 4, 4)
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(deletion(mean_score, ones, maps, steps=steps), torch.full((2,), 0.5))
    # What is the same everywhere is the same when it is blurred.
    torch.testing.assert_close(insertion(mean_score, ones, maps, steps=steps), torch.ones(2))


def test_one_pixel_that_is_all() -> None:
    """The score is the one pixel's share; right maps lose it in the first step of 16, wrong ones in the last."""
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 16.0
    right, wrong = image[0] / 16, 1 - image[0] / 16
    torch.testing.assert_close(deletion(mean_score, image, right, steps=16), torch.tensor([0.5 / 16]))
    torch.testing.assert_close(deletion(mean_score, image, wrong, steps=16), torch.tensor([1 - 0.5 / 16]))

    def that_pixel(images: Tensor, rows: Tensor) -> Tensor:
        return images[:, 0, 1, 2] / 16

    blurred = float(blurred_images(image, 0.25)[0, 0, 1, 2] / 16)
    area = torch.tensor([1 - (1 - blurred) * 0.5 / 16])
    torch.testing.assert_close(insertion(that_pixel, image, right, steps=16, blur=0.25), area)
    assert 0 < blurred < 0.3


def test_a_ramp_has_the_area_of_its_square() -> None:
    """Values n, n - 1, ..., 1, deleted from the largest: after k of n there are (n - k)(n - k + 1) / 2 left."""
    n = 36
    ramp = torch.arange(n, 0, -1.0).view(1, 1, 6, 6)
    left = [(n - k) * (n - k + 1) / 2 / n for k in range(n + 1)]
    expected = (sum(left) - (left[0] + left[-1]) / 2) / n
    torch.testing.assert_close(deletion(mean_score, ramp, ramp[0] / n, steps=n), torch.tensor([expected]))


def test_more_steps_than_pixels_are_no_error_and_change_little() -> None:
    ones, maps = torch.ones(1, 1, 3, 3), torch.rand(1, 3, 3)
    torch.testing.assert_close(deletion(mean_score, ones, maps, steps=1000), torch.tensor([0.5]), atol=0.06, rtol=0)


def test_what_stands_in_place_of_a_deleted_pixel() -> None:
    image = torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 3.0)])[None]
    maps = torch.rand(1, 4, 4)
    torch.testing.assert_close(deletion(mean_score, image, maps, fill=6.0, steps=4), torch.tensor([4.0]))
    torch.testing.assert_close(deletion(mean_score, image, maps, fill="mean", steps=4), torch.tensor([2.0]))


def test_drop_and_increase_of_a_linear_model() -> None:
    images = torch.ones(4, 1, 2, 2)
    images[3] = -1.0
    maps = torch.tensor([1.0, 0.25, 0.0, 0.5])[:, None, None].expand(4, 2, 2)
    torch.testing.assert_close(average_drop(mean_score, images[:3], maps[:3]), torch.tensor([0.0, 0.75, 1.0]))
    assert increase(mean_score, images, maps).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_where_the_score_is_zero_there_is_nothing_to_lose() -> None:
    assert average_drop(mean_score, torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2)).tolist() == [0.0]


def test_road_of_a_linear_model() -> None:
    """Two bright rows on black, a fifth of the pixels. Removed, they become black; so does black that is removed."""
    image, maps = torch.zeros(1, 1, 10, 10), torch.linspace(1, 0, 10)[None, :, None].expand(1, 10, 10)
    image[..., :2, :] = 1.0
    found = road(mean_score, image, maps, percentiles=[20])
    torch.testing.assert_close(found, torch.tensor([0.2 / 2]), atol=2e-3, rtol=0)  # but for the noise
    turned = road(mean_score, image, 1 - maps, percentiles=[20])
    torch.testing.assert_close(turned, -found, atol=2e-3, rtol=0)


# In plain loops


def curve(values: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


def by_loops(model: nn.Module, start: Tensor, end: Tensor, heatmaps: Tensor, steps: int) -> list[float]:
    areas = []
    for row, (first, last, heat) in enumerate(zip(start.numpy(), end.numpy(), heatmaps.numpy(), strict=True)):
        order = sorted(range(heat.size), key=lambda pixel: (-heat.flat[pixel], pixel))
        values = []
        for step in range(steps + 1):
            image = first.copy()
            for pixel in order[: step * heat.size // steps]:
                image[:, pixel // heat.shape[1], pixel % heat.shape[1]] = last[
                    :, pixel // heat.shape[1], pixel % heat.shape[1]
                ]
            values.append(probability(model, image, row))
        areas.append(curve(values))
    return areas


@pytest.mark.parametrize("tied", [False, True])
def test_curves_by_loops(model: nn.Module, images: Tensor, heatmaps: Tensor, tied: bool) -> None:
    heatmaps = (heatmaps * 4).round() / 4 if tied else heatmaps
    deleted = by_loops(model, images, torch.zeros_like(images), heatmaps, 7)
    inserted = by_loops(model, blurred_images(images, 0.2), images, heatmaps, 7)
    torch.testing.assert_close(deletion(scorer(model), images, heatmaps, steps=7), torch.tensor(deleted))
    torch.testing.assert_close(insertion(scorer(model), images, heatmaps, steps=7, blur=0.2), torch.tensor(inserted))


def test_the_blur_is_that_of_scipy(images: Tensor) -> None:
    expected = gaussian_filter(images.numpy(), sigma=(0, 0, 2, 2), mode="nearest", radius=(0, 0, 6, 6))
    torch.testing.assert_close(blurred_images(images, 0.2), torch.from_numpy(expected))
    assert blurred_images(images, 0) is images


def test_drop_and_increase_by_loops(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    drops, increases = [], []
    for row, (image, heat) in enumerate(zip(images.numpy(), heatmaps.numpy(), strict=True)):
        whole, masked = probability(model, image, row), probability(model, image * heat, row)
        drops.append(max(0.0, whole - masked) / whole)
        increases.append(float(whole < masked))
    torch.testing.assert_close(average_drop(scorer(model), images, heatmaps), torch.tensor(drops))
    assert increase(scorer(model), images, heatmaps).tolist() == increases
    assert 0 < sum(increases) < len(increases)


def imputed_by_loops(image: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The equations as the paper has them, as a full matrix."""
    height, width = known.shape
    missing = [(y, x) for y in range(height) for x in range(width) if not known[y, x]]
    matrix, right = np.zeros((len(missing), len(missing))), np.zeros((len(missing), len(image)))
    for row, (y, x) in enumerate(missing):
        for dy, dx in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]:
            weight = 1 / 12 if dy and dx else 1 / 6
            if not (0 <= y + dy < height and 0 <= x + dx < width):
                continue
            matrix[row, row] += weight
            if known[y + dy, x + dx]:
                right[row] += weight * image[:, y + dy, x + dx]
            else:
                matrix[row, missing.index((y + dy, x + dx))] -= weight
    filled = image.astype(np.float64)
    for (y, x), values in zip(missing, np.linalg.solve(matrix, right), strict=True):
        filled[:, y, x] = values
    return filled


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("size", [(7, 12), (17, 20)])
def test_imputation_solves_the_equations(share: float, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, *size, generator=generator)
    heat = F.interpolate(torch.rand(3, 1, 4, 4, generator=generator), size, mode="bilinear")
    known = heat >= heat.flatten(1).quantile(share, dim=1)[:, None, None, None]
    found = impute(images, known)
    expected = [imputed_by_loops(image.numpy(), mask[0].numpy()) for image, mask in zip(images, known, strict=True)]
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)).float(), atol=5e-4, rtol=0)
    assert torch.equal(found[known.expand_as(found)], images[known.expand_as(images)])


def test_imputation_of_what_needs_none_and_of_one_known_pixel() -> None:
    images = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(impute(images, torch.ones(1, 1, 9, 9, dtype=torch.bool)), images)
    one = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    one[0, 0, 2, 7] = True
    torch.testing.assert_close(impute(images, one), images[..., 2:3, 7:8].expand_as(images), atol=1e-4, rtol=0)


def test_imputation_in_half_precision(images: Tensor) -> None:
    known = torch.rand(5, 1, 10, 10, generator=torch.Generator().manual_seed(0)) > 0.5
    found = impute(images.bfloat16(), known)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), impute(images, known), atol=0.05, rtol=0.05)


# Against grad-cam


def test_imputation_is_that_of_grad_cam() -> None:
    generator = torch.Generator().manual_seed(5)
    image = F.interpolate(torch.randn(1, 3, 8, 8, generator=generator), 64, mode="bicubic")
    heat = F.interpolate(torch.rand(1, 1, 7, 7, generator=generator), 64, mode="bilinear")
    known = heat < heat.quantile(0.4)
    expected = NoisyLinearImputer(noise=0)(image[0], known[0, 0].float())
    torch.testing.assert_close(impute(image, known)[0], expected, atol=1e-3, rtol=0)


def test_road_is_that_of_grad_cam(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    """Where no two values are equal, and the percentiles lie alike on both sides of 50.

    Of equal values grad-cam removes all at the threshold at once, so that more pixels go than were asked for, and all
    of a map that is the same everywhere, whose equations then have no solution. And what it calls the percentile is the
    share that stays, so that for others than symmetric percentiles it measures something else than the paper.
    """
    targets = [ClassifierOutputSoftmaxTarget(int(category)) for category in CLASSES]
    torch.manual_seed(0)  # of its noise, which differs from ours
    expected = ROADCombined(percentiles=[20, 40, 60, 80])(images, heatmaps.numpy(), targets, model)
    found = road(scorer(model), images, heatmaps)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=5e-3, rtol=0)
    assert found.abs().max() > 0.02


def test_increase_is_that_of_grad_cam_and_drop_is_not(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    """grad-cam gives `max(0, Y - O)`. The paper divides by `Y`, so unsure predictions count as much as sure ones."""
    targets = [ClassifierOutputSoftmaxTarget(int(category)) for category in CLASSES]
    expected = IncreaseInConfidence()(images, heatmaps.numpy(), targets, model)
    assert increase(scorer(model), images, heatmaps).tolist() == expected.tolist()
    absolute = torch.from_numpy(DropInConfidence()(images, heatmaps.numpy(), targets, model))
    whole = scorer(model)(images, torch.arange(5)).detach()
    torch.testing.assert_close(average_drop(scorer(model), images, heatmaps), absolute / whole)


# Of every measure


@pytest.mark.parametrize("name", MEASURES)
def test_portions_change_nothing_and_are_kept(name: str, model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    seen: list[int] = []

    def counted(some: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(some))
        return scorer(model)(some, rows)

    whole = MEASURES[name](scorer(model), images, heatmaps, portion=1000)
    parts = MEASURES[name](counted, images, heatmaps, portion=7)
    torch.testing.assert_close(parts, whole)
    assert max(seen) == 7
    assert torch.equal(MEASURES[name](scorer(model), images, heatmaps, portion=7), parts)


@pytest.mark.parametrize("name", MEASURES)
def test_a_map_of_nan_has_no_figure_and_costs_nothing(
    name: str, model: nn.Module, images: Tensor, heatmaps: Tensor
) -> None:
    scored: list[int] = []

    def noted(some: Tensor, rows: Tensor) -> Tensor:
        scored.extend(rows.tolist())
        return scorer(model)(some, rows)

    broken = heatmaps.clone()
    broken[1], broken[3, 0, 0] = math.nan, math.nan
    found = MEASURES[name](noted, images, broken)
    assert found.isnan().tolist() == [False, True, False, True, False]
    assert set(scored) == {0, 2, 4}
    rest = MEASURES[name](scorer(model), images, heatmaps)
    torch.testing.assert_close(found[[0, 2, 4]], rest[[0, 2, 4]])
    assert MEASURES[name](noted, images, torch.full_like(heatmaps, math.nan)).isnan().all()


@pytest.mark.parametrize("name", MEASURES)
def test_no_gradients_and_no_generator(name: str, model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    enabled: list[bool] = []

    def noted(some: Tensor, rows: Tensor) -> Tensor:
        enabled.append(torch.is_grad_enabled())
        return scorer(model)(some, rows)

    before, kept = torch.get_rng_state(), images.clone()
    found = MEASURES[name](noted, images, heatmaps)
    assert not any(enabled)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=words):
        yield


def test_what_is_refused(images: Tensor, heatmaps: Tensor) -> None:
    for one in MEASURES.values():
        with refused(r"heatmaps \(4, 10, 10\)"):
            one(mean_score, images, heatmaps[:4])
        with refused(r"heatmaps \(5, 1, 10, 10\)"):
            one(mean_score, images, heatmaps[:, None])
        with refused("given: 0"):
            one(mean_score, images, heatmaps, portion=0)
        with refused("gives one number an image"):
            one(lambda some, rows: some.mean(), images, heatmaps)
    with refused("at least one step"):
        insertion(mean_score, images, heatmaps, steps=0)
    with refused("`blur` is a share"):
        insertion(mean_score, images, heatmaps, blur=-1)
    with refused('a number or "mean"'):
        deletion(mean_score, images, heatmaps, fill="median")  # type: ignore[arg-type]
    for percentiles in ([], [0], [100]):
        with refused("Percentiles are above 0"):
            road(mean_score, images, heatmaps, percentiles=percentiles)


# All at once


def test_all_at_once_and_their_price(model: nn.Module, images: Tensor, heatmaps: Tensor) -> None:
    scored: list[int] = []

    def counted(some: Tensor, rows: Tensor) -> Tensor:
        scored.extend(rows.tolist())
        return scorer(model)(some, rows)

    options = FaithfulnessOptions(steps=5, blur=0.1, fill="mean", percentiles=(30, 70), seed=4, portion=9)
    found = measure(counted, images, heatmaps, options)
    assert isinstance(found, Faithfulness)
    assert [scored.count(row) for row in range(5)] == [forward_passes(options)] * 5 == [2 * 6 + 2 + 4] * 5
    assert forward_passes() == 76
    score = scorer(model)
    torch.testing.assert_close(found.insertion, insertion(score, images, heatmaps, steps=5, blur=0.1))
    torch.testing.assert_close(found.deletion, deletion(score, images, heatmaps, steps=5, fill="mean"))
    torch.testing.assert_close(found.average_drop, average_drop(score, images, heatmaps))
    torch.testing.assert_close(found.increase, increase(score, images, heatmaps))
    torch.testing.assert_close(found.road, road(score, images, heatmaps, percentiles=(30, 70), seed=4))


def test_a_right_map_is_better_than_a_wrong_one_in_every_measure() -> None:
    """A score that depends on one corner alone."""
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2
    images[..., :5, :5] += 0.8

    def corner(some: Tensor, rows: Tensor) -> Tensor:
        return torch.sigmoid(20 * (some[:, 0, :5, :5].mean(dim=(1, 2)) - some[:, 0].mean(dim=(1, 2)) - 0.4))

    right = torch.zeros(2, 16, 16)
    right[:, :5, :5] = 1.0
    good, bad = measure(corner, images, right), measure(corner, images, right.flip(1, 2))
    assert (good.insertion > bad.insertion).all()
    assert (good.deletion < bad.deletion).all()
    assert (good.average_drop < bad.average_drop).all()
    assert (good.increase >= bad.increase).all()
    assert (good.road > bad.road).all()
