"""The shortest way to attach the callback from Python: make it, hand it to the Trainer, fit.

python scripts/train.py
tensorboard --logdir runs
"""

from __future__ import annotations

import argparse

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from gradcam_callback import GradCAMCallback
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.data import ClutteredMNISTData
from gradcam_callback.demo.networks import ResidualNetwork


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train on cluttered MNIST and look at it with Grad-CAM.")
    parser.add_argument("--max_epochs", type=int, default=3)
    parser.add_argument("--limit_train_batches", type=int, help="fewer steps an epoch, for a trial")
    parser.add_argument("--save_dir", default="runs", help="the folder that TensorBoard is given")
    options = parser.parse_args(args)
    seed_everything(7)

    gradcam = GradCAMCallback(
        target_layers="network.stages.3",  # a name from model.named_modules(), or "auto"
        probes=6,  # the first six images that validation reads
        target=["predicted", "label"],  # a column each
    )
    trainer = Trainer(
        max_epochs=options.max_epochs,
        limit_train_batches=options.limit_train_batches,
        devices=1,
        logger=TensorBoardLogger(options.save_dir, name="train"),
        callbacks=[gradcam],
    )
    trainer.fit(ImageClassifier(ResidualNetwork()), datamodule=ClutteredMNISTData())

    # What the callback saw last is at hand: maps (N, h, w), scores, and whether each gradient was usable.
    assert gradcam.last_result is not None
    for layer, cam in gradcam.last_result.cams.items():
        print(f"{layer}: maps {tuple(cam.shape)}, gradients {gradcam.last_result.health[layer].state}")
    print(f"alerts: {len(gradcam.alerts)}")


if __name__ == "__main__":
    main()
