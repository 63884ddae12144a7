"""The second table: what each method costs, beside one forward pass of the same images."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarking.clock import Budget, Spread, ratios, seconds
from benchmarking.memory import peak_mebibytes
from benchmarking.report import number, say, table
from benchmarking.tools import FORWARD, METHOD_TOOLS, TOOLS, Setting
from gradcam_callback.engine.methods import METHODS, PER_CHANNEL

_FOR_TOKENS = "gradient_rollout"
_SLOW_ROUNDS = 2  # of methods with a pass for each channel, which take half a minute


@dataclass(frozen=True)
class Cost:
    """One method on one setting. Ratios are over the rounds; memory is None where it cannot be measured."""

    network: str
    layer: str
    images: int
    method: str
    extra_forwards: int | str
    rounds: int
    milliseconds: float
    over_forward: Spread
    mebibytes: float | None
    memory_over_forward: float | None


def settings(device: str, *, quick: bool) -> Iterator[Setting]:
    """A convolutional network, and a transformer with a layer of tokens."""
    size, images = (64, 1) if quick else (224, 8 if device.startswith("cuda") else 1)
    yield Setting("resnet18", "layer4", images, size, device)
    if not quick:
        yield Setting("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", images, size, device)


def measure(setting: Setting, budget: Budget) -> list[Cost]:
    """Each method that fits the network, between forward passes."""
    model, images = setting.load()
    peak = peak_mebibytes(setting, FORWARD)
    is_transformer = setting.network.startswith("vit")
    costs = []
    for name, method in METHODS.items():
        if (name == _FOR_TOKENS) != is_transformer and not (is_transformer and name == "gradcam"):
            continue
        if method.extra_forwards == PER_CHANNEL and setting.size < 224:  # only whether it runs is asked
            continue
        say(f"{setting}: {name}")
        tool, taken, base = f"method {name}", list[float](), list[float]()
        for index in budget.spend():
            if index > _SLOW_ROUNDS and method.extra_forwards == PER_CHANNEL:
                break
            base.append(seconds(lambda: TOOLS[FORWARD](model, images, setting.layer), setting.device))
            taken.append(seconds(lambda tool=tool: METHOD_TOOLS[tool](model, images, setting.layer), setting.device))
        mebibytes = peak_mebibytes(setting, tool)
        costs.append(
            Cost(
                network=setting.network,
                layer=setting.layer,
                images=setting.images,
                method=name,
                extra_forwards=method.extra_forwards,
                rounds=len(taken) - 1,
                milliseconds=1000 * statistics.median(taken[1:]),
                over_forward=ratios(taken[1:], base[1:]),
                mebibytes=mebibytes,
                memory_over_forward=mebibytes / peak if mebibytes is not None and peak else None,
            )
        )
    return costs


def render(costs: Sequence[Cost]) -> list[str]:
    """A line a method."""
    heads = ["layer", "images", "method", "more forward passes", "time", "/ forward (quartiles)", "memory", "/ forward"]
    rows = [
        [
            f"{cost.network} {cost.layer}",
            str(cost.images),
            cost.method,
            str(cost.extra_forwards),
            f"{cost.milliseconds:.1f} ms",
            str(cost.over_forward),
            f"{number(cost.mebibytes, '.0f')} MiB",
            number(cost.memory_over_forward, ".2f"),
        ]
        for cost in costs
    ]
    return [table(heads, rows)]
