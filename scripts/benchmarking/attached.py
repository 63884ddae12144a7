"""The second table: what a validation costs with the callback attached, in a real Trainer, in the middle of `fit`.

One `fit` validates again and again, every second time with the callback switched off, so that both kinds meet the
same machine, the same model and the same data; each pair gives one ratio. What counts as a validation is the whole
loop, all hooks included, and with the callback also the time until its thread has written the panel. That thread runs
beside the training, so this is the most that can be asked of the user, not the least.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarking.clock import Budget, Spread, ratios, seconds
from benchmarking.report import Goal, say, table
from gradcam_callback import GradCAMCallback
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.data import ClutteredMNISTData
from gradcam_callback.demo.networks import ResidualNetwork

LENGTH_LIMIT = 0.01  # how long the callback holds the loop, over a validation without it; of a large network
HOLD_LIMIT = 1.3  # the same, over one forward pass of its probes
PROBES = 8  # as the callback has them by default
DEMO_NAME = "the demo"
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Epoch:
    """A validation epoch with and without the callback.

    Attributes:
        what: Which network and which data.
        layer: The layer that is looked at.
        probes: How many images are looked at.
        batches: Of the validation.
        rounds: Pairs of a validation with and one without.
        milliseconds_without: Median of a validation without.
        milliseconds_with: Median of one with the callback, until the panel is written.
        over_without: The ratio within each pair.
        hold_milliseconds: Median of `gradcam/seconds`: how long the loop waited.
        hold_over_without: That, over the validation without.
        hold_over_forward: That, over one forward pass of the probes alone.
    """

    what: str
    layer: str
    probes: int
    batches: int
    rounds: int
    milliseconds_without: float
    milliseconds_with: float
    over_without: Spread
    hold_milliseconds: float
    hold_over_without: Spread
    hold_over_forward: Spread


@dataclass(frozen=True)
class Case:
    """What is fitted: a module, its data, and the callback's options."""

    what: str
    module: pl.LightningModule
    data: pl.LightningDataModule
    options: dict[str, Any]
    batches: int | None = None  # of the validation; None is all


class Switched(GradCAMCallback):
    """The callback with a switch: while it is off, a validation is as if it were not attached."""

    on = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.on:
            super().on_validation_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.on:
            super().on_validation_epoch_end(trainer, pl_module)

    def finish(self, trainer: pl.Trainer) -> None:
        """Wait for the thread; the next report starts another."""
        writer = self._session_of(trainer).reporter._alerts._writer
        if writer is not None:
            writer.close()


class Alternation(pl.Callback):
    """Switches the callback on and off from validation to validation, and times each."""

    def __init__(self, callback: Switched, budget: Budget, device: str) -> None:
        self.callback = callback
        self.device = device
        self.without: list[float] = []
        self.attached: list[float] = []
        self.hold: list[float] = []
        self.forward: list[float] = []
        self._rounds = budget.spend()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Hooks would leave out what the loop does before the first and after the last of them.
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.run = self._timed(loop.run, trainer, pl_module)

    def _timed(self, run: Callable[[], Any], trainer: pl.Trainer, pl_module: pl.LightningModule) -> Callable[[], Any]:
        order = self._order()

        def timed() -> Any:
            on = next(order, None)
            if on is None:
                trainer.should_stop = True
                return []
            self.callback.on = on
            taken = seconds(lambda: (run(), self.callback.finish(trainer)), self.device)
            (self.attached if on else self.without).append(taken)
            if on:
                self.hold.append(float(trainer.callback_metrics["gradcam/seconds"]))
                self.forward.append(seconds(lambda: self._forward(pl_module), self.device))
            return []

        return timed

    def _order(self) -> Iterator[bool]:
        for index in self._rounds:
            first = index % 2 == 0  # each goes first as often: a machine that warms up favours neither
            yield first
            yield not first

    def _forward(self, pl_module: pl.LightningModule) -> None:
        assert self.callback.probes is not None
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            pl_module(self.callback.probes.images)
        for module, mode in modes.items():
            module.training = mode


class RandomImages(Dataset[tuple[Tensor, int]]):
    """As many random images as asked for, from a few that are kept: what is measured is not the making of data."""

    def __init__(self, count: int, size: int) -> None:
        self._images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index % len(self._images)], index % 10


class RandomData(pl.LightningDataModule):
    """Two images to train on, and so many batches to validate on."""

    def __init__(self, batches: int, batch_size: int, size: int) -> None:
        super().__init__()
        self._size = size
        self._validation = RandomImages(batches * batch_size, size), batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomImages(2, self._size), 2)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(*self._validation)


def cases(device: str, *, quick: bool) -> Iterator[Case]:
    """The rows of the table."""
    yield demo_case(1 if quick else None)
    # On a CPU, smaller images spare minutes, and favour nobody: the probes are as small as the validation's images.
    size, batches = (32, 2) if quick else (224 if device.startswith("cuda") else 128, 64)
    network = "resnet18" if quick else "resnet50"
    yield Case(
        f"{network}, {batches} batches of 16 images of {size} x {size}",
        ImageClassifier(torchvision.models.get_model(network), learning_rate=1e-5),
        RandomData(batches, 16, size),
        {"target_layers": "network.layer4"},
    )


def demo_case(batches: int | None) -> Case:
    """The demo as it is configured, with other probes."""
    config = yaml.safe_load(DEMO.read_text())
    options = dict(config["model"]["init_args"])
    network = ResidualNetwork(**options.pop("network")["init_args"])
    data = ClutteredMNISTData(**config["data"]["init_args"])
    attached = config["trainer"]["callbacks"][0]["init_args"]
    return Case(DEMO_NAME, ImageClassifier(network, **options), data, attached, batches)


def measure(case: Case, budget: Budget, device: str) -> Epoch:
    """Fit with the callback switched on and off in turn."""
    say(f"attached: {case.what}")
    callback = Switched(**{**case.options, "probes": PROBES})
    watch = Alternation(callback, budget, device)
    batches = _fit(case, [callback, watch], device)
    # The first pair warmed up.
    without, attached, hold, forward = (
        times[1:] for times in (watch.without, watch.attached, watch.hold, watch.forward)
    )
    return Epoch(
        what=case.what,
        layer=case.options["target_layers"],
        probes=PROBES,
        batches=batches,
        rounds=len(attached),
        milliseconds_without=1000 * statistics.median(without),
        milliseconds_with=1000 * statistics.median(attached),
        over_without=ratios(attached, without),
        hold_milliseconds=1000 * statistics.median(hold),
        hold_over_without=ratios(hold, without),
        hold_over_forward=ratios(hold, forward),
    )


def _fit(case: Case, callbacks: list[pl.Callback], device: str) -> int:
    """Fit until the callbacks stop it; how many batches a validation had."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device.startswith("cuda") else "cpu",
            devices=1,
            max_epochs=1000,  # more than will be needed: the schedule of the learning rate wants to know its end
            limit_train_batches=1,  # a validation follows each step
            limit_val_batches=case.batches,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(case.module, datamodule=case.data)
        return int(sum(trainer.num_val_batches))


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice about loaders and precision."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def goals(rows: Sequence[Epoch]) -> list[Goal]:
    found = []
    for row in rows:
        if row.what != DEMO_NAME:  # its forward pass takes less than the drawing
            length, hold = row.hold_over_without.median, row.hold_over_forward.median
            found.append(Goal.of("attached: hold over a validation without", row.what, LENGTH_LIMIT, length))
            found.append(Goal.of("attached: hold over a forward of the probes", row.what, HOLD_LIMIT, hold))
    return found


def render(rows: Sequence[Epoch]) -> list[str]:
    heads = ["validation of", "batches", "without", "with", "with / without (quartiles)"]
    heads += ["gradcam/seconds", "/ without", "/ forward of the probes (quartiles)"]
    lines = [
        [
            f"{row.what}, {row.layer}",
            str(row.batches),
            f"{row.milliseconds_without:.0f} ms",
            f"{row.milliseconds_with:.0f} ms",
            str(row.over_without),
            f"{row.hold_milliseconds:.1f} ms",
            f"{row.hold_over_without.median:.2%}",
            str(row.hold_over_forward),
        ]
        for row in rows
    ]
    return [table(heads, lines)]
