"""How an activation lies in space: from what a layer returned to maps `N K h w`."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gradcam_callback.errors import BadInputError

Grid = tuple[int, ...]
"""`(h, w)`: the rows and columns of a map; of a signal `(w,)`, of a volume `(d, h, w)`."""


@runtime_checkable
class Layout(Protocol):
    """The place where other layouts plug in."""

    def find_activation(self, output: Any) -> Tensor | None:
        """The tensor with this layout in what a layer returned; None if there is none."""

    def to_maps(self, activation: Tensor) -> Tensor:
        """An activation, or its gradient, as `(N, K, h, w)`."""


@dataclass(frozen=True)
class ChannelsFirst:
    """`N K h w`, as convolutions return it.

    Attributes:
        axes: Of space: 1 in a signal, 2 in an image, 3 in a volume or a video.
    """

    axes: int = 2

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with so many axes behind the first two, in nested containers too."""
        return next((tensor for tensor in floating_tensors(output) if tensor.ndim == 2 + self.axes), None)

    def to_maps(self, activation: Tensor) -> Tensor:
        """The same tensor."""
        return activation

    def __str__(self) -> str:
        return "channels first"


@dataclass(frozen=True)
class ChannelsLast(ChannelsFirst):
    """`N h w K`, as many transformers have it."""

    def to_maps(self, activation: Tensor) -> Tensor:
        """The channels in second place."""
        return activation.movedim(-1, 1)

    def __str__(self) -> str:
        return "channels last"


@dataclass(frozen=True)
class Tokens:
    """`N T K`, or `N K T`: the cells of a grid, row by row, and extra tokens that stand for none of them.

    Attributes:
        grid: `(h, w)`, or `(d, h, w)` of a video.
        extras: The positions of the tokens that are no cells (class tokens, registers), ascending.
        axis: Where the tokens are, 1 or 2; the channels are in the other.
    """

    grid: Grid
    extras: tuple[int, ...] = ()
    axis: int = 1

    @property
    def count(self) -> int:
        """How many tokens there are, extra ones among them."""
        return math.prod(self.grid) + len(self.extras)

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with three axes and so many tokens, in nested containers too."""
        sequences = (tensor for tensor in floating_tensors(output) if tensor.ndim == 3)
        return next((tensor for tensor in sequences if tensor.shape[self.axis] == self.count), None)

    def to_maps(self, activation: Tensor) -> Tensor:
        """The cells alone, in rows and columns."""
        tokens, extras = activation.movedim(self.axis, 2), frozenset(self.extras)
        cells = [position for position in range(tokens.shape[2]) if position not in extras]
        first, last = cells[0], cells[-1]
        together = last - first + 1 == len(cells)  # a slice is a view, and needs no copy to the device
        kept = tokens[:, :, first : last + 1] if together else tokens[:, :, cells]
        return kept.reshape(len(kept), -1, *self.grid)

    def __str__(self) -> str:
        extra = f", {len(self.extras)} extra" if self.extras else ""
        return "tokens" + extra + (", channels first" if self.axis == 2 else "")


@dataclass(frozen=True)
class CustomLayout:
    """A user's own function.

    Attributes:
        function: From a tensor that a layer returned to `(N, K, h, w)`, by changes of shape and order alone.
    """

    function: Callable[[Tensor], Tensor]

    def find_activation(self, output: Any) -> Tensor | None:
        """The first floating tensor with at least three axes, in nested containers too."""
        return next((tensor for tensor in floating_tensors(output) if tensor.ndim > 2), None)

    def to_maps(self, activation: Tensor) -> Tensor:
        """What the function makes of it.

        Raises:
            ValueError: It makes something else than maps.
        """
        maps = self.function(activation)
        if not isinstance(maps, Tensor) or maps.ndim not in (3, 4, 5) or len(maps) != len(activation):
            raise BadInputError(
                f"`layout` is a function that makes maps (N, K, h, w) of what a layer returned; of a tensor of shape "
                f"{tuple(activation.shape)} it made {describe_output(maps)}."
            )
        return maps

    def __str__(self) -> str:
        return "custom"


@dataclass(frozen=True)
class Unreadable:
    """No layout: what a layer returns has no space in it, or none that could be told.

    Attributes:
        reason: Why, in half a sentence after "of shape ..."; empty where the shape says it.
    """

    reason: str = ""

    def find_activation(self, output: Any) -> None:
        """There is none."""
        return None

    def to_maps(self, activation: Tensor) -> Tensor:
        """Not to be called."""
        raise AssertionError(self.reason)

    def __str__(self) -> str:
        return "none"


CHANNELS_FIRST, CHANNELS_LAST = ChannelsFirst(), ChannelsLast()

LayoutInput = str | Mapping[str, Any] | Callable[[Tensor], Tensor] | Layout | None
"""What may be given for a layout: "nchw", "nhwc", "tokens", a grid and its extras, a function or its dotted name."""

TOKENS = "tokens"
_NAMED: Mapping[str, Layout] = {
    **{name: ChannelsFirst(axes) for axes, name in enumerate(("ncw", "nchw", "ncdhw"), 1)},
    **{name: ChannelsLast(axes) for axes, name in enumerate(("nwc", "nhwc", "ndhwc"), 1)},
}
_POSSIBLE = (
    'Possible: "nchw", "nhwc" (of signals "ncw", "nwc", of volumes "ncdhw", "ndhwc"), "tokens", a grid of tokens such '
    'as {"grid": [14, 14], "extras": 1}, a function from a tensor to (N, K, h, w) or its dotted name, or None to find '
    "the layout."
)


def as_layout(given: LayoutInput) -> Layout | str | None:
    """What was given for a layout, as one; "tokens" and None, which have to be read from a pass, stay as they are.

    Raises:
        ValueError: It is no layout; the message says what is possible.
    """
    if given is None or given == TOKENS or isinstance(given, Layout):
        return given
    if isinstance(given, Mapping):
        return _as_tokens(given)
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]
    function = _imported(given) if isinstance(given, str) else given
    if callable(function):
        return CustomLayout(function)
    raise BadInputError(f"There is no layout {given!r}. {_POSSIBLE}")


def _imported(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        return None


def _as_tokens(given: Mapping[str, Any]) -> Tokens:
    grid, extras = given.get("grid"), given.get("extras", 0)
    sides = grid if isinstance(grid, (list, tuple)) else ()
    is_grid = len(sides) in (1, 2, 3) and all(type(side) is int and side > 0 for side in sides)
    if not is_grid or set(given) - {"grid", "extras"}:
        raise BadInputError(
            f"A layout of tokens has a grid of whole numbers, such as [14, 14]; given: {dict(given)!r}. {_POSSIBLE}"
        )
    positions = tuple(range(extras)) if type(extras) is int else extras
    if not isinstance(positions, (list, tuple)) or not all(type(p) is int and p >= 0 for p in positions):
        raise BadInputError(
            f"`extras` is how many tokens stand before the grid, or their positions, counted from 0; given: {extras!r}."
        )
    return Tokens(tuple(sides), tuple(sorted(positions)))


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """The floating tensors in nested containers, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from floating_tensors(value)


def describe_output(output: Any, samples: int | None = None) -> str:
    """What a layer returned, in words, for a message.

    Args:
        output: What it returned.
        samples: How many samples there were, if that number is to be an N in the words.
    """
    if isinstance(output, Tensor):
        shape = tuple(output.shape)
        text = f"({', '.join(['N', *map(str, shape[1:])])})" if samples and shape[:1] == (samples,) else f"{shape}"
        return f"a tensor of shape {text}"
    if isinstance(output, (tuple, list)):
        values = ", ".join(describe_output(value, samples) for value in output)
        return f"{type(output).__name__} of {values or 'nothing'}"
    return f"an object of type {type(output).__name__}"
