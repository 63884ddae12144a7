"""Do the maps point at the digit? Two measures, and a Lightning callback that follows them through a training.

- The pointing game: the share of maps whose peak lies inside the object's box. Zhang et al., "Top-down Neural Attention
  by Excitation Backprop" (2016); here without their tolerance of some pixels.
- The energy inside: the share of a map's sum that lies inside the box. Wang et al., "Score-CAM" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradcam_callback import compute_cam


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """True inside each box.

    Args:
        boxes: int64 `(N, 4)`: top, left, bottom, right in pixels, the last two exclusive.
        size: `(H, W)` of the image in pixels.

    Returns:
        bool `(N, H, W)`.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(dim=1)  # (N, 1) each
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    inside_rows = (rows >= top) & (rows < bottom)  # (N, H)
    inside_columns = (columns >= left) & (columns < right)  # (N, W)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def peak_inside(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Whether the highest point of each map lies in its box.

    Args:
        heatmaps: `(N, H, W)`, at least 0. A map that is zero everywhere, or NaN, points nowhere.
        boxes: int64 `(N, 4)`: top, left, bottom, right in pixels, the last two exclusive.

    Returns:
        bool `(N,)`.
    """
    flat = heatmaps.nan_to_num().flatten(1)
    peak, place = flat.max(dim=1)
    masks = box_masks(boxes, (heatmaps.shape[1], heatmaps.shape[2])).flatten(1)
    return masks.gather(1, place[:, None]).squeeze(1) & (peak > 0)


def energy_inside(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """The share of each map's sum that lies in its box.

    Args:
        heatmaps: `(N, H, W)`, at least 0. The share of a map that is zero everywhere, or NaN, is 0.
        boxes: int64 `(N, 4)`: top, left, bottom, right in pixels, the last two exclusive.

    Returns:
        float32 `(N,)` in 0..1.
    """
    heatmaps = heatmaps.nan_to_num()
    total = heatmaps.sum(dim=(1, 2))
    inside = (heatmaps * box_masks(boxes, (heatmaps.shape[1], heatmaps.shape[2]))).sum(dim=(1, 2))
    return torch.where(total > 0, inside / total, 0.0)


@dataclass(frozen=True)
class PointingScore:
    """How well the maps pointed at one moment of the training.

    Attributes:
        step: The trainer's global step.
        pointing_game: Share of maps whose peak lies in the box, 0..1.
        energy_inside: Mean share of map energy inside the box, 0..1.
    """

    step: int
    pointing_game: float
    energy_inside: float


class PointingGame(Callback):
    """Plays the pointing game before training and after each validation, on the same images.

    The first validation loader's data set has to know where its objects are: `dataset.boxes`, int64 `(N, 4)`. The maps
    are those of the label's class. Training is not disturbed: `compute_cam` leaves the model as it was.

    Args:
        target_layer: Dotted name of the layer inside the LightningModule, or "auto".
        images: How many images of the data set, the first ones.
        batch_size: How many images go through the network at once.

    Attributes:
        scores: One a validation, and one from before the training at its head.
        chance: What a map that knows nothing reaches in both measures: the mean share of the image that a box covers.

    Raises:
        ValueError: `images` or `batch_size` is below 1; or, when training starts, the data set has no boxes.
    """

    def __init__(self, target_layer: str = "auto", images: int = 200, batch_size: int = 50) -> None:
        if images < 1 or batch_size < 1:
            raise ValueError(f"images and batch_size are at least 1; given: {images} and {batch_size}.")
        self.target_layer = target_layer
        self.images = images
        self.batch_size = batch_size
        self.scores: list[PointingScore] = []
        self.chance = 0.0
        self._batches: list[tuple[Tensor, list[int], Tensor]] = []  # images, labels, boxes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play once before the first step."""
        self._batches, self.scores = self._read(trainer), []
        masks = [box_masks(boxes, (images.shape[2], images.shape[3])) for images, _, boxes in self._batches]
        self.chance = torch.cat(masks).float().mean().item()
        self._play(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play after a validation."""
        if self._batches and not trainer.sanity_checking:
            self._play(trainer, pl_module)

    def _read(self, trainer: Trainer) -> list[tuple[Tensor, list[int], Tensor]]:
        loaders = trainer.val_dataloaders
        dataset = getattr(loaders[0] if isinstance(loaders, list) else loaders, "dataset", None)
        boxes = getattr(dataset, "boxes", None)
        if dataset is None or boxes is None:
            raise ValueError(
                "The pointing game needs to know where the objects are: the first validation loader's data set has no "
                "`boxes`. Use ClutteredDigits with a seed, or leave PointingGame out of trainer.callbacks."
            )
        count = min(self.images, len(boxes))
        batches = []
        for start in range(0, count, self.batch_size):
            end = min(start + self.batch_size, count)
            images, labels = zip(*(dataset[index] for index in range(start, end)), strict=True)
            batches.append((torch.stack(images), [int(label) for label in labels], boxes[start:end]))
        return batches

    def _play(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hits, energies = [], []
        for images, labels, boxes in self._batches:
            maps = compute_cam(pl_module, images, self.target_layer, target=labels).heatmaps()
            [heatmaps] = [heatmaps.cpu() for heatmaps in maps.values()]
            hits.append(peak_inside(heatmaps, boxes))
            energies.append(energy_inside(heatmaps, boxes))
        score = PointingScore(
            trainer.global_step, torch.cat(hits).float().mean().item(), torch.cat(energies).mean().item()
        )
        self.scores.append(score)
        metrics = {"demo/pointing_game": score.pointing_game, "demo/energy_inside": score.energy_inside}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=score.step)
