"""How many axes of space the inputs have, and whether these are the last ones: their shape alone does not tell.

Note [The first convolution tells]

Three axes may be signals `(N, C, W)` or grey images `(N, H, W)`. And a model may take signals `(N, W, C)` or clips
`(N, T, C, H, W)` and turn them itself, or make a spectrogram of a signal: then a map of its layers does not lie over
the inputs as they are. So one sample runs, and what goes into the first convolution is looked at (of five axes: into
the first one of three axes). It is the sample itself; or what the model has made of it place by place, such as a
padded, smaller or normalised one. To see that, one place along an axis of the sample is changed, a row of pixels for
instance: then the change arrives at that place of the axis, and hardly anywhere else. What it is not is refused.

Only what depends on the images counts: a convolution may run on something beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradcam_callback.engine.forward import call_model, prepared
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import ChannelsFirst, Layout, Tokens
from gradcam_callback.engine.no_grad_fallback import NoGradFallback
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.survey import altered
from gradcam_callback.errors import UnknownSpaceError

_ATEN = torch.ops.aten
# Nearly always the first; the others where they are not taken apart, as for tensors of inference mode.
_CONVOLUTIONS = {
    *(_ATEN.convolution, _ATEN.conv1d, _ATEN.conv2d, _ATEN.conv3d),
    *(_ATEN.conv_transpose1d, _ATEN.conv_transpose2d, _ATEN.conv_transpose3d),
}
_NAMES = {1: "signals (N, C, W)", 2: "grey images (N, H, W)", 3: "volumes (N, C, D, H, W)"}
# How many convolutions are looked at for one that depends on the images.
_TRIES = 8
# By how much a place is changed, as a share of the deviation of all values: little, for the model may normalise them.
_CHANGE = 0.1
# How near the change has to arrive, as a share of the axis, for the model may cut or pad; and what is no change farther
# off, as a share of the strongest one.
_NEAR, _WEAK = 0.25, 0.5
# What may be rounding, as a share of the deviation of what goes into the convolution.
_ROUNDING = 1e-3


def with_axes(
    model: nn.Module, inputs: ModelInputs, options: ReplicaOptions, layout: Layout | str | None = None
) -> ModelInputs:
    """The inputs with the number of their axes of space. See Note [The first convolution tells].

    Images with four axes cost nothing. Others cost one forward pass of one sample, and some more where the model
    changes its inputs before the first convolution.

    Args:
        model: Any module that takes the inputs.
        inputs: What it gets.
        options: How the replica is made.
        layout: What was given for the layout of the layers. It tells where no convolution does.

    Raises:
        UnknownSpaceError: It cannot be told, or the axes of space are not the last ones.
    """
    if inputs.axes:
        return inputs

    def job(replica: Replica) -> int:
        return _axes(replica.model, prepared(inputs[:1], replica.model), _axes_of(layout))

    return replace(inputs, axes=run_in_replica(model, job, options))


def _axes_of(layout: Layout | str | None) -> int | None:
    """How many axes of space a layout has that was given; None where that is not known."""
    if isinstance(layout, ChannelsFirst):
        return layout.axes
    return len(layout.grid) if isinstance(layout, Tokens) else None


def _axes(model: nn.Module, sample: ModelInputs, given: int | None) -> int:
    """How many axes of space one sample has; `given` is what the layout says."""
    is_volume = sample.images.ndim == 5
    possible = (3,) if is_volume else (1, 2)
    told = given if given in possible else None
    found = _first_convolution(model, sample, of_axes=3 if is_volume else None)
    if found is None or (told is not None and found.axes != told):
        if is_volume and told is None:
            raise UnknownSpaceError(_untold(sample.images, _first_convolution(model, sample, of_axes=None)))
        return told or 2
    if found.axes not in possible or not found.follows:
        raise UnknownSpaceError(_refusal(sample.images, found))
    return found.axes


@dataclass(frozen=True)
class _Convolution:
    """The first convolution on the images.

    Attributes:
        axes: Of space.
        shape: Of what goes into it.
        follows: Whether that follows the images along each axis of space.
    """

    axes: int
    shape: str
    follows: bool


def _first_convolution(model: nn.Module, sample: ModelInputs, of_axes: int | None) -> _Convolution | None:
    """The first convolution that depends on the images; None if there is none.

    Args:
        model: The replica's.
        sample: One, on the model's device.
        of_axes: Convolutions of other numbers of axes are passed over; None takes any.
    """
    images, other = sample.images, altered(sample.images)
    for number in range(_TRIES):
        look = partial(_entering, model, sample, number, of_axes)
        plain = look(images)
        if plain is None:
            return None
        axes = plain.ndim - 2
        if plain.shape == images.shape and torch.equal(plain, images.to(plain.dtype)):
            return _Convolution(axes, _shape(plain), follows=True)
        if _profile(plain, look(other), -1) is not None:
            follows = axes < images.ndim and all(_follows(images, plain, axis, look) for axis in range(-axes, 0))
            return _Convolution(axes, _shape(plain), follows)
    return None


def _follows(image: Tensor, plain: Tensor, axis: int, look: Callable[[Tensor], Tensor | None]) -> bool:
    """Whether what goes into a convolution changes along an axis where the image does."""
    side, inner = image.shape[axis], plain.shape[axis]
    if side == 1 or inner == 1:
        return inner == 1  # one place has no order
    changed, peaks = _changed(image), []
    for place in sorted({side // 4, side // 2, 3 * side // 4}):
        copy = image.clone()
        copy.select(axis, place).copy_(changed.select(axis, place))
        profile = _profile(plain, look(copy), axis)
        if profile is None:
            continue  # cut off, perhaps
        places = (torch.arange(inner, device=profile.device) + 0.5) / inner
        far = (places - (place + 0.5) / side).abs() > _NEAR
        if bool((profile[far] > _WEAK * profile.amax()).any()):
            return False
        peaks.append(int(profile.argmax()))
    return len(peaks) > 1 and peaks == sorted(peaks) and peaks[0] < peaks[-1]


def _changed(image: Tensor) -> Tensor:
    """The image with each value a little higher or lower, by chance; of whole numbers, with its pixels exchanged."""
    if not image.is_floating_point():
        return altered(image)
    generator = torch.Generator(image.device).manual_seed(0)
    signs = torch.randint(0, 2, image.shape, generator=generator, device=image.device) * 2 - 1
    spread = image.float().std(correction=0)
    return (image + _CHANGE * torch.where(spread > 0, spread, 1.0) * signs).to(image.dtype)


def _profile(plain: Tensor, entering: Tensor | None, axis: int) -> Tensor | None:
    """By how much what goes into a convolution changes, along an axis; None where it does not, or is another then."""
    if entering is None or entering.shape != plain.shape:
        return None
    change = (entering.float() - plain.float()).abs()
    seen = torch.where(change > _ROUNDING * plain.float().std(correction=0), change, 0)
    profile: Tensor = seen.movedim(axis, 0).flatten(1).sum(1)
    return profile if bool(profile.any()) else None


def _entering(model: nn.Module, sample: ModelInputs, number: int, of_axes: int | None, images: Tensor) -> Tensor | None:
    """What goes into the convolution of a number, from 0, if the model gets these images; None if it does not run."""
    seen = _Entering(number, of_axes)
    with torch.no_grad(), inference_as_no_grad(), seen, NoGradFallback():
        call_model(model, sample.with_images(images))
    return seen.kept


class _Entering(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what goes into one of the convolutions, also of functions and of scripted modules."""

    def __init__(self, number: int, of_axes: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: Tensor | None = None
        self._left, self._of_axes = number, of_axes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call an operation of torch, and look at what it gets."""
        if func.overloadpacket in _CONVOLUTIONS and self._of_axes in (None, args[0].ndim - 2):
            if self._left == 0:
                self.kept = args[0].clone()
            self._left -= 1
        return func(*args, **(kwargs or {}))


def _shape(tensor: Tensor) -> str:
    """The shape of one sample, in words."""
    rest = tensor.shape[1:]
    return f"({', '.join(['N', *map(str, rest)])})" if len(tensor) == 1 else f"{tuple(tensor.shape)}"


def _refusal(image: Tensor, found: _Convolution) -> str:
    return (
        f"Of inputs {_shape(image)}, the first convolution, a {found.axes}-D one, gets {found.shape}, which does not "
        "lie over the last axes of the inputs: the model turns or transforms them first, so that maps cannot be drawn "
        f"over them. Possible are {_NAMES[1]}, {_NAMES[2]} and {_NAMES[3]}, as they go into the first convolution. "
        "Do that step before the model, in the data set or in a batch-transfer hook."
    )


def _untold(image: Tensor, other: _Convolution | None) -> str:
    seen = f"the first is a {other.axes}-D one that gets {other.shape}" if other is not None else "there is none"
    return (
        f"Which axis of inputs {_shape(image)} holds the channels is told by a 3-D convolution, and {seen}. If they "
        f"are {_NAMES[3]}, name a layer with maps of three axes in `target_layers`, and say with `layout` how its "
        'output lies in space, such as "ncdhw".'
    )
