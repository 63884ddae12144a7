"""The weights of a replica randomised, group by group, from the score backwards.

Note [Weights that are drawn]

A weight with two axes or more is drawn from a normal distribution around 0 with the root mean square of its own values,
and one with a single axis (a bias, a gain) around its own mean with its own deviation: as weights are initialised, but
at the scale that training gave them, so that activations neither vanish nor explode on the way. A weight that is the
same everywhere along its only axis stays, since it holds nothing but its scale. So do buffers, such as the running
statistics of a batch normalisation.

Note [The order of the weights]

A module is as late as the last operation in the forward pass that uses a weight of its own, whoever calls it: the
weights of a transformer's attention are used by functions, and hooks would not see them. What no operation uses is left
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from gradcam_callback.engine.batch_rows import leaves
from gradcam_callback.engine.forward import hooked, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs

MOST_GROUPS = 12
ROOT = "(model)"
"""What the model itself is called, where it has weights that are in no module below it."""

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Cascade:
    """What is randomised, in order.

    Attributes:
        groups: Names of modules with weights of their own, those that are used last first.
        later: Layer to how many of the groups are used after its explained call, and not before.
    """

    groups: Groups
    later: Mapping[str, int]


def plan_cascade(
    model: nn.Module, inputs: ModelInputs, layers: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> Cascade:
    """Find out in what order a model uses its weights. Costs one forward pass. To be used within `isolated`.

    Args:
        model: The replica's.
        inputs: From `prepared`.
        layers: Name to layer, of that model.
        calls: Name to the number of the call that is explained, from 0.

    Returns:
        The modules one by one; of many, in about twelve groups: more only where a group ends at a layer. The
        first group is a single module, the head mostly.
    """
    weights = own_weights(model)
    uses = _Uses({id(weight) for held in weights.values() for weight in held})
    ended: dict[str, list[int]] = {name: [] for name in layers}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: ended[name].append(uses.count)

    with hooked({name: (layer, note(name)) for name, layer in layers.items()}), uses:
        run_without_graph(model, inputs)
    last = {name: max((uses.last.get(id(weight), -1) for weight in held), default=-1) for name, held in weights.items()}
    order = sorted((name for name in last if last[name] >= 0), key=lambda name: -last[name])
    ends = {name: times[calls[name]] if 0 <= calls[name] < len(times) else math.inf for name, times in ended.items()}
    return grouped(order, {name: sum(last[module] >= end for module in order) for name, end in ends.items()})


def grouped(order: Sequence[str], later: Mapping[str, int]) -> Cascade:
    """The modules in groups; `later` tells of each layer how many of the modules come after it."""
    size = max(1, math.ceil(len(order) / MOST_GROUPS))
    cuts = sorted({0, min(1, len(order)), *later.values(), len(order)})
    groups = [
        tuple(order[first : min(first + size, end)])
        for start, end in pairwise(cuts)
        for first in range(start, end, size)
    ]
    ends = [sum(map(len, groups[: number + 1])) for number in range(len(groups))]
    return Cascade(tuple(groups), {layer: sum(end <= count for end in ends) for layer, count in later.items()})


def own_weights(model: nn.Module) -> dict[str, list[Tensor]]:
    """Name to the floating-point weights of each module that has its own; one of several modules is of the first."""
    seen: set[int] = set()
    found: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            if weight.is_floating_point() and not is_lazy(weight) and id(weight) not in seen:
                seen.add(id(weight))
                found.setdefault(_plain(name) or ROOT, []).append(weight)
    return found


def _plain(name: str) -> str:
    """The name before anything was compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def randomise(model: nn.Module, modules: Sequence[str], seed: int) -> None:
    """Give the weights of some modules of a replica other memory, with drawn values in it.

    The weights stay the same objects, so whatever holds them (a list, another module) has the drawn values, too. The
    memory that they had, which is that of the model's weights, is not written to. See Note [Weights that are drawn].

    Args:
        model: The replica's, and never another.
        modules: Their names, as of `own_weights`.
        seed: The same one draws the same values for a module, whatever else is randomised, on each device.
    """
    wanted = set(modules)
    for number, (name, weights) in enumerate(own_weights(model).items()):
        if name in wanted:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            for weight in weights:
                weight.data = _drawn(weight, generator)


@torch.no_grad()
def _drawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    values = weight.detach().float()
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    if weight.ndim > 1:
        noise = noise * values.square().mean().sqrt()
    else:
        noise = values.mean() + noise * values.std(correction=0)
    return torch.empty_like(weight.detach()).copy_(noise)  # as it lies in memory


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and notes at which one a weight was used last."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.last: dict[int, int] = {}
        self._weights = weights

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call an operation of torch, and look at what it gets."""
        for leaf in leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self._weights:
                self.last[id(leaf)] = self.count
        self.count += 1
        return func(*args, **(kwargs or {}))
