"""The figures of each explainer on each task."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.benchmark import networks, photographs, scenes
from gradcam_callback.benchmark.explainers import Explainer
from gradcam_callback.benchmark.scenes import Pictures, Task
from gradcam_callback.engine.faithfulness import Scorer, deletion, drop_and_increase, insertion, road
from gradcam_callback.engine.sanity.randomisation import own_weights, randomise
from gradcam_callback.engine.sanity.rank_correlation import rank_correlation
from gradcam_callback.measures import Regions, RegionWeights


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        training: Pictures to train on.
        pictures: To measure on, of each drawn task.
        steps: Of each training, of 64 pictures.
        curve: Steps of insertion and deletion; half as many on photographs, whose network is large.
        imputed: Pictures that ROAD is measured on, which takes long.
    """

    training: int = 4000
    pictures: int = 64
    steps: int = 400
    curve: int = 16
    imputed: int = 32


MARGIN = 15 / 224
"""How far beside the truth a map may point, as a share of the image's side: 15 pixels of 224 (Zhang et al., 2018)."""

_PERCENTILES = (30.0, 70.0)  # of the pixels; to impute many takes long

QUICK = Scale(training=256, pictures=8, steps=4, curve=2, imputed=4)


@dataclass(frozen=True, eq=False)
class Case:
    """A network and the pictures that its maps are measured on.

    Attributes:
        name: What the table calls it.
        truth: What decides, in words.
        model: In eval mode.
        layer: That is explained.
        pictures: Those that the network is right about.
        accuracy: Of the network on all of them, 0..1.
        without: That on the same pictures without what decides; None where there are none such.
        is_drawn: Whether the pictures are drawn, and the network was trained for the benchmark.
    """

    name: str
    truth: str
    model: nn.Module
    layer: str
    pictures: Pictures
    accuracy: float
    without: float | None = None
    is_drawn: bool = True

    @cached_property
    def regions(self) -> tuple[RegionWeights, RegionWeights]:
        """The truth, and the same with `MARGIN` around it, for maps of the images' size: alike for each explainer."""
        truth = self.pictures.truth
        one, other = (
            RegionWeights.of(Regions(tuple(masks.numpy())), masks.shape[1:]) for masks in (truth, _grown(truth))
        )
        return one, other


@dataclass(frozen=True)
class Figures:
    """What came out for one explainer on one case; means over its pictures.

    Attributes:
        case: Its name.
        family: Whose explainer it is.
        explainer: Its name.
        pointing: The share of maps whose largest value lies in the truth, 0..1; see `MARGIN`.
        energy: The share of the maps' energy in the truth, 0..1.
        insertion: As of `faithfulness.insertion`, 0..1.
        deletion: As of `faithfulness.deletion`, 0..1.
        average_drop: As of `faithfulness.average_drop`, 0..1.
        increase: As of `faithfulness.increase`, 0..1.
        road: As of `faithfulness.road`, -1..1; None where it was not measured.
        similarity: The median absolute rank correlation to the map of the network with random weights, 0..1; None where
            it was not measured.
        milliseconds: For each picture.
    """

    case: str
    family: str
    explainer: str
    pointing: float
    energy: float
    insertion: float
    deletion: float
    average_drop: float
    increase: float
    road: float | None
    similarity: float | None
    milliseconds: float


def drawn_cases(scale: Scale, names: Sequence[str] = ()) -> Iterator[Case]:
    """The drawn tasks, each with a network that was trained on it; of these names only, if any are given."""
    sizes = scale.training, scale.pictures
    of_object, of_ground = scenes.objects_and_grounds(*sizes)
    tasks = [scenes.cluttered_digits(*sizes), scenes.decoy_digits(*sizes), scenes.triggered_digits(*sizes)]
    for task in (*tasks, of_object, of_ground):
        if not names or task.name in names:
            yield _trained(task, scale)


def _trained(task: Task, scale: Scale) -> Case:
    model = networks.train(task, scale.steps)
    right = networks.probabilities(model, task.measured.images).argmax(dim=1) == task.measured.labels
    rows = right.nonzero().squeeze(1) if right.any() else torch.arange(len(right))
    accuracy, without = (networks.accuracy(model, pictures) for pictures in (task.measured, task.without))
    return Case(task.name, task.truth, model, networks.LAYER, task.measured[rows], accuracy, without)


def photograph_case() -> Case:
    """The photographs, of which the network is right about the class of each.

    Raises:
        ImportError: A package of the extra `benchmark` is not installed.
    """
    model, pictures = photographs.load_network(), photographs.load_photographs()
    truth = "a box drawn by hand around the thing, in photographs, of EfficientNet-Lite0 trained on ImageNet"
    accuracy = networks.accuracy(model, pictures)
    return Case("photograph", truth, model, photographs.LAYER, pictures, accuracy, is_drawn=False)


def takes_too_long(case: Case, explainer: Explainer) -> bool:
    """Whether an explainer is left out: one that runs a large network once for each of hundreds of channels."""
    return explainer.is_slow and not case.is_drawn


def measure(case: Case, explainer: Explainer, scale: Scale) -> Figures:
    """The figures of one explainer on one case."""
    pictures, model = case.pictures, case.model
    if not explainer.is_slow:  # the first call imports packages, and sets up what the next ones find
        explainer.explain(model, case.layer, pictures.images[:1], pictures.labels[:1])
    started = time.perf_counter()
    heatmaps = explainer.explain(model, case.layer, pictures.images, pictures.labels)
    seconds = time.perf_counter() - started
    # A map that is none points nowhere, and tells nothing of the order of the pixels.
    steps = scale.curve if case.is_drawn else scale.curve // 2
    heatmaps = heatmaps.float().nan_to_num().contiguous()
    truth, near = case.regions
    maps = heatmaps[None].numpy()

    def score(images: Tensor, rows: Tensor) -> Tensor:
        return networks.probabilities(model, images).gather(1, pictures.labels[rows, None]).squeeze(1)

    drop, increase = drop_and_increase(score, pictures.images, heatmaps)
    return Figures(
        case=case.name,
        family=explainer.family,
        explainer=explainer.name,
        pointing=_mean(near.pointing_game(maps)),
        energy=_mean(truth.energy_inside(maps)),
        insertion=float(insertion(score, pictures.images, heatmaps, steps=steps).mean()),
        deletion=float(deletion(score, pictures.images, heatmaps, steps=steps).mean()),
        average_drop=float(drop.mean()),
        increase=float(increase.mean()),
        road=_road(score, case, heatmaps, scale) if case.is_drawn else None,
        similarity=_similarity(case, explainer, heatmaps) if case.is_drawn else None,
        milliseconds=1000 * seconds / len(pictures),
    )


def _road(score: Scorer, case: Case, heatmaps: Tensor, scale: Scale) -> float:
    rows = slice(scale.imputed)
    return float(road(score, case.pictures.images[rows], heatmaps[rows], percentiles=_PERCENTILES).mean())


def _grown(masks: Tensor) -> Tensor:
    """Regions with `MARGIN` around them, bool `(N, H, W)`.

    One that is most of the image has none: nothing would be left beside it.
    """
    if masks.float().mean() > 0.5:
        return masks
    margin = round(MARGIN * masks.shape[-1])
    return F.max_pool2d(masks[:, None].float(), 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0


def _mean(values: np.ndarray) -> float:
    """Over the pictures; a map of zeros, which is NaN, has missed."""
    return float(np.nan_to_num(values).mean())


def _similarity(case: Case, explainer: Explainer, heatmaps: Tensor) -> float:
    """How alike the maps are to those of the same network with random weights; see `engine.sanity`."""
    other = copy.deepcopy(case.model)
    randomise(other, list(own_weights(other)), seed=0)
    random = explainer.explain(other, case.layer, case.pictures.images, case.pictures.labels)
    return float(rank_correlation(heatmaps, random.float().nan_to_num()).abs().median())
