"""Frozen records that the parts of the package pass to each other.

Axes, here and everywhere: `N` probes, `C` image channels, `H W` the image in pixels, `K` channels of an activation,
`h w` its space, `L` classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gradcam_callback import notebook
from gradcam_callback.causes import Cause


class GradientState(str, Enum):
    """What the gradient of one probe at one layer is worth."""

    OK = "ok"
    NONE = "none"
    ZERO = "zero"
    NON_FINITE = "non_finite"
    ABSENT = "absent"
    """There is nothing to explain: the image has no such box, no second label, no pixel of the class."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class LayerHealth:
    """The judgement on the gradient at one layer, made before anything is normalised.

    Attributes:
        gradient_norm: `(N,)` float32 on the CPU, the L2 norm of each probe's gradient; NaN where there is none.
        state: One state a probe.
        empty: One flag a probe: the gradient is fine, and the map is zero all the same, because every channel speaks
            against the class. Where `CAMResult.extents` tell which part of its map the image is, that part counts.
        cause: Why the gradient is not there, where the forward pass alone already tells; None otherwise.
        detail: That cause in words; empty where there is none.
        bridged: One flag a probe: there is no gradient, and the map was drawn across the cut. Empty: none was.
        substituted: One flag a probe: there is no gradient, and the map is that of another method. Empty: none is.
        substitute: That method.
        calls: How often the layer ran in the forward pass; 0 if it never did.
        call: Which of these calls is explained, counted from 0. Where the one that was asked for did not happen, that
            one all the same.
        channels: How many channels its output has; 0 where that is not known.
    """

    gradient_norm: Tensor
    state: tuple[GradientState, ...]
    empty: tuple[bool, ...]
    cause: Cause | None = None
    detail: str = ""
    bridged: tuple[bool, ...] = ()
    substituted: tuple[bool, ...] = ()
    substitute: str = ""
    calls: int = 1
    call: int = 0
    channels: int = 0

    @property
    def drawn_without_gradient(self) -> tuple[bool, ...]:
        """One flag a probe: there is no gradient, and a map all the same, across a cut or by another method."""
        none = (False,) * len(self.state)
        return tuple(map(any, zip(self.bridged or none, self.substituted or none, strict=True)))

    @property
    def null_probes(self) -> tuple[int, ...]:
        """The probes without a usable gradient."""
        usable = (GradientState.OK, GradientState.ABSENT)
        return tuple(index for index, state in enumerate(self.state) if state not in usable)

    def null_text(self, probe: int) -> str:
        """Why a probe has no usable gradient, in a word and a slug; empty where it has one, or there is nothing."""
        # The slugs of the last two say the same once more.
        known = self.cause not in (None, Cause.ZERO_GRADIENT, Cause.NON_FINITE)
        text = _NULL_TEXTS.get(self.state[probe], "")
        return f"{text}\n{self.cause}" if text and known else text

    def remarks(self, probe: int) -> list[str]:
        """What is to be said of the map of a probe, where it is no ordinary one."""
        said = ["empty: every channel speaks against it"] if self.empty[probe] else []
        if self.bridged and self.bridged[probe]:
            said.append(f"bridged: {self.cause}")
        if self.substituted and self.substituted[probe]:
            said.append(f"{self.substitute}, no gradient: {self.cause}")
        return said


_NULL_TEXTS = {
    GradientState.NONE: "no gradient",
    GradientState.ZERO: "zero gradient",
    GradientState.NON_FINITE: "gradient not finite",
}


def split_call(layer: str) -> tuple[str, int | None]:
    """A target layer's name without the number of the call, and that number: "head#-1" is "head" and -1."""
    found = re.fullmatch(r"(.*)#(-?\d+)", layer, re.DOTALL)
    return (layer, None) if found is None else (found[1], int(found[2]))


def name_call(layer: str, calls: int, call: int) -> str:
    """A layer and which call of it: "head#1 of calls #0 to #2"; its name alone where it ran no more than once."""
    return layer if calls < 2 else f"{split_call(layer)[0]}#{call} of calls #0 to #{calls - 1}"


def name_probes(probes: Sequence[int]) -> str:
    """Some probes by their positions: "probe 3", "probes 1, 2"; of many, the first eight."""
    shown = ", ".join(map(str, probes[:8])) + (", ..." if len(probes) > 8 else "")
    return f"probe {shown}" if len(probes) == 1 else f"probes {shown}"


def name_share(probes: Sequence[int], total: int) -> str:
    """Some of so many probes: "all 8 probes", "probe 3 of 8"."""
    return f"all {total} probes" if len(probes) == total else f"{name_probes(probes)} of {total}"


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class CAMResult:
    """Class activation maps of one batch for one target.

    Attributes:
        cams: Layer to map: float32 `(N, h, w)` (of signals `(N, w)`, of volumes `(N, d, h, w)`), at least 0, not
            normalised, on the model's device. A probe without a usable gradient is a row of NaN, never zeros. A layer
            that was named with the number of a call keeps it in its name: "head#0".
        targets: `(N,)` int64, the class that each map explains.
        scores: `(N,)` float32, the logit of that class, or whatever else the target scores.
        predictions: `(N,)` int64, the class with the highest logit.
        probabilities: `(N, L)` float32 in 0..1, softmax of the logits; of a single logit, its sigmoid and the rest.
            What a sigmoid or a softmax in the model has made is taken as it is. Of labels that are each for itself,
            the sigmoids; in a regression, the values.
        health: Layer to judgement.
        input_size: `(H, W)` of the inputs, in pixels; of signals `(W,)`, of volumes `(D, H, W)`.
        task: What was explained: "classification", "multilabel", "regression", "segmentation", "detection" or "value".
        layouts: Layer to how its output lies in space, in words: "channels first", "tokens, 1 extra".
        absence: What to say of a probe that has nothing to explain, in a word or two: "no box".
        regions: `(N, h, w)` bool, the pixels of the output that the score was taken over; None where there are none.
        boxes: `(N, 4)` float32, the box whose score was explained, in pixels of the input; None where there is none.
        sizes: `(h, w)` of each image in pixels, where the model takes a list of them; `input_size` has room for all.
        extents: Layer to which part of its map each image is, in a model that pads them: `(N, 4)` float32, top, left,
            bottom, right in cells. A layer is not in it where an image is all of its map, or where that was not looked
            for: it is for "auto", for detections, for lists of images, and by the callback.
    """

    cams: Mapping[str, Tensor]
    targets: Tensor
    scores: Tensor
    predictions: Tensor
    probabilities: Tensor
    health: Mapping[str, LayerHealth]
    input_size: tuple[int, ...]
    task: str = "classification"
    layouts: Mapping[str, str] = field(default_factory=dict)
    absence: str = ""
    regions: Tensor | None = None
    boxes: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    extents: Mapping[str, Tensor] = field(default_factory=dict)

    def heatmaps(self, size: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """Enlarge each map and scale it to 0..1 by its own maximum.

        Args:
            size: `(H, W)` in pixels (of signals `(W,)`, of volumes `(D, H, W)`); None takes the size of the inputs.
                Of images of different sizes, None gives each its own, at the upper left among zeros.

        Returns:
            Layer to float32 `(N, H, W)` in 0..1, bilinear (linear, trilinear). An all-zero map stays zero, a
            NaN map stays NaN.
        """
        draw = self._on_canvas if size is None and len(set(self.sizes or ())) > 1 else self._enlarged
        return {layer: draw(cam, self.extents.get(layer), size or self.input_size) for layer, cam in self.cams.items()}

    def show(
        self,
        images: Tensor | Sequence[Tensor] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        colormap: str = "turbo",
        opacity: float = 0.5,
    ) -> notebook.NotebookHTML:
        """A picture of the maps for a notebook: a row a probe, a column a layer.

        The result holds no images, so that it keeps no memory of the device; nothing of these is kept either.

        Args:
            images: `(N, C, H, W)` or a list of `(C, h, w)`, the inputs as they are to be seen: in 0..1 or uint8; others
                are scaled by their own range. The maps are drawn over them; None draws the maps alone.
            class_names: Names of the classes, by index.
            colormap: Any that matplotlib knows.
            opacity: Of a map over its image, 0 to 1.

        Returns:
            HTML that is shown where it is the last expression of a cell; 32 probes at most.

        Raises:
            ValueError: There are more or fewer images than maps, or they are no images `(C, H, W)`.
            KeyError: There is no such colormap.
        """
        count = len(self.targets)
        if images is not None and len(self.input_size) != 2:
            raise ValueError("images: of signals and volumes the maps are shown alone; leave the images out.")
        shown = range(min(count, notebook.MOST_ROWS))
        pictures = None if images is None else [_as_picture(images, probe, count) for probe in shown]
        return notebook.map_table(
            f"{self.task}, {count} probe{'s' * (count > 1)}",
            [self._describe(probe, class_names) for probe in shown],
            [self._column(layer, shown) for layer in self.cams],
            pictures,
            left_out=count - len(shown),
            colormap=colormap,
            opacity=opacity,
        )

    def _repr_html_(self) -> str:
        """The maps alone, for notebooks; `show` draws them over the images."""
        return self.show().html

    def _column(self, layer: str, shown: range) -> notebook.MapColumn:
        cams, extents, verdict = self.cams[layer][: len(shown)], self.extents.get(layer), self.health[layer]
        maps = []
        for probe in shown:
            size = self.input_size if self.sizes is None else self.sizes[probe]
            part = slice(probe, probe + 1)
            own = None if extents is None else extents[part]
            drawn = self._enlarged(cams[part], own, notebook.shown_size(size))
            maps.append(notebook.flat_map(drawn[0].cpu().numpy()))
        nothing = [self.absence if state is GradientState.ABSENT else "" for state in verdict.state]
        texts = ["\n".join(verdict.remarks(probe)) or verdict.null_text(probe) or nothing[probe] for probe in shown]
        return notebook.MapColumn(layer, " x ".join(map(str, cams.shape[1:])) + " cells", maps, texts)

    def _describe(self, probe: int, names: Sequence[str] | None) -> str:
        """What is said of a probe: what is explained, and what the model says."""

        def name(index: int) -> str:
            return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"

        lines = [f"probe {probe}"]
        if self.task in ("classification", "multilabel"):
            for what, index in (("explained", self.targets[probe]), ("predicted", self.predictions[probe])):
                lines.append(f"{what}: {name(int(index))}, {float(self.probabilities[probe, index]):.2f}")
        else:
            lines.append(f"score {float(self.scores[probe]):.4g}")
        return "\n".join(lines)

    def _enlarged(self, cams: Tensor, extents: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return normalise(enlarge(cams, size, extents))

    def _on_canvas(self, cams: Tensor, extents: Tensor | None, size: tuple[int, ...]) -> Tensor:
        """Each at the size of its own image, at the upper left; rows of NaN stay such."""
        canvas = torch.where(cams.isnan().all(2).all(1)[:, None, None], torch.nan, cams.new_zeros(len(cams), *size))
        for probe, (height, width) in enumerate(self.sizes or ()):
            part = slice(probe, probe + 1)
            own = enlarge(cams[part], (height, width), None if extents is None else extents[part])
            canvas[part, :height, :width] = normalise(own)
        return canvas


def _as_picture(images: Tensor | Sequence[Tensor], probe: int, count: int) -> NDArray[Any]:
    """One of the images that were given, on the host."""
    if len(images) != count:
        raise ValueError(f"images: there are {count} maps and {len(images)} images; give one a map.")
    image = images[probe].detach()
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.ndim != 3:
        raise ValueError(f"images: expected (N, C, H, W), and each is of shape {tuple(image.shape)}.")
    picture: NDArray[Any] = (image if image.dtype == torch.uint8 else image.float()).cpu().numpy()
    return picture


_ENLARGING = {1: "linear", 2: "bilinear", 3: "trilinear"}


def enlarge(maps: Tensor, size: tuple[int, ...], extents: Tensor | None = None) -> Tensor:
    """Enlarge maps, to the size of their images mostly; a map of NaN stays one.

    Args:
        maps: `(N, h, w)`; of signals `(N, w)`, of volumes `(N, d, h, w)`.
        size: `(H, W)` in pixels, or `(W,)`, or `(D, H, W)`.
        extents: `(N, 4)`, which part of its map each image is: top, left, bottom, right in cells; None: all of it.

    Returns:
        `(N, H, W)`, (bi-, tri-)linear. An image whose own cells are zero gets nothing from those of the padding.
    """
    if extents is None:
        mode = _ENLARGING[maps.ndim - 1]
        return F.interpolate(maps.unsqueeze(1), size=size, mode=mode, align_corners=False).squeeze(1)
    top, left, bottom, right = extents.to(maps).unbind(1)
    rows, columns = _places(top, bottom, size[0], maps.shape[1]), _places(left, right, size[1], maps.shape[2])
    shape = (len(maps), *size)
    grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=3)
    sampled = F.grid_sample(maps.unsqueeze(1), grid, "bilinear", padding_mode="border", align_corners=False)
    return torch.where(zero_within(maps, extents)[:, None, None], 0.0, sampled.squeeze(1))


def zero_within(maps: Tensor, extents: Tensor) -> Tensor:
    """Which maps are zero in each cell that their image has a part in: bool `(N,)`; those of NaN are not.

    Args:
        maps: `(N, h, w)`.
        extents: `(N, 4)`, which part of its map each image is: top, left, bottom, right in cells.
    """
    top, left, bottom, right = extents.to(maps).unbind(1)
    own = _touched(top, bottom, maps.shape[1])[:, :, None] & _touched(left, right, maps.shape[2])[:, None]
    return ~((maps != 0) & own).flatten(1).any(dim=1)


def _touched(first: Tensor, last: Tensor, cells: int) -> Tensor:
    """Which cells lie at least in part between two edges, by more than rounding: bool `(N, cells)`."""
    numbers = torch.arange(cells, device=first.device)
    return (numbers + 1 - 1e-3 > first[:, None]) & (numbers + 1e-3 < last[:, None])


def _places(first: Tensor, last: Tensor, pixels: int, cells: int) -> Tensor:
    """The middle of each pixel in the map, `(N, pixels)`, from -1 at its one edge to 1 at the other."""
    shares = (torch.arange(pixels, device=first.device) + 0.5) / pixels
    return (first[:, None] + (last - first)[:, None] * shares) * 2 / cells - 1


def normalise(maps: Tensor) -> Tensor:
    """Maps at least 0, each divided by its own maximum; one that is zero stays zero."""
    peak = maps.amax(dim=tuple(range(1, maps.ndim)), keepdim=True)
    return torch.where(peak == 0, maps, maps / peak)


@dataclass(frozen=True)
class SourceLocation:
    """A place in somebody's code.

    Attributes:
        file: The path of the file.
        line: The line's number, from 1.
        function: The function that the line is in.
        code: The line itself, without indentation.
        module: The dotted name of the module in whose forward it happened; "" is the model itself.
        detail: The lines further in, in libraries, that it led to: "file:line in function", innermost first.
    """

    file: str
    line: int
    function: str
    code: str
    module: str
    detail: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class PathStep:
    """One operation on the way from the layer to the score.

    Attributes:
        module: The dotted name of the module in whose forward it happened.
        operation: The function, e.g. "Tensor.detach".
        shape: Of its result.
        alive: Whether its result carries a gradient.
        gradient_norm: L2, of the scores of the null probes (of all, where none is) with respect to its result; None
            where there is no gradient.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    alive: bool
    gradient_norm: float | None


@dataclass(frozen=True)
class Cut:
    """One place where a gradient ends.

    Attributes:
        cause: Why.
        location: Where; None where no line is to blame, or none is known.
        operation: The function, e.g. "Tensor.detach".
    """

    cause: Cause
    location: SourceLocation | None
    operation: str


@dataclass(frozen=True)
class Diagnosis:
    """Why samples have no usable gradient at a layer, and where it ends.

    Attributes:
        layer: The dotted name of the layer, with the number of the call if one was chosen.
        cause: None: the gradient is there, finite and not zero.
        location: The line to blame; None where there is none, or it is not known.
        probes: Which samples are null, by their position.
        path: From the layer to the score.
        rescued: What would have made the gradient None if the model had been run as the caller had it.
        message: What was found, in a few sentences.
        remedy: What to do about it.
        cuts: All places found, the first one first; the first is `cause` and `location`.
        bridges: The numbers of the calls that have to be crossed to get a gradient all the same; empty if that cannot
            be.
    """

    layer: str
    cause: Cause | None
    location: SourceLocation | None
    probes: tuple[int, ...]
    path: tuple[PathStep, ...]
    rescued: tuple[Cause, ...]
    message: str
    remedy: str
    cuts: tuple[Cut, ...] = ()
    bridges: frozenset[int] = frozenset()

    @property
    def path_states(self) -> list[str]:
        """How the gradient stands at each step of the path: "alive", "zero", "cut here", "lost", ..."""
        return [_state(step, self.path[place - 1] if place else None) for place, step in enumerate(self.path)]

    def _repr_html_(self) -> str:
        """The way of the gradient as a table, the lines to blame and what to do, for notebooks."""
        steps = reversed(list(zip(self.path, self.path_states, strict=True)))
        path = [
            (
                step.module or "(model)",
                step.operation,
                " x ".join(map(str, step.shape)),
                "none" if step.gradient_norm is None else f"{step.gradient_norm:.2e}",
                state,
            )
            for step, state in steps
        ]
        places = [(cut.cause, cut.location) for cut in self.cuts if cut.location is not None]
        return notebook.diagnosis_table(
            self.layer,
            str(self.cause or "healthy"),
            is_good=self.cause is None,
            message=self.message,
            path=[("", "score", "", "", "alive"), *path] if path else [],
            blamed=[(f"{cause} · {place} in {place.function}", place.code) for cause, place in places],
            remedy=self.remedy,
        ).html


def _state(step: PathStep, before: PathStep | None) -> str:
    """How the gradient stands at a step; `before` is the step one nearer to the layer."""
    if not step.alive:
        return "cut here" if before is None or before.alive else "lost"
    if step.gradient_norm is None:
        return "not reached"
    if step.gradient_norm == 0:
        return "zero"
    return "alive" if math.isfinite(step.gradient_norm) else "not finite"
