"""Corridor: probes and results -> one Panel a layer, coloured on the device and ready to be composed on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_callback.causes import Cause
from gradcam_callback.engine.device_results import DeviceResults, TargetResult
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting import rendering as picture
from gradcam_callback.results import CAMResult, GradientState, LayerHealth, Panel, PanelColumn, name_call

_VERDICTS = {
    GradientState.NONE: "no gradient",
    GradientState.ZERO: "zero gradient",
    GradientState.NON_FINITE: "gradient not finite",
}


@dataclass(frozen=True)
class Look:
    """How panels look.

    Attributes:
        colormap: A name that matplotlib knows.
        opacity: Of the map over the image, 0..1.
        shared_scale: Whether the maps of a column share one scale, or each has its own.
        class_names: Of the classes, by index; None shows the index.
        mean: What was subtracted from the images' channels; None where that is not known.
        std: What the channels were divided by; None where that is not known.
    """

    colormap: str
    opacity: float
    shared_scale: bool
    class_names: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


class PanelRenderer:
    """The tiles of one probe pass, made on the device.

    Args:
        probes: The images and what is known of them.
        look: How it should look.
    """

    def __init__(self, probes: ProbeSet, look: Look) -> None:
        self.probes = probes
        self.look = look

    def render(self, results: DeviceResults) -> list[Tensor]:
        """The tiles, to be copied to the host.

        Returns:
            `(1 + layers * targets, N, th, tw, 3)` uint8: the inputs and the overlays, layer by layer;
            `(layers * targets, N)` the peaks of the maps; `(targets, N, 4)` what `CaptionData` are made of.

        Raises:
            ValueError: `mean` or `std` is for another number of channels.
        """
        look, found = self.look, results.by_target
        device = found[0].targets.device
        table = picture.colormap_table(look.colormap).to(device, non_blocking=True)
        images = picture.displayable(self.probes.images.to(device), look.mean, look.std)
        size = picture.tile_size(*images.shape[2:])
        pairs = [
            picture.overlays(images, cam, table, look.opacity, size, shared_scale=look.shared_scale)
            for cam in _maps(found)
        ]
        return [
            torch.stack([picture.tiles(images, size), *(pixels for pixels, _ in pairs)]),
            torch.stack([peaks for _, peaks in pairs]),
            torch.stack([_numbers(result) for result in found]),
        ]


def _maps(results: Sequence[TargetResult]) -> list[Tensor]:
    """The maps, layer by layer, and of each layer target by target."""
    return [result.cams[layer] for layer in results[0].cams for result in results]


def draw(
    painting: PanelRenderer,
    rendered: Sequence[Tensor],
    results: Sequence[CAMResult],
    targets: Sequence[str],
    heading: str,
) -> dict[str, Panel]:
    """The panels of one validation, a layer each.

    Args:
        painting: Of the probes.
        rendered: What it rendered of the results, on the host.
        results: One a target.
        targets: What the targets are called.
        heading: What stands above each panel, after the layer's name and, where it ran more than once, its call.
    """
    probes, look = painting.probes, painting.look
    pixels, scales, numbers = rendered
    (inputs, *overlays), peaks = pixels, list(scales)
    facts = [CaptionData.of(rows) for rows in numbers]
    panels = {}
    for number, layer in enumerate(results[0].cams):
        verdict = results[0].health[layer]
        columns = tuple(
            _column(facts[i], results[i].health[layer], title, look, overlays[number * len(results) + i], peaks.pop(0))
            for i, title in enumerate(targets)
        )
        panels[layer] = Panel(
            title=f"{name_call(layer, verdict.calls, verdict.call)}\n{heading}",
            inputs=inputs,
            captions=_input_captions(probes, facts[0], look),
            correct=_correct(probes, facts[0]),
            columns=columns,
            table=picture.colormap_table(look.colormap),
            shared_scale=look.shared_scale,
        )
    return panels


@dataclass(frozen=True)
class CaptionData:
    """What the captions say of one result, on the host: a row a probe."""

    targets: list[int]
    predictions: list[int]
    target_probabilities: list[float]
    prediction_probabilities: list[float]

    @classmethod
    def of(cls, numbers: Tensor) -> CaptionData:
        """From `(N, 4)` numbers on the host."""
        targets, predictions, *probabilities = zip(*numbers.tolist(), strict=True)
        return cls([int(x) for x in targets], [int(x) for x in predictions], *(list(p) for p in probabilities))


def _numbers(result: TargetResult) -> Tensor:
    """What a `CaptionData` is made of, on the device: `(N, 4)`."""
    rows = torch.stack([result.targets, result.predictions], dim=1)
    return torch.cat([rows.float(), result.probabilities.gather(1, rows)], dim=1)


def _column(
    facts: CaptionData, verdict: LayerHealth, title: str, look: Look, overlays: Tensor, peaks: Tensor
) -> PanelColumn:
    captions = []
    bridged = verdict.bridged or (False,) * len(verdict.state)
    for i, target in enumerate(facts.targets):
        probability = facts.target_probabilities[i]
        caption = class_name(target, look.class_names) + ("" if math.isnan(probability) else f" {probability:.2f}")
        caption += "\nempty: every channel speaks against it" if verdict.empty[i] else ""
        caption += f"\nbridged: {verdict.cause}" if bridged[i] else ""
        captions.append(caption)
    return PanelColumn(
        title=title,
        overlays=overlays,
        captions=tuple(captions),
        verdicts=tuple(None if bridged[i] else _verdict_text(s, verdict) for i, s in enumerate(verdict.state)),
        peaks=peaks,
    )


def _verdict_text(state: GradientState, verdict: LayerHealth) -> str | None:
    if state is GradientState.OK:
        return None
    # The slugs of the last two say the same once more.
    cause = "" if verdict.cause in (None, Cause.ZERO_GRADIENT, Cause.NON_FINITE) else f"\n{verdict.cause}"
    return _VERDICTS[state] + cause


def _input_captions(probes: ProbeSet, facts: CaptionData, look: Look) -> tuple[str, ...]:
    captions = []
    for i, name in enumerate(probes.names):
        lines = [name]
        if probes.labels is not None:
            lines.append(f"label: {class_name(int(probes.labels[i]), look.class_names)}")
        predicted, probability = class_name(facts.predictions[i], look.class_names), facts.prediction_probabilities[i]
        lines.append("no finite score" if math.isnan(probability) else f"predicted: {predicted} {probability:.2f}")
        captions.append("\n".join(lines))
    return tuple(captions)


def _correct(probes: ProbeSet, facts: CaptionData) -> tuple[bool | None, ...]:
    if probes.labels is None:
        return (None,) * len(probes)
    return tuple(int(label) == seen for label, seen in zip(probes.labels, facts.predictions, strict=True))


def class_name(index: int, names: Sequence[str] | None) -> str:
    """The class's name, or its index where it has none."""
    return names[index] if names is not None and 0 <= index < len(names) else str(index)
