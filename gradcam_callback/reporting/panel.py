"""What a panel shows and looks like, before it is composed to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PanelStyle:
    """What panels look like.

    Attributes:
        colormap: A name that matplotlib knows.
        opacity: Of the map over the image, 0..1.
        shared_scale: Whether the maps of a column share one scale, or each has its own.
        class_names: Of the classes, by index; None shows the index.
        mean: What was subtracted from the images' channels; None where that is not known.
        std: What the channels were divided by; None where that is not known.
        channels: Which channels of the images to show, one or three; None shows the first three.
        fuse: Whether there is one more panel, of the mean over the layers.
    """

    colormap: str
    opacity: float
    shared_scale: bool
    class_names: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    channels: Sequence[int] | None = None
    fuse: bool = False


@dataclass(frozen=True)
class PanelColumn:
    """One target in a panel: an overlay a probe.

    Attributes:
        title: What is explained, e.g. "predicted", "label" or a class name.
        overlays: `(N, height, width, 3)` uint8, image and map blended.
        captions: One line or more a probe, e.g. "cat 0.93".
        verdicts: One a probe: None draws the overlay; a text is written on a hatched tile in its place.
        peaks: `(N,)` float32, what the end of the colour bar stands for in each map; NaN where there is no map.
    """

    title: str
    overlays: Tensor
    captions: tuple[str, ...]
    verdicts: tuple[str | None, ...]
    peaks: Tensor


@dataclass(frozen=True)
class Panel:
    """One layer's picture before it is composed: a row a probe, the input, then a column a target. All on the CPU.

    Attributes:
        title: The heading, e.g. the layer, the method and the epoch.
        inputs: `(N, height, width, 3)` uint8, the input images as shown.
        captions: One a probe, for its input, e.g. its name and its label.
        correct: One a probe: whether the prediction is the label; None where there is no label.
        columns: One a target.
        table: `(256, 3)` uint8, the colormap of the colour bar.
        shared_scale: Whether all maps of a column share one scale, or each has its own.
        input_title: What stands above the inputs.
        is_photograph: Whether the inputs are so large that their pixels are not seen one by one.
    """

    title: str
    inputs: Tensor
    captions: tuple[str, ...]
    correct: tuple[bool | None, ...]
    columns: tuple[PanelColumn, ...]
    table: Tensor
    shared_scale: bool
    input_title: str = "input"
    is_photograph: bool = False
