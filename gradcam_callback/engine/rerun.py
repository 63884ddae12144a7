"""The model run again on the samples of a pass, with something changed, for methods that ask for it.

Several variants go through the model in one batch, as many as make no more than `MOST_SAMPLES` samples of it; or one
variant, where the samples are that many. So a pass needs hardly more memory than the one with the samples themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine import capture, gradients
from gradcam_callback.engine.attention import AttentionRecorder
from gradcam_callback.engine.forward import call_model, forward_pass
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import Layout, Tokens
from gradcam_callback.engine.methods.method import ChangeActivation, ChangeImages, Method, price
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.engine.targets import OutputSpec, Scores, Target
from gradcam_callback.engine.targets.target import repeat_target
from gradcam_callback.errors import BadInputError

MOST_SAMPLES = 32


class ModelRerun:
    """A `Rerun` of one layer and one target; to be used while the replica is there.

    Args:
        model: The replica's.
        inputs: Those of the pass.
        layer: Its name, and the module.
        layout: How its output lies in space.
        call: Which of its calls was explained, counted from 0.
        target: Whose scores they are.
        scores: Of the pass.
        output: Where the target finds what it reads.
        method: Which runs the model again; its declared number of passes is held to.

    Attributes:
        channels: Of the layer; the number of passes may depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        layer: tuple[str, nn.Module],
        layout: Layout,
        call: int,
        target: Target,
        scores: Scores,
        output: OutputSpec,
        method: Method,
    ) -> None:
        self._model, self._inputs = model, inputs
        self._name, self._layer = layer
        self._layout, self._call = layout, call
        self._target, self._scores, self._output = target, scores, output
        self._method, self._passes = method, 0
        self.channels = 0
        kind = inputs.images.device.type
        self._precision = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    @property
    def images(self) -> Tensor:
        """The samples' images; see `Rerun`."""
        if self._inputs.sizes is not None and self._inputs.differ:
            raise BadInputError(
                f"The method {self._method.name!r} changes the images, and needs them to be of one size. Resize them, "
                "or use 'gradcam'."
            )
        return self._inputs.images

    @property
    def scores(self) -> Tensor:
        """The scores `(N,)` of the pass."""
        return self._scores.values

    def scores_of_images(self, count: int, change: ChangeImages) -> Tensor:
        """The scores of variants of the images: `(count, N)`; see `Rerun`."""
        return torch.cat([self._scored([change(number) for number in part]) for part in self._portions(count)])

    def scores_of_activations(self, count: int, change: ChangeActivation) -> Tensor:
        """The scores of variants of the activation: `(count, N)`; see `Rerun`."""
        scored = []
        for part in self._portions(count):
            with self._replacing(part, change):
                scored.append(self._scored([self._inputs.images] * len(part)))
        return torch.cat(scored)

    def pairs_of_images(self, count: int, change: ChangeImages) -> Sequence[tuple[Tensor, Tensor]]:
        """Activation and gradient of variants of the images; see `Rerun`."""
        pairs = list[tuple[Tensor, Tensor]]()
        for part in self._portions(count):
            activation, gradient = self._differentiated([change(number) for number in part])
            pairs += zip(activation.chunk(len(part)), gradient.chunk(len(part)), strict=True)
        return pairs

    def attention(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Of each self-attention over the layer's tokens the weights and the scores' gradient; see `Rerun`."""
        tokens = self._tokens()
        self._count_passes(1)
        inputs = self._inputs.with_variants([self._inputs.images])
        with self._as_in_the_pass(), AttentionRecorder(len(inputs)) as recorder:
            scores = self._read(call_model(self._model, inputs), inputs, 1)
        seen = recorder.weights_over(tokens)
        given = torch.autograd.grad(scores.sum(), seen, allow_unused=True) if seen and scores.requires_grad else []
        found = [(w.detach(), g) for w, g in zip(seen, given, strict=False) if g is not None]
        if not found:
            others = ", ".join(sorted(map(str, recorder.sizes))) or "none"
            raise BadInputError(
                f"The method {self._method.name!r} needs self-attention over the {tokens} tokens of the layer "
                f"{self._name!r} on the way to the score; attention was seen over: {others}. Use 'gradcam'."
            )
        return found

    def as_map(self, of_tokens: Tensor) -> Tensor:
        """A number for each of the layer's tokens as a map; see `Rerun`."""
        axis = self._layout.axis if isinstance(self._layout, Tokens) else 1
        return self._layout.to_maps(of_tokens.unsqueeze(3 - axis)).squeeze(1)

    def _tokens(self) -> int:
        if not isinstance(self._layout, Tokens):
            raise BadInputError(
                f"The method {self._method.name!r} is for transformers, and the layer {self._name!r} returns no tokens "
                f"but {self._layout}. Choose a layer of tokens, or use 'gradcam'."
            )
        return self._layout.count

    def _portions(self, count: int) -> Iterator[range]:
        self._count_passes(count)
        size = max(1, MOST_SAMPLES // len(self._inputs))
        return (range(first, min(first + size, count)) for first in range(0, count, size))

    def _count_passes(self, count: int) -> None:
        self._passes += count
        allowed = price(self._method, self.channels)
        if self._passes > allowed:
            raise BadInputError(
                f"The method {self._method.name!r} asks for {self._passes} more forward passes a sample, and has "
                f"declared {allowed} in `extra_forwards`."
            )

    def _scored(self, variants: Sequence[Tensor]) -> Tensor:
        """The scores of variants of the images, in one batch: `(len(variants), N)`."""
        inputs = self._inputs.with_variants(variants)
        with self._as_in_the_pass():
            values = self._read(call_model(self._model, inputs), inputs, len(variants))
        return values.detach().float().view(len(variants), -1)

    @contextmanager
    def _as_in_the_pass(self) -> Iterator[None]:
        """The precision of the pass, which is left where maps are made."""
        kind, dtype, enabled = self._precision
        with torch.autocast(kind, dtype, enabled), inference_as_no_grad():
            yield

    def _read(self, returned: Any, inputs: ModelInputs, times: int) -> Tensor:
        fixed = repeat_target(self._target, self._scores, times)
        return fixed.score(fixed.read(returned, self._output, inputs.apart)).values

    def _differentiated(self, variants: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Activation and gradient of variants of the images, in one batch."""
        inputs, layers = self._inputs.with_variants(variants), {self._name: self._layer}

        def read(returned: Any) -> Tensor:
            return self._read(returned, inputs, len(variants))

        chosen, layouts = {self._name: self._call}, {self._name: self._layout}
        forward = forward_pass(self._model, inputs, layers, read, None, chosen, layouts)
        with self._as_in_the_pass(), forward as (values, recordings):
            pair = gradients.differentiate(values, recordings)[self._name]
        if pair.activation is None:
            raise BadInputError(f"The layer {self._name!r} did not run on changed images as it had before.")
        activation = self._layout.to_maps(pair.activation)
        missing = torch.full_like(activation, torch.nan)
        return activation, missing if pair.gradient is None else self._layout.to_maps(pair.gradient)

    @contextmanager
    def _replacing(self, variants: range, change: ChangeActivation) -> Iterator[None]:
        """Let the rest of the network get a changed activation, one variant for each batch of samples."""
        handle = self._layer.register_forward_hook(self._replacing_hook(variants, change), prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def _replacing_hook(self, variants: range, change: ChangeActivation) -> Callable[..., Any]:
        calls = 0

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            activation = self._layout.find_activation(output)
            if activation is None or calls - 1 != self._call:
                return None
            other = activation.detach().clone()
            maps = self._layout.to_maps(other)
            if maps.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
                raise BadInputError(
                    f"The method {self._method.name!r} changes the activation, and the layout of the layer "
                    f"{self._name!r} makes a copy of it. Use 'gradcam'."
                )
            for number, part in zip(variants, maps.chunk(len(variants)), strict=True):
                part.copy_(change(number, part))
            return capture.replaced(output, activation, other)

        return hook
