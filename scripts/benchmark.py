"""What watching costs: a probe pass, and the whole callback, as ratios inside one run.

Each round runs every tool once, in shuffled order, so that a busy machine slows all of them down; what is reported is
the median over the rounds of each round's own ratio. Memory is the peak above the loaded model and its images, on the
CPU in a fresh process for each tool, on a GPU as its allocator counts. Packages that are not installed are left out.

    python scripts/benchmark.py                      # ResNet-18 and ResNet-50, 16 images of 224 x 224
    python scripts/benchmark.py --device cuda --rounds 20
    python scripts/benchmark.py --quick              # does it run at all? The figures mean nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from gradcam_callback import compute_cam

FORWARD, LEAST, OURS = "forward alone", "least work", "gradcam_callback"

# What is wished for, at the last stage of a residual network with 16 images of 224 x 224.
TIME_LIMIT = 1.10  # ours over the least work
MEMORY_LIMIT = 1.5  # ours over the forward alone
HOLD_LIMIT = 1.3  # the whole callback over the forward of its probes


@dataclass(frozen=True)
class Setting:
    """One network and its images; `size` is their height and width in pixels."""

    network: str
    layer: str
    images: int
    size: int
    device: str

    def load(self) -> tuple[nn.Module, Tensor]:
        """The network with random weights, in eval mode, and its images `(N, 3, size, size)`, both on the device."""
        torch.manual_seed(0)
        model = torchvision.models.get_model(self.network).eval().to(self.device)
        return model, torch.randn(self.images, 3, self.size, self.size, device=self.device)


@dataclass(frozen=True)
class Figures:
    """One tool on one network. Ratios are medians over the rounds; `mebibytes` is None where it cannot be measured."""

    network: str
    layer: str
    tool: str
    milliseconds: float
    over_forward: float
    over_least: float
    mebibytes: float | None
    memory_over_forward: float | None


@dataclass(frozen=True)
class Hold:
    """How long the whole callback held the training loop in a validation, panel and writing included."""

    network: str
    layer: str
    milliseconds: float
    over_forward: float


@dataclass(frozen=True)
class Goal:
    """A wish and what came of it."""

    wish: str
    network: str
    limit: float
    value: float | None
    met: bool | None


# The tools: each makes Grad-CAM maps of the predicted class, as its own documentation shows it.


def forward_alone(model: nn.Module, images: Tensor, layer: str) -> Any:
    with torch.no_grad():
        return model(images)


def least_work(model: nn.Module, images: Tensor, layer: str) -> Any:
    """The graph begins at the layer, nothing is checked, and nothing is put back."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until the `no_grad` block ends
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    handle = model.get_submodule(layer).register_forward_hook(cut)
    with torch.no_grad():
        scores = model(images).amax(dim=1)
        (gradient,) = torch.autograd.grad(scores.sum(), leaves[0])
    handle.remove()
    return torch.einsum("nk,nkhw->nhw", gradient.mean(dim=(2, 3)), leaves[0].detach()).relu()


def ours(model: nn.Module, images: Tensor, layer: str) -> Any:
    return compute_cam(model, images, layer, target="predicted")


def by_grad_cam(model: nn.Module, images: Tensor, layer: str) -> Any:
    from pytorch_grad_cam import GradCAM

    with GradCAM(model, [model.get_submodule(layer)]) as extractor:
        return extractor(images, None)


def by_captum(model: nn.Module, images: Tensor, layer: str) -> Any:
    from captum.attr import LayerGradCam

    with torch.no_grad():
        classes = model(images).argmax(dim=1)  # it has to be told the class
    return LayerGradCam(model, model.get_submodule(layer)).attribute(images, classes, relu_attributions=True)


def by_torchcam(model: nn.Module, images: Tensor, layer: str) -> Any:
    from torchcam.methods import GradCAM

    with GradCAM(model, layer) as extractor:
        scores = model(images)
        return extractor(scores.argmax(dim=1).tolist(), scores)


TOOLS: dict[str, Callable[[nn.Module, Tensor, str], Any]] = {
    FORWARD: forward_alone,
    LEAST: least_work,
    OURS: ours,
    "grad-cam": by_grad_cam,
    "captum": by_captum,
    "torchcam": by_torchcam,
}
PACKAGES = {"grad-cam": "pytorch_grad_cam", "captum": "captum", "torchcam": "torchcam"}


def installed_tools() -> list[str]:
    return [tool for tool in TOOLS if tool not in PACKAGES or importlib.util.find_spec(PACKAGES[tool]) is not None]


# Time


def seconds(action: Callable[[], Any], device: str) -> float:
    """How long an action takes, the device's own queue included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def time_tools(setting: Setting, tools: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each tool in each round, after one round that does not count."""
    model, images = setting.load()
    taken: dict[str, list[float]] = {tool: [] for tool in tools}
    for index in range(rounds + 1):
        # Shuffled: what runs after the hungriest tool finds the machine's memory in another state.
        for tool in random.Random(index).sample(tools, len(tools)):
            model.zero_grad()
            taken[tool].append(seconds(lambda tool=tool: TOOLS[tool](model, images, setting.layer), setting.device))
    return {tool: times[1:] for tool, times in taken.items()}


def median_ratio(times: list[float], base: list[float]) -> float:
    return statistics.median(time / other for time, other in zip(times, base, strict=True))


# Memory


def peak_mebibytes(setting: Setting, tool: str) -> float | None:
    """The peak above the loaded model and its images; None on a CPU without Linux's own count of it."""
    if setting.device.startswith("cuda"):
        return _peak_on_device(setting, tool)
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Memory that is freed goes back at once, or what an earlier operation left behind would be counted too.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_on_host, (setting, tool, torch.get_num_threads()))


def _peak_on_device(setting: Setting, tool: str) -> float:
    model, images = setting.load()
    TOOLS[tool](model, images, setting.layer)
    model.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    TOOLS[tool](model, images, setting.layer)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_on_host(setting: Setting, tool: str, threads: int) -> float:
    torch.set_num_threads(threads)
    model, images = setting.load()
    TOOLS[tool](model, images[:1, :, :64, :64], setting.layer)  # what is loaded at the first call is not counted
    model.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is in use now
    before = _status("VmRSS")
    TOOLS[tool](model, images, setting.layer)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A line of the kernel's account of this process, in KiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def measure(setting: Setting, tools: list[str], rounds: int) -> list[Figures]:
    """Time and memory of all tools on one network."""
    times = time_tools(setting, tools, rounds)
    peaks = {}
    for tool in tools:
        say(f"{setting.network}: memory of {tool}")
        peaks[tool] = peak_mebibytes(setting, tool)
    base = peaks[FORWARD]
    return [
        Figures(
            network=setting.network,
            layer=setting.layer,
            tool=tool,
            milliseconds=1000 * statistics.median(times[tool]),
            over_forward=median_ratio(times[tool], times[FORWARD]),
            over_least=median_ratio(times[tool], times[LEAST]),
            mebibytes=peak,
            memory_over_forward=peak / base if peak is not None and base else None,
        )
        for tool, peak in peaks.items()
    ]


# The whole callback, in a Trainer


def measure_hold(setting: Setting, rounds: int) -> Hold:
    """Fit for a few short epochs, and compare `gradcam/seconds` with a forward pass of the probes in each of them."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch.utils.data import DataLoader, TensorDataset

    from gradcam_callback import GradCAMCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, images = setting.load()
    layer = f"model.{setting.layer}"

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor]) -> None:
            self(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    class Stopwatch(pl.Callback):
        def __init__(self) -> None:
            self.forward: list[float] = []
            self.hold: list[float] = []

        def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            # Before the look, when the panel of the validation before has long been written.
            probes = images.to(pl_module.device)
            self.forward.append(seconds(lambda: forward_alone(pl_module, probes, layer), setting.device))

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.hold.append(float(trainer.callback_metrics["gradcam/seconds"]))

    stopwatch = Stopwatch()
    data = TensorDataset(images.cpu(), torch.arange(len(images)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning has advice about loaders of two batches
        trainer = pl.Trainer(
            accelerator="gpu" if setting.device.startswith("cuda") else "cpu",
            devices=1,
            max_epochs=rounds + 1,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(folder),
            callbacks=[GradCAMCallback(layer, probes=setting.images), stopwatch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), DataLoader(data, batch_size=2), DataLoader(data, batch_size=setting.images))
    forward, hold = stopwatch.forward[1:], stopwatch.hold[1:]
    return Hold(setting.network, setting.layer, 1000 * statistics.median(hold), median_ratio(hold, forward))


# What came out


def judge(figures: list[Figures], holds: list[Hold]) -> list[Goal]:
    def goal(wish: str, network: str, limit: float, value: float | None) -> Goal:
        return Goal(wish, network, limit, value, None if value is None else value <= limit)

    found = []
    for row in (row for row in figures if row.tool == OURS):
        found.append(goal("probe pass: time over the least work", row.network, TIME_LIMIT, row.over_least))
        found.append(
            goal("probe pass: memory over the forward alone", row.network, MEMORY_LIMIT, row.memory_over_forward)
        )
    for hold in holds:
        found.append(goal("whole callback: hold over its forward", hold.network, HOLD_LIMIT, hold.over_forward))
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that can also be read as it stands."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, rows)])


def number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def render(report: dict[str, Any]) -> str:
    passes = [
        [
            f"{row['network']} {row['layer']}",
            row["tool"],
            f"{row['milliseconds']:.1f} ms",
            f"{row['over_forward']:.2f}x",
            f"{row['over_least']:.2f}x",
            f"{number(row['mebibytes'], '.0f')} MiB",
            f"{number(row['memory_over_forward'], '.2f')}x",
        ]
        for row in report["passes"]
    ]
    goals = [
        [
            goal["wish"],
            goal["network"],
            f"<= {goal['limit']:.2f}",
            number(goal["value"], ".2f"),
            {True: "met", False: "MISSED", None: "not measured"}[goal["met"]],
        ]
        for goal in report["goals"]
    ]
    setting = report["setting"]
    title = f"{setting['images']} images of {setting['size']} x {setting['size']}, {report['device']}"
    return "\n\n".join(
        [
            f"{title}, {report['threads']} threads, {setting['rounds']} rounds",
            table(["network", "tool", "time", "/ forward", "/ least work", "memory", "/ forward"], passes),
            table(["goal", "network", "limit", "measured", ""], goals),
        ]
    )


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    names = ["torch", "torchvision", "lightning", "tensorboard", "grad-cam", "captum", "torchcam"]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how often each tool runs (default: 9)")
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda" (default: cpu)')
    parser.add_argument("--images", type=int, default=16, help="images in a pass (default: 16)")
    parser.add_argument("--quick", action="store_true", help="one small network, small images, no other packages")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "benchmarks", help="for the JSON")
    given = parser.parse_args()
    for name in ("rounds", "images"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is a whole number of at least 1; given: {getattr(given, name)}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return given


def main() -> None:
    given = arguments()
    networks, size = (["resnet18"], 64) if given.quick else (["resnet18", "resnet50"], 224)
    tools = [FORWARD, LEAST, OURS] if given.quick else installed_tools()
    figures, holds = [], []
    for network in networks:
        setting = Setting(network, "layer4", given.images, size, given.device)
        say(f"{network}: time of {', '.join(tools)}")
        figures += measure(setting, tools, given.rounds)
        say(f"{network}: the whole callback")
        holds.append(measure_hold(setting, given.rounds))
    report = {
        "device": device_name(given.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "setting": {"images": given.images, "size": size, "rounds": given.rounds},
        "passes": [asdict(row) for row in figures],
        "callback": [asdict(hold) for hold in holds],
        "goals": [asdict(goal) for goal in judge(figures, holds)],
    }
    print(render(report))
    name = "cpu" if given.device == "cpu" else re.sub(r"\W+", "-", device_name(given.device)).strip("-").lower()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    say(f"Written to {path}")


if __name__ == "__main__":
    main()
