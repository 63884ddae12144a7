"""What came out: goals and verdicts, tables in Markdown, and where it was measured."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Goal:
    """A wish and what came of it."""

    wish: str
    where: str
    limit: float
    value: float | None
    met: bool | None

    @classmethod
    def of(cls, wish: str, where: str, limit: float, value: float | None) -> Goal:
        return cls(wish, where, limit, value, None if value is None else value <= limit)


def render_goals(goals: list[Goal]) -> str:
    """A line for each kind of wish, with the farthest from it; below, each that was missed."""
    kinds: dict[tuple[str, float], list[Goal]] = {}
    for goal in goals:
        kinds.setdefault((goal.wish, goal.limit), []).append(goal)
    lines = []
    for (wish, limit), alike in kinds.items():
        known = [goal for goal in alike if goal.value is not None]
        worst = max(known, key=lambda goal: goal.value or 0.0, default=None)
        met = f"{sum(goal.met is True for goal in alike)} of {len(alike)}"
        farthest = "not measured" if worst is None else f"{number(worst.value, '.3f')} ({worst.where})"
        lines.append([wish, f"<= {limit:.2f}", met, farthest])
    missed = [[goal.wish, goal.where, number(goal.value, ".3f")] for goal in goals if goal.met is False]
    summary = table(["goal", "limit", "met", "largest"], lines)
    return summary if not missed else f"{summary}\n\n{table(['missed', 'where', 'measured'], missed)}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that can also be read as it stands."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(heads), line(["-" * width for width in widths]), *map(line, rows)])


def number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


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
