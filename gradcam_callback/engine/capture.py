"""Hooks on layers: each activation of a forward pass is recorded, and a graph begins there.

Note [Cut at the layer]

The model runs with gradients on while nothing requires one, so the forward pass stores nothing. At a target layer a
hook makes the output a leaf and hands a clone of it on. From there on a graph is recorded, and it is recorded only
there: what comes before the layer costs what it costs without gradients. The clone matters: an in-place operation after
the layer (a ReLU, mostly) changes the clone, and not the activation that the map is made of. Where a layer returns its
own input, it is the other way round: the leaf is the copy, and the graph begins in the tensor itself.

An output that already depends on an earlier leaf is not cut off from it, or the earlier layer would lose its gradient.
So it is with the calls of a layer that runs more than once, too: each has the total derivative, also the first call of
a recurrence, through all that follow.

Note [One call of several]

Where one call is selected, the others begin a graph too, as long as gradients are on anyway. It would do without: but a
checkpointed block runs again during backward, call after call in an order that nobody knows, and there it has to save
what it saved in the forward pass. But they leave gradients off where the model has switched them off: on the way from
the selected call to the score that is a cut, and the map must not show what gets past it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class Recording:
    """What one forward pass left at one layer.

    Attributes:
        chosen: The number of the call to explain, from 0, or from the end if it is below; None takes the last that the
            score depends on.
        calls: The activations, one a call of the layer, that gradients are taken with respect to; None where a call
            returned none, or began no graph.
        unusable_outputs: Of each call that returned no activation, its number and what it returned.
        grad_reenabled_calls: The calls that ran where the model had switched gradients off, behind another call of the
            pass. Switching them on there gives that other call a part of a gradient that it has not.
        closed: Whether the forward pass is over. A checkpointed block runs the layer again during backward.
        bypassed: Whether the layer takes no hooks, because it is scripted.
    """

    chosen: int | None = None
    calls: list[Tensor | None] = field(default_factory=list)
    unusable_outputs: dict[int, Any] = field(default_factory=dict)
    grad_reenabled_calls: list[int] = field(default_factory=list)
    closed: bool = False
    bypassed: bool = False

    def clear(self) -> None:
        """Forget the pass, to begin another."""
        self.calls.clear()
        self.unusable_outputs.clear()
        self.grad_reenabled_calls.clear()

    def begins_at(self, activation: Tensor) -> bool:
        """Whether the call that is going on begins a graph. See Note [One call of several]."""
        if torch.is_grad_enabled() or self.chosen is None or self.chosen < 0:
            return True
        if not self.closed:
            return len(self.calls) == self.chosen
        original = self.calls[self.chosen] if self.chosen < len(self.calls) else None
        return original is not None and torch.equal(original, activation)

    def selected_call(self, reached: Callable[[Tensor], bool]) -> int:
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
    finders: Mapping[str, Callable[[Any], Tensor | None]],
    begun: Callable[[Tensor], None] | None = None,
    chosen: Mapping[str, int | None] = MappingProxyType({}),
) -> Iterator[dict[str, Recording]]:
    """Record the activations of layers while the model runs, each the beginning of a graph.

    See Note [Cut at the layer].

    Args:
        layers: Name to module.
        finders: Name to what finds the tensor with space in it in what the layer returned, or None; as of a `Layout`.
        begun: Told of each activation that is handed on to the rest of the network, and that may be explained. A call
            that is chosen from the end it cannot know.
        chosen: Name to the call to explain, as of `Recording`; a name that is missing has None.

    Yields:
        Name to recording, filled while the model runs; emptied on the way out, so that no tensor outlives the pass.
        Whether gradients are on is put back there too: a layer in a `no_grad` block switches them on.
    """
    recordings = {name: Recording(chosen.get(name)) for name in layers}
    with ExitStack() as stack:
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.callback(recordings.clear)
        for name, module in layers.items():
            handle = _hooked(module, _recording_hook(name, recordings, finders[name], begun))
            recordings[name].bypassed = handle is None
            if handle is not None:
                stack.callback(handle.remove)
        yield recordings


def _recording_hook(
    name: str,
    recordings: Mapping[str, Recording],
    find_activation: Callable[[Any], Tensor | None],
    begun: Callable[[Tensor], None] | None,
) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        activation, recording = find_activation(output), recordings[name]
        if activation is None or not recording.begins_at(activation):
            if not recording.closed:
                recording.unusable_outputs |= {len(recording.calls): output} if activation is None else {}
                recording.calls.append(None)
            return None
        behind = any(call is not None for other in recordings.values() for call in other.calls)
        reenabled = behind and not torch.is_grad_enabled()
        leaf, handed_on = begin_graph(activation, is_input=_holds((args, kwargs), activation))
        if not recording.closed:
            recording.grad_reenabled_calls += [len(recording.calls)] if reenabled else []
            if begun is not None and recording.chosen in (None, len(recording.calls)):
                begun(handed_on)
            recording.calls.append(leaf)
        return replaced(output, activation, handed_on)

    return hook


def _hooked(layer: nn.Module, hook: Any) -> RemovableHandle | None:
    # First in line: a hook of the user's (one that detaches the feature map, say) is on the way to the score.
    try:
        return layer.register_forward_hook(hook, prepend=True, with_kwargs=True)
    except RuntimeError:
        if not isinstance(layer, torch.jit.ScriptModule):
            raise
        return None  # a traced module takes hooks, a scripted one refuses them


def _holds(value: Any, tensor: Tensor) -> bool:
    """Whether this very tensor is somewhere in nested containers."""
    if isinstance(value, Mapping):
        value = value.values()
    elif is_dataclass(value):
        value = [getattr(value, field.name, None) for field in fields(value)]
    elif not isinstance(value, (tuple, list)):
        return value is tensor
    return any(_holds(item, tensor) for item in value)


def begin_graph(activation: Tensor, *, is_input: bool) -> tuple[Tensor, Tensor]:
    """The activation as a point to differentiate at, and the tensor that the rest of the network gets."""
    # The layer may lie in a `no_grad` block of the model. Gradients stay on from here to the end of that block; then
    # the block restores what was on before it.
    torch.set_grad_enabled(True)
    with torch.inference_mode(False):
        if activation.requires_grad:
            return activation, activation.clone()
        if is_input and activation.grad_fn is None and not activation.is_inference():
            # An in-place layer, or one that passes its input on: others may hold the same tensor under another name.
            # So the graph begins in that tensor itself.
            leaf = activation.clone().requires_grad_()
            with suppress(RuntimeError):  # autograd lets no view be changed that was made without it, or by `chunk`
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
