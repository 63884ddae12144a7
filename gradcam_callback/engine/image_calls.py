"""Which call of a layer sees the images that are shown, where the model gets others of the same shape beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine.forward import hooked, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import floating_tensors
from gradcam_callback.engine.survey import altered
from gradcam_callback.results import split_call


def calls_seeing_images(
    model: nn.Module, inputs: ModelInputs, layers: Mapping[str, nn.Module]
) -> dict[str, int | None]:
    """Of each layer the call to explain, from 0; None where it runs once, or the images change nothing in it.

    A network with two branches that share their weights runs each layer once for either image. The last call would be
    explained, and the map drawn over the other image. So the images are altered, and the last call counts whose output
    changes. That costs two forward passes without a graph.

    Args:
        model: The replica's.
        inputs: From `prepared`; the first sample counts.
        layers: Name to layer; a name with the number of a call keeps it.
    """
    named = {name: split_call(name)[1] for name in layers}
    if not inputs.has_other_images or all(call is not None for call in named.values()):
        return named
    one = inputs[:1]
    plain = _outputs(model, one, layers)
    changed = _outputs(model, one.with_images(altered(one.images)), layers)
    return {
        name: call if call is not None else _last_changed(plain[name], changed[name]) for name, call in named.items()
    }


def _last_changed(plain: list[Tensor | None], changed: list[Tensor | None]) -> int | None:
    pairs = enumerate(zip(plain, changed, strict=False))
    differing = [number for number, (one, other) in pairs if one is not None and not _equal(one, other)]
    return differing[-1] if differing and len(plain) > 1 else None


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _outputs(model: nn.Module, inputs: ModelInputs, layers: Mapping[str, nn.Module]) -> dict[str, list[Tensor | None]]:
    """What each call of each layer returns; its first floating tensor."""
    found: dict[str, list[Tensor | None]] = {name: [] for name in layers}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = next(floating_tensors(output), None)
            found[name].append(None if tensor is None else tensor.clone())

        return hook

    with hooked({name: (layer, keep(name)) for name, layer in layers.items()}):
        run_without_graph(model, inputs)
    return found
