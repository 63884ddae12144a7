"""Time: how long an action takes, how often to repeat it, and what many rounds come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Milliseconds add up to a budget of seconds only after very many rounds; the quartiles stand still long before.
_MOST_ROUNDS = 300


@dataclass(frozen=True)
class Budget:
    """How often a row is measured: for so many seconds, and for at least so many rounds.

    A row whose one round takes longer than all the seconds gets half the rounds: long passes average out by
    themselves much of what disturbs short ones.
    """

    rounds: int
    seconds: float

    def spend(self) -> Iterator[int]:
        """The number of each round. Round 0 warms up and is not to be counted."""
        begun = time.perf_counter()
        yield 0
        start = time.perf_counter()
        least = self.rounds if start - begun < self.seconds else -(-self.rounds // 2)
        for index in range(1, _MOST_ROUNDS + 1):
            yield index
            if index >= least and time.perf_counter() - start >= self.seconds:
                return


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles beside it: half of the rounds lie between them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.2f} to {self.high:.2f})"


def seconds(action: Callable[[], Any], device: str) -> float:
    """How long an action takes, the device's own queue included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def ratios(times: Sequence[float], base: Sequence[float]) -> Spread:
    """Round by round; the longer list is as long as the shorter one was measured."""
    return Spread.of([time / other for time, other in zip(times, base, strict=False)])
