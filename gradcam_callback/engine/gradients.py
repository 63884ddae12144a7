"""One forward, one partial backward: activation and gradient per layer. A room: layers and scores are given to it.

Note [Cut at the layer]

The model runs inside `isolation`: gradients are on and nothing requires one, so the forward pass stores nothing. At a
target layer a hook makes the output a leaf and hands a clone of it on. From there on a graph is recorded, and it is
recorded only there: what comes before the layer costs what it costs without gradients. The clone matters: an in-place
operation after the layer (a ReLU, mostly) changes the clone, and not the activation that the map is made of. Where a
layer returns its own input, it is the other way round: the leaf is the copy, and the graph begins in the tensor itself.

An output that already depends on an earlier leaf is not cut off from it, or the earlier layer would lose its gradient.
So it is with the calls of a layer that runs more than once, too: each has the total derivative, also the first call of
a recurrence, through all that follow.

Note [One call of several]

Where one call is chosen, the others begin a graph too, as long as gradients are on anyway. It would do without: but a
checkpointed block runs again during backward, call after call in an order that nobody knows, and there it has to save
what it saved in the forward pass. But they leave gradients off where the model has switched them off: on the way from
the chosen call to the score that is a cut, and the map must not show what gets past it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradcam_callback.engine.memory import is_out_of_memory

# Half precision has no number between 0 and 6e-8. Gradients of a score are small, so they are computed this much
# larger and divided afterwards; a power of two loses nothing.
_HALF_PRECISION_SCALE = 1024.0


@dataclass
class Recording:
    """What one forward pass left at one layer.

    Attributes:
        chosen: The number of the call to explain, from 0, or from the end if it is below; None takes the last that the
            score depends on.
        calls: The activations, one a call of the layer, that gradients are taken with respect to; None where a call
            returned none, or began no graph.
        refused: Of each call that returned no activation, its number and what it returned.
        reopened: The calls that ran where the model had switched gradients off, behind another call of the pass.
            Switching them on there gives that other call a part of a gradient that it has not.
        closed: Whether the forward pass is over. A checkpointed block runs the layer again during backward.
        bypassed: Whether the layer takes no hooks, because it is scripted.
    """

    chosen: int | None = None
    calls: list[Tensor | None] = field(default_factory=list)
    refused: dict[int, Any] = field(default_factory=dict)
    reopened: list[int] = field(default_factory=list)
    closed: bool = False
    bypassed: bool = False

    def clear(self) -> None:
        """Forget the pass, to begin another."""
        self.calls.clear()
        self.refused.clear()
        self.reopened.clear()

    def begins_at(self, activation: Tensor) -> bool:
        """Whether the call that is going on begins a graph. See Note [One call of several]."""
        if torch.is_grad_enabled() or self.chosen is None or self.chosen < 0:
            return True
        if not self.closed:
            return len(self.calls) == self.chosen
        original = self.calls[self.chosen] if self.chosen < len(self.calls) else None
        return original is not None and torch.equal(original, activation)

    def which(self, reached: Callable[[Tensor], bool]) -> int:
        """The number of the call to explain, from 0, also where it did not happen."""
        count = len(self.calls)
        if self.chosen is not None:
            return self.chosen + count if -count <= self.chosen < 0 else self.chosen
        begun = [number for number, call in enumerate(self.calls) if call is not None]
        alive = [number for number in begun if (call := self.calls[number]) is not None and reached(call)]
        return (alive or begun or [max(count - 1, 0)])[-1]


@contextmanager
def recorded(
    layers: Mapping[str, nn.Module],
    find_activation: Callable[[Any], Tensor | None],
    begun: Callable[[Tensor], None] | None = None,
    chosen: Mapping[str, int | None] = MappingProxyType({}),
) -> Iterator[dict[str, Recording]]:
    """Record the activations of layers while the model runs, each the beginning of a graph.

    See Note [Cut at the layer].

    Args:
        layers: Name to module.
        find_activation: From what a layer returned to its activation `(N, K, h, w)`, or None.
        begun: Told of each activation that is handed on to the rest of the network, and that may be explained. A call
            that is chosen from the end it cannot know.
        chosen: Name to the call to explain, as of `Recording`; a name that is missing has None.

    Yields:
        Name to recording, filled while the model runs; emptied on the way out, so that no tensor outlives the pass.
        Whether gradients are on is put back there too: a layer in a `no_grad` block switches them on.
    """
    recordings = {name: Recording(chosen.get(name)) for name in layers}

    def attach(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            activation, recording = find_activation(output), recordings[name]
            if activation is None or not recording.begins_at(activation):
                if not recording.closed:
                    recording.refused |= {len(recording.calls): output} if activation is None else {}
                    recording.calls.append(None)
                return None
            behind = any(call is not None for other in recordings.values() for call in other.calls)
            reopened = behind and not torch.is_grad_enabled()
            leaf, handed_on = _begin_graph(activation, is_input=any(given is activation for given in args))
            if not recording.closed:
                recording.reopened += [len(recording.calls)] if reopened else []
                if begun is not None and recording.chosen in (None, len(recording.calls)):
                    begun(handed_on)
                recording.calls.append(leaf)
            return replaced(output, activation, handed_on)

        return hook

    with ExitStack() as stack:
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.callback(recordings.clear)
        for name, module in layers.items():
            handle = _hooked(module, attach(name))
            recordings[name].bypassed = handle is None
            if handle is not None:
                stack.callback(handle.remove)
        yield recordings


def _hooked(layer: nn.Module, hook: Any) -> RemovableHandle | None:
    # First in line: a hook of the user's (one that detaches the feature map, say) is on the way to the score.
    try:
        return layer.register_forward_hook(hook, prepend=True)
    except RuntimeError:
        if not isinstance(layer, torch.jit.ScriptModule):
            raise
        return None  # a traced module takes hooks, a scripted one refuses them


def _begin_graph(activation: Tensor, *, is_input: bool) -> tuple[Tensor, Tensor]:
    """The activation as a point to differentiate at, and the tensor that the rest of the network gets."""
    # The layer may lie in a `no_grad` block of the model. Gradients stay on from here to the end of that block; then
    # the block restores what was on before it.
    torch.set_grad_enabled(True)
    with torch.inference_mode(False):
        if activation.requires_grad:
            return activation, activation.clone()
        if is_input and activation.grad_fn is None and not activation.is_inference() and activation._base is None:
            # An in-place layer, or one that passes its input on: others may hold the same tensor under another name.
            # So the graph begins in that tensor itself.
            leaf = activation.clone().requires_grad_()
            return leaf, activation.copy_(leaf)
        plain = activation.clone() if activation.is_inference() else activation.detach()
        leaf = plain.requires_grad_()
        return leaf, leaf.clone()


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The same structure with one tensor exchanged."""
    if output is old:
        return new
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(replaced(value, old, new) for value in output))
    if isinstance(output, (tuple, list)):
        return type(output)(replaced(value, old, new) for value in output)
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        for key, value in output.items():
            changed[key] = replaced(value, old, new)
        return changed
    return output


@dataclass(frozen=True)
class LayerGradient:
    """One layer's activation and the gradient of the scores with respect to it.

    Attributes:
        activation: `(N, K, h, w)`, float32 or float64; None where the call did not happen or has no space in it.
        gradient: The same shape; None where there is none.
        refused: What the call returned instead of an activation.
        failure: What torch said when it would not go backward, or why we do not take its word.
        bypassed: Whether the layer takes no hooks, so that nothing is known of it.
        calls: How often the layer ran.
        call: Which call this is, counted from 0; not below `calls` where it did not happen.
    """

    activation: Tensor | None
    gradient: Tensor | None
    refused: Any = None
    failure: str = ""
    bypassed: bool = False
    calls: int = 0
    call: int = 0


def differentiate(
    scores: Tensor, recordings: Mapping[str, Recording], *, keep_graph: bool = False
) -> dict[str, LayerGradient]:
    """The gradient of each sample's score with respect to each layer's activation.

    The samples of a batch do not depend on each other in evaluation mode, so one backward pass over the sum of the
    scores gives each sample its own gradient. It stops at the layers.

    Args:
        scores: `(N,)`, computed while the recordings were made.
        recordings: From `recorded`.
        keep_graph: Whether other scores of the same forward pass will follow.

    Returns:
        Layer to activation and gradient. Of a layer that ran more than once, the call that was chosen; if none was, the
        last that the score depends on.

    Raises:
        RuntimeError: There is too little memory to go backward, which says nothing about the graph.
    """
    # As they are now: backward may run a checkpointed block again, and the layer's hook with it.
    recordings = {name: replace(recording, calls=list(recording.calls)) for name, recording in recordings.items()}
    points = [call for recording in recordings.values() for call in recording.calls if call is not None]
    taken: list[Tensor | None] = [None] * len(points)
    failure = ""
    try:
        taken = _gradients(scores, points, keep_graph)
    except Exception as error:  # the model ran, and its graph cannot be gone back: that is a finding, not an end
        if is_out_of_memory(error):
            raise
        failure = str(error) or type(error).__name__  # of any type, out of the backward of a custom function
    found = {id(point): (gradient, failure) for point, gradient in zip(points, taken, strict=True)}
    return {name: _layer_gradient(recording, found) for name, recording in recordings.items()}


def _layer_gradient(recording: Recording, found: Mapping[int, tuple[Tensor | None, str]]) -> LayerGradient:
    number, count = recording.which(lambda call: found[id(call)][0] is not None), len(recording.calls)
    activation = recording.calls[number] if 0 <= number < count else None
    if activation is None:
        refused = recording.refused.get(number)
        return LayerGradient(None, None, refused, bypassed=recording.bypassed, calls=count, call=number)
    gradient, failure = found[id(activation)]
    wide = None if gradient is None else _wide(gradient)
    return LayerGradient(_wide(activation.detach()), wide, failure=failure, calls=count, call=number)


def _gradients(scores: Tensor, points: list[Tensor], keep_graph: bool) -> list[Tensor | None]:
    if not points or not scores.requires_grad:
        return [None] * len(points)
    if torch.float16 not in {tensor.dtype for tensor in (scores, *points)}:
        return _backward(scores, points, 1.0, keep_graph)
    scaled = _backward(scores, points, _HALF_PRECISION_SCALE, True)
    fine = [None if gradient is None else _wide(gradient) / _HALF_PRECISION_SCALE for gradient in scaled]
    finite = [gradient.isfinite().all() for gradient in fine if gradient is not None]
    if not finite or bool(torch.stack(finite).all()):  # in one piece: it waits for the device
        return fine
    return list(map(_joined, fine, _backward(scores, points, 1.0, keep_graph)))


def _joined(fine: Tensor | None, coarse: Tensor | None) -> Tensor | None:
    """Of each sample the fine gradient, and only where that overflowed the coarse one."""
    if fine is None or coarse is None:
        return None
    finite = fine.flatten(1).isfinite().all(1)
    return torch.where(finite[:, None, None, None], fine, _wide(coarse))


def _backward(scores: Tensor, points: list[Tensor], scale: float, keep_graph: bool) -> list[Tensor | None]:
    weight = torch.full_like(scores, scale)
    return list(torch.autograd.grad(scores, points, weight, retain_graph=keep_graph, allow_unused=True))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
