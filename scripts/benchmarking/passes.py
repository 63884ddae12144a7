"""The first table: one probe pass, its time and its memory, beside the least work that gives the same map."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarking.clock import Budget, Spread, ratios, seconds
from benchmarking.memory import peak_mebibytes
from benchmarking.report import Goal, number, say, table
from benchmarking.tools import FORWARD, LEAST, OURS, TOOLS, Setting, peers

TIME_LIMIT = 1.10  # ours over the least work
MEMORY_LIMIT = 1.25  # likewise

# The last layer with maps, and one in the middle. A vision transformer has maps only at its very beginning; its other
# layers return tokens, which are not supported yet.
LAYERS = (
    ("resnet18", "layer4"),
    ("resnet18", "layer2"),
    ("resnet50", "layer4"),
    ("resnet50", "layer3.0"),
    ("convnext_tiny", "features"),
    ("convnext_tiny", "features.3"),
    ("vit_b_16", "conv_proj"),
)
IMAGES = (1, 16, 64)
_TOO_LONG = {("vit_b_16", 64)}  # on a CPU: minutes a round, 5 GiB
# Others are asked at these layers only, with as many images as have long been compared, and in the first rounds.
_PEERS_AT = {("resnet18", "layer4", 16), ("resnet50", "layer4", 16)}
_PEER_ROUNDS = 3


@dataclass(frozen=True)
class Pass:
    """One tool on one setting. Ratios are over the rounds; memory is None where it cannot be measured."""

    network: str
    layer: str
    images: int
    tool: str
    rounds: int
    milliseconds: float
    over_forward: Spread
    over_least: Spread
    mebibytes: float | None
    memory_over_forward: float | None
    memory_over_least: float | None


def settings(images: Sequence[int] | None, device: str, *, quick: bool) -> Iterator[Setting]:
    """The rows of the table, the heavy ones last."""
    if quick:
        yield Setting("resnet18", "layer4", (images or [2])[0], 64, device)
        return
    for count in images or IMAGES:
        for network, layer in LAYERS:
            if device.startswith("cuda") or (network, count) not in _TOO_LONG:
                yield Setting(network, layer, count, 224, device)


def measure(setting: Setting, budget: Budget) -> list[Pass]:
    """Time and memory of all tools on one setting."""
    others = peers() if (setting.network, setting.layer, setting.images) in _PEERS_AT else []
    say(f"{setting}: time")
    times = time_tools(setting, others, budget)
    say(f"{setting}: {len(times[OURS])} rounds; memory")
    peaks = {tool: peak_mebibytes(setting, tool) for tool in times}
    return [
        Pass(
            network=setting.network,
            layer=setting.layer,
            images=setting.images,
            tool=tool,
            rounds=len(taken),
            milliseconds=1000 * statistics.median(taken),
            over_forward=ratios(taken, times[FORWARD]),
            over_least=ratios(taken, times[LEAST]),
            mebibytes=peaks[tool],
            memory_over_forward=_quotient(peaks[tool], peaks[FORWARD]),
            memory_over_least=_quotient(peaks[tool], peaks[LEAST]),
        )
        for tool, taken in times.items()
    ]


def time_tools(setting: Setting, others: Sequence[str], budget: Budget) -> dict[str, list[float]]:
    """Seconds of each tool in each round; the first rounds are those that all tools took part in."""
    model, images = setting.load()
    taken: dict[str, list[float]] = {tool: [] for tool in (FORWARD, LEAST, OURS, *others)}
    for index in budget.spend():
        tools = [*taken] if index <= _PEER_ROUNDS else [FORWARD, LEAST, OURS]
        # Shuffled: what runs after the hungriest tool finds the machine's memory in another state.
        for tool in random.Random(index).sample(tools, len(tools)):
            model.zero_grad()
            taken[tool].append(seconds(lambda tool=tool: TOOLS[tool](model, images, setting.layer), setting.device))
    return {tool: times[1:] for tool, times in taken.items()}


def _quotient(peak: float | None, base: float | None) -> float | None:
    return peak / base if peak is not None and base else None


def goals(rows: Sequence[Pass]) -> list[Goal]:
    found = []
    for row in (row for row in rows if row.tool == OURS):
        where = f"{row.network} {row.layer}, {row.images} images"
        found.append(Goal.of("probe pass: time over the least work", where, TIME_LIMIT, row.over_least.median))
        found.append(Goal.of("probe pass: memory over the least work", where, MEMORY_LIMIT, row.memory_over_least))
    return found


def render(rows: Sequence[Pass]) -> list[str]:
    """A line a setting for us and the least work; where others took part, a table of all tools."""
    settings: dict[tuple[str, str, int], dict[str, Pass]] = {}
    for row in rows:
        settings.setdefault((row.network, row.layer, row.images), {})[row.tool] = row
    heads = ["layer", "images", "forward", "least work", "ours", "ours / least work (quartiles)"]
    heads += ["memory: forward", "least work", "ours", "ours / least work"]
    tables = [table(heads, [_line(tools) for tools in settings.values()])]
    compared = [row for tools in settings.values() if len(tools) > 3 for row in tools.values()]
    if compared:
        heads = ["layer", "images", "tool", "time", "/ forward", "/ least work", "memory", "/ forward", "/ least work"]
        tables.append(table(heads, [_peer_line(row) for row in compared]))
    return tables


def _line(tools: dict[str, Pass]) -> list[str]:
    three = [tools[tool] for tool in (FORWARD, LEAST, OURS)]
    own = three[-1]
    return [
        f"{own.network} {own.layer}",
        str(own.images),
        *(f"{row.milliseconds:.1f} ms" for row in three),
        str(own.over_least),
        *(f"{number(row.mebibytes, '.0f')} MiB" for row in three),
        number(own.memory_over_least, ".2f"),
    ]


def _peer_line(row: Pass) -> list[str]:
    return [
        f"{row.network} {row.layer}",
        str(row.images),
        row.tool,
        f"{row.milliseconds:.1f} ms",
        f"{row.over_forward.median:.2f}",
        f"{row.over_least.median:.2f}",
        f"{number(row.mebibytes, '.0f')} MiB",
        number(row.memory_over_forward, ".2f"),
        number(row.memory_over_least, ".2f"),
    ]
