"""One forward pass of a replica: observed, with a graph that begins at the layers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gradcam_callback.engine import capture
from gradcam_callback.engine.inputs import Inputs, ModelInputs
from gradcam_callback.engine.layouts import CHANNELS_FIRST, Layout
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.no_grad_fallback import NoGradFallback
from gradcam_callback.engine.process_state import inference_as_no_grad
from gradcam_callback.results import split_call

Read = TypeVar("Read")


class ForwardObserver(Protocol):
    """Follows a forward pass from the activation of the layer on."""

    def watching(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the model runs."""

    def begin(self, activation: Tensor) -> None:
        """Told of the activation that the rest of the network gets."""

    def continued(self, returned: Any) -> Any:
        """What the model returned, with another tensor where this one could not be changed as the model asked."""


def prepared(inputs: Inputs, model: nn.Module) -> ModelInputs:
    """The inputs on the model's device, without a history.

    Raises:
        TypeError: They are nothing that a model takes.
        ValueError: There are no images in them.
    """
    known = ModelInputs.of(inputs)
    anchor = next(model.parameters(), next(model.buffers(), known.images))
    return known.to(anchor.device)


@contextmanager
def forward_pass(
    model: nn.Module,
    inputs: ModelInputs,
    layers: Mapping[str, nn.Module],
    read: Callable[[Any], Read],
    observer: ForwardObserver | None = None,
    chosen: Mapping[str, int | None] | None = None,
    layouts: Mapping[str, Layout] = MappingProxyType({}),
) -> Iterator[tuple[Read, dict[str, capture.Recording]]]:
    """Run the model once, with a graph that begins at the layers. To be used within `isolated`.

    Args:
        model: The replica's.
        inputs: From `prepared`.
        layers: Name to layer, of that model.
        read: Takes what is needed out of what the model returns, while the pass is still observed.
        observer: Follows what forward does with the activations.
        chosen: Name to the call to explain; by default what the names say.
        layouts: Name to layout; channels first where there is none.

    Yields:
        What was read, and what was recorded at the layers.
    """
    begun = None if observer is None else observer.begin
    calls = {name: split_call(name)[1] for name in layers} if chosen is None else chosen
    finders = {name: layouts.get(name, CHANNELS_FIRST).find_activation for name in layers}
    with capture.recorded(layers, finders, begun, calls) as recordings:
        if observer is not None:
            with observer.watching(model):
                taken = read(observer.continued(call_model(model, inputs)))
        else:
            with inference_as_no_grad():
                taken = _run_with_fallback(model, inputs, read, recordings)
        for recording in recordings.values():
            recording.closed = True
        yield taken, recordings


def _run_with_fallback(
    model: nn.Module, inputs: ModelInputs, read: Callable[[Any], Read], recordings: Mapping[str, capture.Recording]
) -> Read:
    """A second time, where gradients made a call impossible, with such calls done without them."""
    try:
        return read(call_model(model, inputs))
    except (RuntimeError, BufferError) as error:
        if is_out_of_memory(error):
            raise
        for recording in recordings.values():
            recording.clear()
        try:
            with NoGradFallback() as fallback:
                return read(fallback.continued(call_model(model, inputs)))
        except (RuntimeError, BufferError):
            raise error from None


def run_without_graph(model: nn.Module, inputs: ModelInputs) -> Any:
    """Run the model once, as validation does."""
    with torch.no_grad(), inference_as_no_grad():
        return call_model(model, inputs)


def call_model(model: nn.Module, inputs: ModelInputs) -> Any:
    """Call the model. In a traceback, what lies further in than this function is the model's."""
    return inputs.call(model)


def raised_by_model(error: BaseException) -> bool:
    """Whether an error was raised in the model's own forward pass."""
    return any(frame.f_code is call_model.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def count_calls(model: nn.Module, inputs: ModelInputs, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """How often layers run in a forward pass. Costs one. A scripted module takes no hooks, and its count is 0."""
    counts = dict.fromkeys(layers, 0)

    def count(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
            counts[name] += 1

        return hook

    with hooked({name: (layer, count(name)) for name, layer in layers.items()}):
        run_without_graph(model, inputs)
    return counts


@contextmanager
def hooked(hooks: Mapping[str, tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks for the time being. Scripted modules take none, and are passed over."""
    handles = []
    try:
        for module, hook in hooks.values():
            with suppress(RuntimeError) if isinstance(module, torch.jit.ScriptModule) else nullcontext():
                handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
