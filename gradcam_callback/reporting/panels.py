"""From probes and results to panels: drawn on the device, brought to the host by the caller, and put into words there.

Axes: `N` probes, `n` those of a page, `th tw` a tile in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from gradcam_callback.engine.device_results import TargetResult
from gradcam_callback.engine.targets import Task
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting.drawing import PanelDrawing
from gradcam_callback.reporting.fusion import with_fused
from gradcam_callback.reporting.panel import Panel, PanelColumn, PanelStyle
from gradcam_callback.reporting.probe_pictures import DRAWN_BY_PIXEL
from gradcam_callback.reporting.rendering import signals, tiles
from gradcam_callback.reporting.rendering.colormap import colormap_table
from gradcam_callback.results import CAMResult, GradientState, name_call

# Drawing, composing and encoding take memory and time that grow with the probes: so many to a page, so many pages.
PAGE_PROBES = 32
MOST_PAGES = 4


class PanelRenderer:
    """The panels of one probe pass, in two stages: what is drawn on the device, and what is written on the host.

    Between the two the caller brings the tensors to the host, together with whatever else it needs from the device.

    Args:
        probes: The images and what is known of them.
        style: What it should look like.
    """

    def __init__(self, probes: ProbeSet, style: PanelStyle) -> None:
        self.probes = probes
        self.style = style

    def render(self, results: Sequence[TargetResult]) -> list[Tensor]:
        """Draw on the device that holds the results; the host does not wait for it.

        Args:
            results: One a target, of the same layers.

        Returns:
            A page after another: `(1 + layers * targets, n, th, tw, 3)` uint8, the inputs and the overlays, layer by
            layer; then `(layers * targets, N)` float32, the peaks of the maps that are drawn; `(layers * targets, N)`
            int64, which slices of volumes are drawn, -1 of anything else; and `(targets, N, 5)` float32, the numbers
            in the captions.

        Raises:
            ValueError: `mean`, `std` or `channels` is for images with other channels.
        """
        drawn, peaks, drawing = [], [], PanelDrawing(self.probes, self.style, results, PAGE_PROBES * MOST_PAGES)
        for page in self._pages():
            pixels, highest = drawing.page(page)
            drawn.append(pixels)
            peaks.append(highest)
        numbers = torch.stack([_numbers(result) for result in results])
        return [*drawn, torch.cat(peaks, dim=1), drawing.slices, numbers]

    def panels(
        self, tensors: Sequence[Tensor], results: Sequence[CAMResult], targets: Sequence[str], heading: str
    ) -> dict[str, list[Panel]]:
        """Put what was drawn into words.

        Args:
            tensors: What `render` returned, on the host.
            results: Those that were drawn, one a target, with their health.
            targets: What the targets are called.
            heading: What stands above each panel, after the layer's name and, where it ran more than once, its call.

        Returns:
            Layer to its pages; `FUSED` to those of the mean over the layers.
        """
        *pages, peaks, slices, numbers = tensors
        layers = len(results[0].cams)
        if self.style.fuse and layers > 1:
            results = list(map(with_fused, results))
        captions = [CaptionData.of(rows, result) for rows, result in zip(numbers, results, strict=True)]
        panels: dict[str, list[Panel]] = {layer: [] for layer in results[0].cams}
        for page, (inputs, *overlays) in zip(self._pages(), pages, strict=True):
            for number, layer in enumerate(panels):
                first = number * len(results)
                columns = []
                for i, (result, title) in enumerate(zip(results, targets, strict=True), first):
                    column = _column(captions[i - first], result, layer, title, self.style, overlays[i], peaks[i])
                    columns.append(_with_slices(column, slices[i].tolist(), result.input_size))
                verdict = results[0].health[layer]
                name = name_call(layer, verdict.calls, verdict.call) or f"fused: the mean of {layers} layers"
                title = f"{name}\n{heading} · {_name_cells(results[0], layer)}"
                title += f" · {captions[0].meaning}" if captions[0].meaning else ""
                panel = self._panel(title, page, inputs, captions[0], columns, len(results[0].input_size))
                words = _name_slices(panel.captions, slices[0][page].tolist(), results[0].input_size)
                size = results[0].input_size
                is_photograph = len(size) > 1 and max(size[-2:]) > DRAWN_BY_PIXEL
                panels[layer].append(replace(panel, captions=words, is_photograph=is_photograph))
        return panels

    def _pages(self) -> Iterator[slice]:
        """Which probes stand on which page."""
        shown = min(len(self.probes), PAGE_PROBES * MOST_PAGES)
        size = math.ceil(shown / math.ceil(shown / PAGE_PROBES))
        for start in range(0, shown, size):
            yield slice(start, min(start + size, shown))

    def _panel(
        self,
        title: str,
        page: slice,
        inputs: Tensor,
        captions: CaptionData,
        columns: Sequence[PanelColumn],
        axes: int,
    ) -> Panel:
        probes, style = self.probes, self.style
        if len(inputs) < len(probes):
            title += f" · probes {page.start + 1} to {page.stop} of {len(probes)}"
            if page.stop < len(probes) and page.stop == PAGE_PROBES * MOST_PAGES:
                title += "; the others are not drawn, and are counted all the same"
        if axes == 1:
            channels = signals.name_curves(probes.images.shape[1], style.channels)
        else:
            channels = tiles.name_channels(probes.displayed.shape[1], style.channels)
        return Panel(
            title=title,
            inputs=inputs,
            captions=_input_captions(probes, captions, style)[page],
            correct=_correct(probes, captions)[page],
            columns=tuple(_part(column, page) for column in columns),
            table=colormap_table(style.colormap),
            shared_scale=style.shared_scale,
            input_title="input" + (f"\n{channels}" if channels else ""),
        )


def _name_cells(result: CAMResult, layer: str) -> str:
    """How fine a map is, and what its cells are: "7 x 7 cells", "14 x 14 cells (tokens, 1 extra)"."""
    cells = " x ".join(map(str, result.cams[layer].shape[1:]))
    layout = result.layouts.get(layer, "channels first")
    cells += " cells of the padded batch" if layer in result.extents else " cells"
    return cells + ("" if layout == "channels first" else f" ({layout})")


def _with_slices(column: PanelColumn, slices: Sequence[int], size: Sequence[int]) -> PanelColumn:
    """A column whose captions tell which slices of volumes are drawn."""
    captions = _name_slices(column.captions, slices, size)
    pairs = zip(captions, column.captions, column.verdicts, strict=True)
    return replace(column, captions=tuple(told if verdict is None else plain for told, plain, verdict in pairs))


def _name_slices(captions: Sequence[str], slices: Sequence[int], size: Sequence[int]) -> tuple[str, ...]:
    """Captions with the slices that are drawn, counted from 1; none below 0."""
    named = (f"slice {number + 1} of {size[0]}" if number >= 0 else "" for number in slices)
    return tuple("\n".join(filter(None, pair)) for pair in zip(captions, named, strict=True))


def _part(column: PanelColumn, page: slice) -> PanelColumn:
    """A column with the captions of one page; its overlays are of that page alone already."""
    captions, verdicts, peaks = column.captions[page], column.verdicts[page], column.peaks[page]
    return replace(column, captions=captions, verdicts=verdicts, peaks=peaks)


@dataclass(frozen=True)
class CaptionData:
    """What the captions say of one result, on the host: a row a probe."""

    targets: list[int]
    predictions: list[int]
    target_probabilities: list[float]
    prediction_probabilities: list[float]
    task: str = "classification"
    outputs: int = 2
    own_probabilities: bool = False

    @property
    def meaning(self) -> str:
        """What the probabilities are; empty where there are none."""
        if self.task not in ("classification", "multilabel"):
            return ""
        if self.own_probabilities:
            return "the model's own probabilities"
        if self.task == "multilabel":
            return f"a sigmoid of {self.outputs} labels"
        return f"a softmax of {self.outputs} logits" if self.outputs > 2 else "probabilities of 2 classes"

    @classmethod
    def of(cls, numbers: Tensor, result: CAMResult) -> CaptionData:
        """From `(N, 5)` numbers on the host, and what they are numbers of."""
        targets, predictions, own, *probabilities = map(list, zip(*numbers.tolist(), strict=True))
        indices = list(map(int, targets)), list(map(int, predictions))
        outputs = result.probabilities.shape[1]
        return cls(*indices, probabilities[0], probabilities[1], result.task, outputs, bool(own[0]))

    def name(self, index: int, number: float, names: Sequence[str] | None) -> str:
        """A class and its probability, or its share of the pixels; or a value, and which where there are several."""
        if self.task in ("regression", "value"):
            value = "" if math.isnan(number) else f"{number:.4g}"
            return value if self.outputs == 1 else f"{class_name(index, names)}: {value}"
        if self.task == "segmentation":
            return f"{class_name(index, names)}, {number:.0%} of pixels"
        return class_name(index, names) + ("" if math.isnan(number) else f" {number:.2f}")

    def prediction(self, probe: int, names: Sequence[str] | None) -> list[str]:
        """What the model says of a probe, in a line; none where the target asks for something else."""
        number = self.prediction_probabilities[probe]
        if self.task == "value":
            return []
        if math.isnan(number):
            return ["no box" if self.task == "detection" else "no finite score"]
        what = {"detection": "best box", "segmentation": "most"}.get(self.task, "predicted")
        return [f"{what}: {self.name(self.predictions[probe], number, names)}"]


def _numbers(result: TargetResult) -> Tensor:
    """What a `CaptionData` is made of, on the device: `(N, 5)`."""
    scores = result.scores
    own = torch.zeros_like(scores.targets) if scores.own is None else scores.own
    whole = torch.stack([scores.targets, scores.predictions, own], dim=1).float()
    return torch.cat([whole, scores.numbers], dim=1)


def _column(
    data: CaptionData,
    result: CAMResult,
    layer: str,
    title: str,
    style: PanelStyle,
    overlays: Tensor,
    peaks: Tensor,
) -> PanelColumn:
    captions, verdict = [], result.health[layer]
    for i, target in enumerate(data.targets):
        is_absent = verdict.state[i] is GradientState.ABSENT
        caption = "" if is_absent else data.name(target, data.target_probabilities[i], style.class_names)
        captions.append("\n".join([caption, *verdict.remarks(i)]))
    words = [
        result.absence if state is GradientState.ABSENT else verdict.null_text(i) or None
        for i, state in enumerate(verdict.state)
    ]
    drawn = verdict.drawn_without_gradient
    return PanelColumn(
        title=title,
        overlays=overlays,
        captions=tuple(captions),
        verdicts=tuple(None if is_drawn else word for is_drawn, word in zip(drawn, words, strict=True)),
        peaks=peaks,
    )


def _input_captions(probes: ProbeSet, data: CaptionData, style: PanelStyle) -> tuple[str, ...]:
    captions = []
    for i, name in enumerate(probes.names):
        lines = [name, *_label_lines(probes, i, data.task, style.class_names), *data.prediction(i, style.class_names)]
        captions.append("\n".join(lines))
    return tuple(captions)


def label_text(probes: ProbeSet, probe: int, task: str, names: Sequence[str] | None) -> str:
    """What the data say of a probe: "label: cat"; empty where they say nothing that fits the task."""
    return "\n".join(_label_lines(probes, probe, task, names))


def _label_lines(probes: ProbeSet, probe: int, task: str, names: Sequence[str] | None) -> list[str]:
    """What the data say of a probe, in a line; none where they say nothing that fits the task."""
    if probes.labels is not None:
        return [f"label: {class_name(int(probes.labels[probe]), names)}"]
    if probes.values is None or task != probes.task:
        return []
    values = probes.values[probe].reshape(-1)
    if task == "multilabel":
        return [f"labels: {', '.join(class_name(int(i), names) for i in values.nonzero()) or 'none'}"]
    return [f"label: {', '.join(f'{value:.4g}' for value in values.tolist())}"]


def _correct(probes: ProbeSet, data: CaptionData) -> tuple[bool | None, ...]:
    """Whether the prediction is the label, or one of several; None where that cannot be said."""
    if data.task not in get_args(Task):
        return (None,) * len(probes)
    if probes.labels is not None:
        return tuple(int(label) == seen for label, seen in zip(probes.labels, data.predictions, strict=True))
    if probes.values is not None and data.task == probes.task == "multilabel":
        return tuple(bool(row[seen]) for row, seen in zip(probes.values, data.predictions, strict=True))
    return (None,) * len(probes)


def class_name(index: int, names: Sequence[str] | None) -> str:
    """The class's name, or its index where it has none."""
    return names[index] if names is not None and 0 <= index < len(names) else str(index)
