"""A network broken on purpose, and a callback that mends it during the run: an alert is raised and cleared."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradcam_callback.demo.networks import ResidualNetwork


class DetachedNetwork(ResidualNetwork):
    """A ResidualNetwork that keeps a copy of its feature map for plotting, and detaches the wrong one of the two.

    It trains all the same: the head learns from the features of a backbone that does not. The accuracy stays low, and
    no error is raised.

    Attributes:
        broken: Whether the fault is there.
    """

    broken = True

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits `(N, num_classes)`."""
        features = self.stages(images)
        if self.broken:
            features = features.detach()  # meant for the plot, and taken for the score
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class Mend(Callback):
    """Takes the fault out of a `DetachedNetwork` when an epoch begins, as you would between two runs.

    Args:
        epoch: The first epoch without the fault.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mend each network that is still broken, from the given epoch on."""
        for module in pl_module.modules():
            if isinstance(module, DetachedNetwork) and module.broken and trainer.current_epoch >= self.epoch:
                module.broken = False
                print(f"\nEpoch {trainer.current_epoch}: the line with detach() is taken out.")
