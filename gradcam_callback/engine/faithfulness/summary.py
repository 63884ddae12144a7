"""All measures of some probes at once, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradcam_callback.engine.faithfulness.curves import BLUR, STEPS, Fill, deletion, insertion
from gradcam_callback.engine.faithfulness.masking import drop_and_increase
from gradcam_callback.engine.faithfulness.road import PERCENTILES, road
from gradcam_callback.engine.faithfulness.scoring import PORTION, Scorer


@dataclass(frozen=True)
class FaithfulnessOptions:
    """How the measures are taken.

    Attributes:
        steps: Of insertion and deletion, at least 1.
        blur: As of `insertion`.
        fill: As of `deletion`.
        percentiles: As of `road`.
        seed: Of the noise of `road`.
        portion: The most images at once.
    """

    steps: int = STEPS
    blur: float = BLUR
    fill: Fill = 0.0
    percentiles: Sequence[float] = PERCENTILES
    seed: int = 0
    portion: int = PORTION


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Faithfulness:
    """How well maps tell what the score depends on.

    Each is float32 `(N,)` on the images' device, and NaN for a probe with a NaN in its map.

    Attributes:
        insertion: 0..1, higher is better; see `insertion`.
        deletion: 0..1, lower is better; see `deletion`.
        average_drop: 0..1, lower is better; see `average_drop`.
        increase: 0 or 1, higher is better; see `increase`.
        road: -0.5..0.5, higher is better; see `road`.
    """

    insertion: Tensor
    deletion: Tensor
    average_drop: Tensor
    increase: Tensor
    road: Tensor


_DEFAULT = FaithfulnessOptions()


def measure(score: Scorer, images: Tensor, heatmaps: Tensor, options: FaithfulnessOptions = _DEFAULT) -> Faithfulness:
    """All measures of each probe. They cost `forward_passes(options)` of each.

    Args:
        score: As of `Scorer`.
        images: `(N, C, H, W)`, as the model takes them.
        heatmaps: `(N, H, W)` in 0..1, as of `CAMResult.heatmaps`.
        options: How they are taken.

    Raises:
        ValueError: Images and heatmaps do not belong together, or an option is out of its range.
    """
    steps, portion = options.steps, options.portion
    inserted = insertion(score, images, heatmaps, steps=steps, blur=options.blur, portion=portion)
    deleted = deletion(score, images, heatmaps, steps=steps, fill=options.fill, portion=portion)
    drop, increased = drop_and_increase(score, images, heatmaps, portion=portion)
    percentiles, seed = options.percentiles, options.seed
    removed = road(score, images, heatmaps, percentiles=percentiles, seed=seed, portion=portion)
    return Faithfulness(inserted, deleted, drop, increased, removed)


def forward_passes(options: FaithfulnessOptions = _DEFAULT) -> int:
    """How many images of each probe are scored: 76 by default. A probe with a NaN in its map costs none."""
    return 2 * (options.steps + 1) + 2 + 2 * len(options.percentiles)
