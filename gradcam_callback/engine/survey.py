"""What every layer of a model returns, seen in forward passes of an image and of changed copies of it, without a graph.

Note [Cells follow the image]

A shape can be right and its cells in another order: windows that were unrolled, rows and columns exchanged. So a layout
is put to the test, unless the kind of a layer tells it: one half of the image is changed, and the map has to change
there more than in its other half. A change counts as a share of what the cell changes when all of the image does,
because some cells are more sensitive than others. Where all cells change alike, the test says nothing, and the shape
alone counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine.forward import call_model, hooked
from gradcam_callback.engine.grids import Evidence, GridReader, Reading
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layers import named_modules
from gradcam_callback.engine.layouts import TOKENS, Grid, Layout, Tokens, describe_output, floating_tensors
from gradcam_callback.engine.no_grad_fallback import NoGradFallback
from gradcam_callback.engine.process_state import inference_as_no_grad

# How much more a map has to change where the image was changed than in its other half.
_FOLLOWS = 1.2
# How much the changes of cells differ, over their mean, if they tell nothing.
_EVEN = 0.5
# How many tensors of one number of tokens are compared until it is known which tokens are extra.
_FIRST = 3
# Of two tokens that do not depend on the image, rounding may differ.
_EQUAL = 1e-5

CallKey = tuple[str, int]
"""The dotted name of a layer, and which of its calls it is, from 0."""


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer.

    Attributes:
        name: The dotted name of the layer.
        kind: The name of its class.
        number: Which call of the layer it is, from 0.
        output: What it returned for one image, in words.
        layout: How that lies in space; None where it does not, or it cannot be told.
        evidence: What the layout is read by.
        reason: Why there is no layout; empty where there is one.
        grid: `(h, w)`, or what else the space has; None where there is no layout.
        follows: Whether the cells lie where they are in the image; None where that was not put to the test.
    """

    name: str
    kind: str
    number: int
    output: str
    layout: Layout | None = None
    evidence: Evidence = Evidence.SHAPE
    reason: str = ""
    grid: Grid | None = None
    follows: bool | None = None

    @property
    def key(self) -> CallKey:
        """What tells it from other calls."""
        return self.name, self.number

    @property
    def full_name(self) -> str:
        """The name; with the number of the last call where it has a `#` in it, so that it can be told from one."""
        return f"{self.name}#-1" if "#" in self.name else self.name


@dataclass(frozen=True)
class Survey:
    """What the passes showed.

    Attributes:
        calls: Of all layers, in the order in which they finished.
    """

    calls: tuple[LayerCall, ...]

    def of(self, name: str, number: int | None = None) -> LayerCall | None:
        """The call of a layer: the one of this number (below 0: from the end), or the last that has a layout."""
        calls = [call for call in self.calls if call.name == name]
        if number is not None:
            return calls[number] if -len(calls) <= number < len(calls) else None
        return next((call for call in reversed(calls) if call.layout is not None), calls[-1] if calls else None)


def survey(
    model: nn.Module, images: Inputs, names: Collection[str] | None = None, *, kind: str | None = None
) -> Survey:
    """Look at every layer. To be used within `isolated`.

    It takes three forward passes of one image, and six more where a layout has to be put to the test.

    Args:
        model: The replica's.
        images: On the model's device; the first sample counts.
        names: The layers whose layouts are put to the test; None puts those of all.
        kind: "tokens" if nothing but tokens is to be read; None reads every layout.
    """
    image = ModelInputs.of(images)[:1]
    other = image.with_images(altered(image.images))
    reader = GridReader(image.size, extra_tokens(model, image, other))
    calls = list[LayerCall]()

    def see(key: CallKey, layer: nn.Module, output: Any) -> None:
        call = LayerCall(key[0], type(layer).__name__, key[1], describe_output(output, samples=1))
        calls.append(_read(call, layer, output, reader, kind))

    run_watched(model, image, see)
    doubtful = [call for call in calls if call.layout is not None and call.follows is None]
    tested = [call for call in doubtful if names is None or call.name in names]
    following = _following(model, image, other, tested)
    return Survey(tuple(replace(call, follows=following.get(call.key, call.follows)) for call in calls))


def run_watched(model: nn.Module, images: ModelInputs, see: Callable[[CallKey, nn.Module, Any], None]) -> None:
    """Run the model without a graph, and tell what each call of a layer returns, in the order in which they finish."""
    with torch.no_grad(), inference_as_no_grad(), watched(model, see), NoGradFallback():
        call_model(model, images)


def watched(model: nn.Module, see: Callable[[CallKey, nn.Module, Any], None]) -> Any:
    """A context in which what each call of a layer returns is told."""
    numbers = Counter[str]()

    def hook(name: str, layer: nn.Module, _args: Any, output: Any) -> None:
        numbers[name] += 1
        see((name, numbers[name] - 1), layer, output)

    return hooked({name: (layer, partial(hook, name)) for name, layer in named_modules(model)})


def main_activation(output: Any) -> Tensor | None:
    """The tensor that is looked at in what a layer returned: the first floating one with three to five axes."""
    return next((tensor for tensor in floating_tensors(output) if tensor.ndim in (3, 4, 5)), None)


def _read(call: LayerCall, layer: nn.Module, output: Any, reader: GridReader, kind: str | None) -> LayerCall:
    activation = main_activation(output)
    if activation is None:
        return call
    reading = reader.read(layer, activation)
    if kind == TOKENS and reading.layout is not None and not isinstance(reading.layout, Tokens):
        reading = Reading(reason="which are no tokens")
    if reading.layout is None:
        return replace(call, reason=reading.reason)
    grid = tuple(reading.layout.to_maps(activation).shape[2:])
    follows = True if reading.evidence is Evidence.KIND else None
    return replace(call, layout=reading.layout, evidence=reading.evidence, grid=grid, follows=follows)


# Extra tokens


def extra_tokens(model: nn.Module, image: ModelInputs, other: ModelInputs) -> dict[int, tuple[int, ...]]:
    """How many tokens there are, to the positions of those that do not come from the image.

    They are equal for two images where tokens first are so many: in what goes into a layer or comes out of it, before
    attention has mixed them.
    """
    kept, seen = dict[int, Tensor](), Counter[int]()
    extras = dict[int, tuple[int, ...]]()

    def keep(number: int, tokens: Tensor) -> None:
        count = tokens.shape[1]
        if seen[count] < _FIRST:
            seen[count] += 1
            kept[number] = tokens.clone()

    def compare(number: int, tokens: Tensor) -> None:
        count = tokens.shape[1]
        if count not in extras and number in kept and kept[number].shape == tokens.shape:
            equal = _equal_tokens(kept[number], tokens)
            if len(equal) < count:  # a table of positions, say, is the same for all images
                extras[count] = equal

    _run_with_tokens(model, image, keep)
    _run_with_tokens(model, other, compare)
    return extras


def _run_with_tokens(model: nn.Module, image: ModelInputs, see: Callable[[int, Tensor], None]) -> None:
    """Run the model, and tell of each tensor that may be tokens, going into a layer or out of it, numbered in order."""
    number = itertools.count()

    def tell(value: Any) -> None:
        for tensor in floating_tensors(value):
            if tensor.ndim == 3 and len(tensor) == 1:
                see(next(number), tensor)

    modules = dict(named_modules(model))
    with ExitStack() as stack:
        for module in modules.values():
            with suppress(RuntimeError):  # scripted modules take no hooks
                hook = module.register_forward_pre_hook(lambda _module, *given: tell(given), with_kwargs=True)
                stack.callback(hook.remove)
        run_watched(model, image, lambda _key, _layer, output: tell(output))


def _equal_tokens(tokens: Tensor, others: Tensor) -> tuple[int, ...]:
    """The positions of the tokens that are the same for two images."""
    first, second = tokens[0].float(), others[0].float()
    equal = (first - second).abs().amax(1) <= _EQUAL * torch.maximum(first.abs().amax(1), second.abs().amax(1))
    return tuple(equal.nonzero().flatten().tolist())


# The test of a layout


def _following(
    model: nn.Module, image: ModelInputs, other: ModelInputs, calls: Collection[LayerCall]
) -> dict[CallKey, bool]:
    """Of some calls, whether their cells lie where they are in the image.

    See Note [Cells follow the image].
    """
    if not calls:
        return {}
    tested = {call.key: call for call in calls}
    plain, changes = dict[CallKey, Tensor](), dict[CallKey, list[Tensor]]()

    def keep(key: CallKey, maps: Tensor) -> None:
        plain[key] = maps.clone()

    def compare(key: CallKey, maps: Tensor) -> None:
        if key in plain and plain[key].shape == maps.shape:
            changes.setdefault(key, []).append((maps - plain[key]).abs().sum((0, 1)))

    halves = [image.with_images(images) for images in _half_altered(image.images, other.images, image.axes)]
    for number, copy in enumerate((image, *halves, other)):
        take = compare if number else keep

        def see(key: CallKey, _layer: nn.Module, output: Any, take: Any = take) -> None:
            layout = tested[key].layout if key in tested else None
            activation = None if layout is None else layout.find_activation(output)
            if layout is not None and activation is not None:
                take(key, layout.to_maps(activation).float())

        run_watched(model, copy, see)
    return {
        key: follows_image(*found, strictly=tested[key].evidence is Evidence.GUESS)
        for key, found in changes.items()
        if len(found) == 1 + len(halves)
    }


def _half_altered(image: Tensor, other: Tensor, axes: int) -> list[Tensor]:
    """The image with its first and last half taken from another one, along each axis of space, the last axis first."""
    changed = []
    for axis in range(1, axes + 1):
        side = image.shape[-axis]
        is_first = (torch.arange(side, device=image.device) < side // 2).view(-1, *[1] * (axis - 1))
        changed += [torch.where(half, other, image) for half in (is_first, ~is_first)]
    return changed


def altered(images: Tensor) -> Tensor:
    """Other images of the same kind: each pixel is another, and all of them have about the same distribution."""
    generator = torch.Generator(images.device).manual_seed(0)
    order = torch.randperm(images.shape[2:].numel(), generator=generator, device=images.device)
    mixed = images.flatten(2)[:, :, order].view_as(images)
    if not images.is_floating_point():
        return mixed
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=torch.float32)
    spread = images.float().std() if images.numel() > 1 else noise.new_ones(())
    return (mixed + 0.5 * torch.where(spread > 0, spread, 1.0) * noise).to(images.dtype)


def follows_image(*changes: Tensor, strictly: bool = False) -> bool:
    """Whether cells lie where they are in the image, by how much each changes `(h, w)` when a part of it is altered.

    See Note [Cells follow the image].

    Args:
        *changes: When the first half of the image is altered along its last axis, and the last half; likewise along
            each axis before; at the end, when all of it is.
        strictly: Whether cells that all change alike do not follow.
    """
    *halves, whole = changes
    shares = [torch.where(whole > 0, change / whole, 0) for change in halves]
    if not strictly and all(change.std(correction=0) <= _EVEN * change.mean() for change in shares):
        return True  # the network mixes its cells, as before it has learnt, and they tell nothing
    along = enumerate(zip(shares[::2], shares[1::2], strict=True), 1)
    return all(_changes_along(first.movedim(-axis, 0), last.movedim(-axis, 0)) for axis, (first, last) in along)


def _changes_along(first: Tensor, last: Tensor) -> bool:
    """Whether rows change most where the image did, by the changes after it was altered in each of its halves."""
    half, count = len(first) // 2, len(first)
    near = first[:half].mean() * last[count - half :].mean()
    far = first[count - half :].mean() * last[:half].mean()
    return half == 0 or bool(near >= _FOLLOWS**2 * far)
