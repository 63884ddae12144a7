"""Whether three axes are signals `(N, C, W)` or grey images `(N, H, W)`, which their shape does not tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from gradcam_callback.engine.forward import hooked, prepared, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layers import named_modules
from gradcam_callback.engine.replica import ReplicaOptions, run_in_replica

_OF_SIGNALS = (nn.Conv1d, nn.ConvTranspose1d)
_OF_IMAGES = (nn.Conv2d, nn.ConvTranspose2d)


def with_axes(model: nn.Module, inputs: ModelInputs, options: ReplicaOptions) -> ModelInputs:
    """The inputs with the number of their axes of space.

    The first convolution that runs tells: in a network for signals it is one of one axis. Costs a forward pass of one
    sample where the model has both kinds; without either, they are images.

    Args:
        model: Any module that takes the inputs.
        inputs: What it gets.
        options: How the replica is made.
    """
    if inputs.axes:
        return inputs
    return replace(inputs, axes=run_in_replica(model, lambda replica: _axes(replica.model, inputs), options))


def _axes(model: nn.Module, inputs: ModelInputs) -> int:
    every = (*_OF_SIGNALS, *_OF_IMAGES)
    kinds = dict(item for item in named_modules(model) if isinstance(item[1], every))
    if len({isinstance(module, _OF_SIGNALS) for module in kinds.values()}) > 1:
        kinds = _first_to_run(model, prepared(inputs[:1], model), kinds)
    return 1 if kinds and isinstance(next(iter(kinds.values())), _OF_SIGNALS) else 2


def _first_to_run(model: nn.Module, inputs: ModelInputs, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    seen: dict[str, nn.Module] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _args: Any, _output: Any) -> None:
            seen.setdefault(name, module)

        return hook

    with hooked({name: (layer, keep(name)) for name, layer in layers.items()}):
        run_without_graph(model, inputs)
    return seen
