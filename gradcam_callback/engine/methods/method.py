"""What a method is: it declares what it needs, and makes the map of it. The engine asks.

Note [What a method may need]

- The gradient of the score at the layer: `needs_gradient`.
- More forward passes: `extra_forwards`, how many a sample, or one for each channel of the layer. Then it is given a
  `Rerun`, which runs the model on changed images or a changed activation, counts, and refuses what was not declared.
- Attention: such a method gets it from its `Rerun`, in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

from torch import Tensor

from gradcam_callback.errors import BadInputError

PER_CHANNEL: Final = "per channel"

Forwards = int | Literal["per channel"]
"""How many more forward passes a method needs for each sample; or one for each channel of the layer."""

ChangeImages = Callable[[int], Tensor]
"""From the number of a variant, counted from 0, to the images `(N, C, H, W)` in place of the samples'."""
ChangeActivation = Callable[[int, Tensor], Tensor]
"""From the number of a variant and the activation `(N, K, h, w)` to what the rest of the network gets instead."""


class Rerun(Protocol):
    """The model and the samples of a pass, at one layer and for one target, to be run again with something changed.

    The class, or the region, that the score is of stays that of the pass, whatever the model predicts now.
    """

    @property
    def images(self) -> Tensor:
        """The samples' images: `(N, C, H, W)`, or `(N, H, W)`; signals `(N, C, W)`, volumes `(N, C, D, H, W)`."""

    @property
    def scores(self) -> Tensor:
        """The scores `(N,)` of the pass, with nothing changed."""

    def scores_of_images(self, count: int, change: ChangeImages) -> Tensor:
        """The scores of `count` variants of the images: `(count, N)`. It costs `count` forward passes a sample."""

    def scores_of_activations(self, count: int, change: ChangeActivation) -> Tensor:
        """The scores of `count` variants of the activation: `(count, N)`. It costs `count` forward passes a sample."""

    def pairs_of_images(self, count: int, change: ChangeImages) -> Sequence[tuple[Tensor, Tensor]]:
        """Activation and gradient, `(N, K, h, w)` each, of `count` variants of the images: as many forward passes."""

    def attention(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Of each self-attention over the layer's tokens the weights `(N, heads, T, T)`, and the scores' gradient.

        In the order of the forward pass. It costs one forward pass a sample, with a graph of all of it.

        Raises:
            BadInputError: The layer has no tokens, or there is no attention over them.
        """

    def as_map(self, of_tokens: Tensor) -> Tensor:
        """A number for each of the layer's tokens, `(N, T)`, as a map `(N, h, w)`; extra tokens are left out."""


@runtime_checkable
class Method(Protocol):
    """The place where other methods plug in; see Note [What a method may need]."""

    @property
    def name(self) -> str:
        """What it is called in a configuration."""

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient at the layer. A method that does not gets None in its place."""

    @property
    def extra_forwards(self) -> Forwards:
        """How many forward passes it needs for each sample besides the one that gives activation and score."""

    @property
    def map(self) -> Callable[..., Tensor]:
        """`map(activation, gradient)`: the map `(N, h, w)`, at least 0, of an activation and its gradient.

        Both are `(N, K, h, w)`. A method with `extra_forwards` is called as `map(activation, gradient, rerun)`.
        """


@dataclass(frozen=True)
class FormulaMethod:
    """A method whose map is a formula of activation and gradient.

    Attributes:
        name: What it is called in a configuration.
        formula: From activation and gradient, `(N, K, h, w)` each, to the map `(N, h, w)`.
        needs_gradient: Whether the formula uses the gradient.
    """

    name: str
    formula: Callable[[Tensor, Any], Tensor]
    needs_gradient: bool = True

    @property
    def extra_forwards(self) -> Forwards:
        """None."""
        return 0

    def map(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """The formula's map."""
        return self.formula(activation, gradient)


def price(method: Method, channels: int) -> int:
    """How many more forward passes a method needs for each sample, at a layer of so many channels."""
    return channels if method.extra_forwards == PER_CHANNEL else int(method.extra_forwards)


def make_map(method: Method, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
    """The map of a method.

    Raises:
        BadInputError: It is no map `(N, h, w)` of the activation.
    """
    given = (activation, gradient, rerun) if method.extra_forwards else (activation, gradient)
    cam: Any = method.map(*given)
    expected = (len(activation), *activation.shape[2:])
    if not isinstance(cam, Tensor) or tuple(cam.shape) != expected:
        seen = tuple(cam.shape) if isinstance(cam, Tensor) else type(cam).__name__
        raise BadInputError(
            f"The method {method.name!r} has to make a map of shape {expected} of an activation of shape "
            f"{tuple(activation.shape)}; it made {seen}."
        )
    return cam
