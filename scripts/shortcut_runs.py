"""How often is the alert `looks_elsewhere` right? Sixty trainings with a cue in the corner, a weak one, or none.

    python scripts/shortcut_runs.py            # writes benchmarks/shortcut-runs.json and prints the table

The cue is a coloured square that tells the class in training and validation, and not in testing. How much a network
relies on it shows in its accuracies in validation and in testing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from gradcam_callback import GradCAMCallback, read_run
from gradcam_callback.demo.classifier import ImageClassifier
from gradcam_callback.demo.networks import ResidualNetwork
from gradcam_callback.demo.shortcut import ShortcutData

FILE = Path(__file__).parents[1] / "benchmarks" / "shortcut-runs.json"
EPOCHS, PROBES = 4, 16
SEEDS = range(5, 10)  # with 0 to 4 the threshold was chosen


@dataclass(frozen=True)
class Cue:
    """What gives the class away: see `ShortcutData`."""

    name: str
    decoy: bool = True
    strength: float = 1.0
    contrast: float = 1.0


CUES = (
    Cue("none", decoy=False),
    Cue("strong"),
    Cue("for some", strength=0.5),
    Cue("faint", contrast=0.1),
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        cue: Its name.
        network: Its name.
        seed: Of everything.
        validation: The accuracy in validation, 0..1, at the end.
        test: That in testing, where the squares say nothing.
        raised: The epochs, from 0, in which the alert was raised.
        cleared: Those in which it was cleared.
        right: Of each epoch which probes were predicted rightly, 0 or 1.
        energy: Of each epoch the share of each map's energy on the digit.
        hits: Of each epoch whether the largest value lies on the digit, 0 or 1.
    """

    cue: str
    network: str
    seed: int
    validation: float
    test: float
    raised: list[int]
    cleared: list[int]
    right: list[list[int]]
    energy: list[list[float]]
    hits: list[list[float]]


class Plain(nn.Sequential):
    """Convolutions and pooling, after VGG."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self_maps = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        super().__init__(self_maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Separable(nn.Sequential):
    """Depthwise and pointwise convolutions, after MobileNet."""

    def __init__(self) -> None:
        stem = [nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(24), nn.ReLU6()]
        blocks = [self.block(24, 48, 2), self.block(48, 96, 2), self.block(96, 96, 1)]
        maps = nn.Sequential(*stem, *blocks)
        super().__init__(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))

    @staticmethod
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        """One block."""
        depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        return nn.Sequential(
            depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(), pointwise, nn.BatchNorm2d(outputs), nn.ReLU6()
        )


NETWORKS: dict[str, Any] = {
    "residual": (lambda: ResidualNetwork(3, 10, (16, 32, 64, 64)), "network.stages"),
    "plain": (Plain, "network.0"),
    "separable": (Separable, "network.0"),
}


def train(job: tuple[Cue, str, int]) -> Run:
    """One training, in a folder that is thrown away."""
    cue, network, seed = job
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    seed_everything(seed)
    make, layer = NETWORKS[network]
    callback = GradCAMCallback(layer, probes=PROBES, regions="box", panels="never")
    data = ShortcutData(cue.decoy, cue.strength, cue.contrast, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            max_epochs=EPOCHS,
            accelerator="cpu",
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        module = ImageClassifier(make())
        trainer.fit(module, datamodule=data)
        validation = float(trainer.callback_metrics["val/accuracy"])
        [tested] = trainer.test(module, datamodule=data, verbose=False)
        run = read_run(folder)
    found = [alert for alert in run.alerts if alert["cause"] == "looks_elsewhere"]
    labels = [-1 if label is None else label for label in run.probes.labels]
    return Run(
        cue.name,
        network,
        seed,
        validation=round(validation, 4),
        test=round(tested["test/accuracy"], 4),
        raised=[alert["epoch"] for alert in found if alert["status"] == "raised"],
        cleared=[alert["epoch"] for alert in found if alert["status"] == "cleared"],
        right=(run.predictions == labels).astype(int).tolist(),
        energy=[[round(value, 4) for value in row] for row in run.measures["energy_inside"][layer][:, 0].tolist()],
        hits=run.measures["pointing_game"][layer][:, 0].tolist(),
    )


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row for each cue and network."""
    lines = [
        "| cue | network | runs | accuracy in validation | in testing | alert raised | raised by the second epoch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cue in CUES:
        for network in (*NETWORKS, "all"):
            own = [run for run in runs if run.cue == cue.name and network in (run.network, "all")]
            accuracies = (f"{_mean(getattr(run, stage) for run in own):.1%}" for stage in ("validation", "test"))
            ever, early = (sum(any(epoch < end for epoch in run.raised) for run in own) for end in (EPOCHS, 2))
            cells = (cue.name, network, len(own), *accuracies, f"{ever / len(own):.0%}", f"{early / len(own):.0%}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def main() -> None:
    """Train, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    jobs = [(cue, network, seed) for seed, cue, network in product(SEEDS, CUES, NETWORKS)]
    with multiprocessing.get_context("spawn").Pool(parser.parse_args().jobs) as pool:
        runs = []
        for number, run in enumerate(pool.imap_unordered(train, jobs), 1):
            runs.append(run)
            print(f"{number} of {len(jobs)}: {run.cue}, {run.network}, {run.validation:.1%}, {run.raised}", flush=True)
    runs.sort(key=lambda run: ([cue.name for cue in CUES].index(run.cue), run.network, run.seed))
    FILE.write_text("[\n" + ",\n".join(json.dumps(asdict(run)) for run in runs) + "\n]\n")
    print(table(runs))


if __name__ == "__main__":
    main()
