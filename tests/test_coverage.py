"""Networks that people train: which layer "auto" takes, whether the map is right, and whether its cells are in place.

A part of them runs with the other tests. `make coverage` runs all, and writes `benchmarks/coverage.md`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.errors import BadInputError

TOLERANCE = 1e-4
# In shares of the image: two halves of a map may lie so far the wrong way, because with random weights some networks
# mix all cells alike.
MIXED = 0.01
STRIDE = 23


class Logits(nn.Module):
    """A model that returns logits in a structure, as grad-cam wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))


def without_zeros(model: nn.Module) -> nn.Module:
    """Some heads begin with weights of zero, and then there is no gradient to be compared."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.02)
    return model


def logits_of(returned: Any) -> Tensor:
    return returned if isinstance(returned, Tensor) else returned.get("logits", returned[0])


def reshaped(activation: Any, layout: str, grid: tuple[int, int], model: nn.Module) -> Tensor:
    """Maps, by what the documentation of grad-cam says of each kind of network; written apart from the package."""
    tensor = activation if isinstance(activation, Tensor) else activation[0]
    if layout == "channels first":
        return tensor
    if layout == "channels last":
        return tensor.permute(0, 3, 1, 2)
    extras = tensor.shape[1] - grid[0] * grid[1]
    # Class tokens and registers stand in front in all of these networks.
    return tensor[:, extras:].reshape(len(tensor), *grid, tensor.shape[2]).permute(0, 3, 1, 2)


def by_autograd(model: nn.Module, images: Tensor, layer: str, as_maps: Any) -> tuple[Tensor, Tensor]:
    """The map by plain autograd over the whole network, and the activation as maps with the graph from the images."""
    seen: list[Any] = []
    images = images.clone().requires_grad_()
    module = model.get_submodule(layer)
    handles = [module.register_forward_hook(lambda _module, _args, output: seen.append(output)), _keep_values(module)]
    scores = logits_of(model(images)).amax(1)
    for handle in handles:
        handle.remove()
    activation = seen[-1] if isinstance(seen[-1], Tensor) else seen[-1][0]
    (gradient,) = torch.autograd.grad(scores.sum(), activation, retain_graph=True)
    maps = as_maps(activation)
    cam = (as_maps(gradient).mean((2, 3), keepdim=True) * maps).sum(1).relu()
    return cam.detach(), torch.stack(_centres(maps, images))


def _centres(maps: Tensor, images: Tensor) -> list[Tensor]:
    """For the upper, lower, left and right half of the maps, where in the image they come from: `(4, 2)` in 0..1."""
    height, width = maps.shape[2:]
    halves = [maps[:, :, : height // 2], maps[:, :, height - height // 2 :]]
    halves += [maps[..., : width // 2], maps[..., width - width // 2 :]]
    centres = []
    for half in halves:
        if half.numel() == 0:  # of a single row or column
            centres.append(torch.full((2,), 0.5))
            continue
        scaled = half / half.detach().abs().amax().clamp(min=1e-30)
        (gradient,) = torch.autograd.grad(scaled.square().sum(), images, retain_graph=True)
        weight = gradient.abs().sum((0, 1))
        rows, columns = (torch.linspace(0, 1, side) for side in weight.shape)
        total = weight.sum().clamp(min=1e-30)
        centres.append(torch.stack([(weight.sum(1) * rows).sum() / total, (weight.sum(0) * columns).sum() / total]))
    return centres


def _keep_values(module: nn.Module) -> Any:
    """Hand a copy of what a layer returns on: what follows may write into it, and both oracles would see that."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return output.clone() if isinstance(output, Tensor) else None

    return module.register_forward_hook(hook)


def by_grad_cam(model: nn.Module, images: Tensor, layer: str, as_maps: Any) -> Tensor | None:
    """What grad-cam computes, before it is enlarged and stretched to 0..1; None where the layer returns a structure."""
    wrapped = Logits(model)
    activations, gradients = list[Tensor](), list[Tensor]()
    with GradCAM(wrapped, [wrapped.model.get_submodule(layer)], reshape_transform=as_maps) as cam:
        handle = _keep_values(wrapped.model.get_submodule(layer))
        logits = cam.activations_and_grads(images)
        handle.remove()
        wrapped.zero_grad()
        logits.amax(1).sum().backward()
        held = cam.activations_and_grads
        activations, gradients = list(held.activations), list(held.gradients)  # emptied on the way out
    if not gradients:
        return None
    return (gradients[-1].mean((2, 3), keepdim=True) * activations[-1]).sum(1).relu().detach()


def off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


def cases() -> list[Any]:
    return [
        pytest.param(network, marks=() if number % STRIDE == 0 else pytest.mark.coverage, id=str(network))
        for number, network in enumerate(zoo.networks())
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", cases())
def test_the_map_of_a_network_is_right(network: zoo.Network, record_property: Any, caplog: Any) -> None:
    torch.manual_seed(0)
    try:
        model, images = without_zeros(network.make().eval()), torch.rand(2, 3, *network.size)
    except (ImportError, ValueError, AttributeError) as error:
        pytest.skip(f"it cannot be built from its configuration alone: {error}")
    row = {"network": network.name, "source": network.source}
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:
        record_property("coverage", {**row, "verdict": f"takes no such images: {type(error).__name__}"})
        pytest.skip("the network itself raises on images")
    try:
        result = compute_cam(model, images)
    except BadInputError as refusal:
        return record_property("coverage", {**row, "verdict": f"refused: {refusal}"})
    [(layer, ours)] = result.cams.items()
    layout, grid = result.layouts[layer], (ours.shape[1], ours.shape[2])

    def as_maps(activation: Any) -> Tensor:
        return reshaped(activation, layout.partition(",")[0], grid, model)

    plain, centres = by_autograd(model, images, layer, as_maps)
    upper, lower, left, right = centres
    theirs = by_grad_cam(model, images, layer, as_maps)
    is_partial = any("a part of the signal" in record.message for record in caplog.records)
    row |= {
        "layer": layer,
        "layout": layout,
        "cells": f"{grid[0]} x {grid[1]}",
        "error": off(ours, plain),
        **({} if theirs is None else {"agreement": off(ours, theirs)}),
        "in place": bool(upper[0] - lower[0] < MIXED and left[1] - right[1] < MIXED),
        "verdict": "said to be a part" if is_partial else "",
    }
    right_map = row["error"] < TOLERANCE and row.get("agreement", 0) < TOLERANCE and row["in place"]
    row["verdict"] = row["verdict"] or ("right" if right_map else "wrong")
    record_property("coverage", row)
    assert row["verdict"] == "right" or (is_partial and row["error"] < TOLERANCE), str(row)
