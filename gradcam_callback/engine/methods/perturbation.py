"""Methods without a gradient: what happens to the score if a channel is all that is left, or if it is missing.

Each costs one forward pass for each channel of the layer and each sample: 512 at the end of a ResNet-18, and 2048 at
that of a ResNet-50.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_callback.engine.methods.method import PER_CHANNEL, Forwards, Rerun
from gradcam_callback.results import enlarge


@dataclass(frozen=True)
class ScoreCAM:
    """Score-CAM: `relu(sum_k w_k A_k)`, with `w` the softmax over the channels of the scores of masked images.

    Channel `k` masks the image: enlarged to its size, and scaled to 0..1 by its least and its largest value. A channel
    that is the same everywhere masks all of it.

    Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR workshops 2020,
    equations 4 to 7 and algorithm 1. The score of the baseline is the same for all channels, and a softmax is the same
    without it.
    """

    name: str = "scorecam"

    @property
    def needs_gradient(self) -> bool:
        """No."""
        return False

    @property
    def extra_forwards(self) -> Forwards:
        """One for each channel."""
        return PER_CHANNEL

    def map(self, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
        """The map `(N, h, w)` of an activation `(N, K, h, w)`."""
        images = rerun.images
        space = images.shape[-(activation.ndim - 2) :]
        among = (slice(None),) + (None,) * (images.ndim - 1 - len(space))

        def masked(channel: int) -> Tensor:
            mask = enlarge(activation[:, channel], tuple(space))
            beside = (-1,) + (1,) * len(space)
            least = mask.flatten(1).amin(dim=1).view(beside)
            reach = mask.flatten(1).amax(dim=1).view(beside) - least
            mask = torch.where(reach > 0, (mask - least) / torch.where(reach > 0, reach, 1.0), 0.0)
            return images * mask[among].to(images.dtype)

        scores = rerun.scores_of_images(activation.shape[1], masked)
        return _weighted(activation, scores.softmax(dim=0))


@dataclass(frozen=True)
class AblationCAM:
    """Ablation-CAM: `relu(sum_k w_k A_k)`, with `w_k = (y - y_k) / |y|` and `y_k` the score without channel `k`.

    Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
    Localization", WACV 2020, equations 3 and 4. There it is divided by `y`, which turns the map into its opposite where
    the score is below 0.
    """

    name: str = "ablationcam"

    @property
    def needs_gradient(self) -> bool:
        """No."""
        return False

    @property
    def extra_forwards(self) -> Forwards:
        """One for each channel."""
        return PER_CHANNEL

    def map(self, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
        """The map `(N, h, w)` of an activation `(N, K, h, w)`."""

        def ablated(channel: int, maps: Tensor) -> Tensor:
            changed = maps.clone()
            changed[:, channel] = 0
            return changed

        without = rerun.scores_of_activations(activation.shape[1], ablated)
        size = rerun.scores.abs()
        return _weighted(activation, (rerun.scores - without) / torch.where(size > 0, size, 1.0))


def _weighted(activation: Tensor, weights: Tensor) -> Tensor:
    """The sum over the channels with weights `(K, N)`, its negative part cut off."""
    return torch.einsum("kn,nk...->n...", weights.to(activation.dtype), activation).relu()
