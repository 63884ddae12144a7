"""The third table: does a look cost more, or write more, the longer the training lasts?

A tiny network is fitted for many epochs with a learning rate of zero, so that every panel shows the same and only the
callback's own books can grow. The first and the last quarter of the epochs are compared.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from benchmarking.attached import RandomImages, Switched, quiet
from benchmarking.report import Goal, say, table
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.networks import ResidualNetwork

GROWTH_LIMIT = 1.10  # the last quarter over the first
PROBES = 4


@dataclass(frozen=True)
class Growth:
    """What an epoch's look takes and writes in the first and in the last quarter of a long training.

    Attributes:
        what: `gradcam/seconds`, as the loop is held; or the bytes that an epoch adds to the event file.
        epochs: Of the training.
        first: Median over the first quarter's epochs, in milliseconds or bytes.
        last: Likewise, of the last.
        last_over_first: Their ratio.
    """

    what: str
    epochs: int
    first: float
    last: float
    last_over_first: float

    @classmethod
    def of(cls, what: str, values: Sequence[float]) -> Growth:
        quarter = max(1, len(values) // 4)
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        return cls(what, len(values), first, last, last / first)


class Ledger(pl.Callback):
    """Notes after each validation how long the loop was held, and how large the event file has become."""

    def __init__(self, callback: Switched) -> None:
        self.callback = callback
        self.milliseconds: list[float] = []
        self.sizes: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.callback.finish(trainer)
        logger = trainer.loggers[0]
        assert isinstance(logger, TensorBoardLogger)
        logger.experiment.flush()
        self.sizes.append(sum(file.stat().st_size for file in Path(logger.log_dir).rglob("*") if file.is_file()))
        self.milliseconds.append(1000 * float(trainer.callback_metrics["gradcam/seconds"]))

    @property
    def added(self) -> list[int]:
        return [after - before for before, after in zip(self.sizes, self.sizes[1:], strict=False)]


class Motionless(ImageClassifier):
    """A classifier that learns nothing."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def measure(epochs: int, device: str) -> list[Growth]:
    """Fit for so many epochs of one step and one validation batch."""
    say(f"growth: {epochs} epochs")
    torch.manual_seed(0)
    callback = Switched("network.stages.1", probes=PROBES)
    ledger = Ledger(callback)
    network = ResidualNetwork(in_channels=3, widths=(8, 16), strides=(2, 2))
    loader: DataLoader[Any] = DataLoader(RandomImages(PROBES, 32), PROBES)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device.startswith("cuda") else "cpu",
            devices=1,
            max_epochs=epochs + 1,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(folder),
            callbacks=[callback, ledger],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Motionless(network), loader, loader)
    return [
        # The first epoch warms up.
        Growth.of("gradcam/seconds (ms)", ledger.milliseconds[1:]),
        Growth.of("log directory (bytes)", ledger.added),
    ]


def goals(rows: Sequence[Growth]) -> list[Goal]:
    wish = "growth: last quarter of the epochs over the first"
    return [Goal.of(wish, row.what, GROWTH_LIMIT, row.last_over_first) for row in rows]


def render(rows: Sequence[Growth]) -> list[str]:
    heads = ["an epoch's", "epochs", "first quarter", "last quarter", "last / first"]
    lines = [
        [row.what, str(row.epochs), f"{row.first:.1f}", f"{row.last:.1f}", f"{row.last_over_first:.3f}"] for row in rows
    ]
    return [table(heads, lines)]
