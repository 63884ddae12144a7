"""Small networks, trained on a task of `scenes` in less than half a minute each, always in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.benchmark.scenes import Pictures, Task
from gradcam_callback.demo.networks import ResidualNetwork

LAYER = "stages"
"""The last layer with space: 64 channels of 8 x 8 cells."""

_BATCH = 64
_RATE = 0.005  # of learning, at its highest


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """One thread, deterministic algorithms and seeded generators; afterwards everything is as before."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(1)  # sums over several threads depend on how many there are
        torch.use_deterministic_algorithms(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.set_num_threads(threads)


def train(task: Task, steps: int, seed: int = 0) -> nn.Module:
    """Train a network on a task.

    Args:
        task: What to learn.
        steps: How many batches of 64 pictures.
        seed: Of the weights and the order.

    Returns:
        The network, in eval mode, on the CPU. It maps images `(N, C, H, W)` to logits `(N, classes)`.
    """
    pictures = task.training
    with repeatable(seed):
        network = ResidualNetwork(pictures.images.shape[1], task.classes, widths=(16, 32, 64, 64))
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for rows in _batches(len(pictures), steps):
            images = pictures.images[rows].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), pictures.labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    """Rows of so many batches, in random order; each row once before any comes again."""
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(rows) < _BATCH:
            rows = torch.cat([rows, torch.randperm(count)])
        yield rows[:_BATCH]
        rows = rows[_BATCH:]


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, portion: int = 100) -> Tensor:
    """The probabilities of all classes, `(N, L)`."""
    return torch.cat([model(part).softmax(dim=1) for part in torch.split(images, portion)])


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """The share of pictures whose label is predicted, 0..1."""
    return (probabilities(model, pictures.images).argmax(dim=1) == pictures.labels).float().mean().item()
