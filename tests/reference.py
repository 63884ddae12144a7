"""Class activation maps by plain autograd, from the papers alone: the oracle of the engine.

Nothing here knows how the package works. A copy of the model runs in eval mode with every parameter requiring a
gradient, a hook keeps the layer's output and hands a copy of it on (so that an in-place operation after the layer
changes the copy), and autograd differentiates the sum of the scores. The maps are written as the papers write them,
in float64 whatever the model's precision, so that only the network's own rounding is left.

Axes: `N` images, `K` channels of the activation, `h w` its space.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pick = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Evidence:
    """What one layer saw: `activation` and `gradient` are `(N, K, h, w)`, `scores` and `targets` `(N,)`."""

    activation: Tensor
    gradient: Tensor
    scores: Tensor
    targets: Tensor


def differentiate(
    model: nn.Module,
    inputs: Any,
    layer: str,
    target: str | int | Sequence[int] = "predicted",
    *,
    logits_of: Pick = lambda output: output,
    tensor_of: Pick = lambda output: output,
    call: int | None = None,
) -> Evidence:
    """Activation and gradient at a layer, with everything open to autograd.

    Args:
        model: Any network; it is copied, not touched.
        inputs: What its forward takes.
        layer: Dotted name of a module that runs once, or more often where `call` is given.
        target: "predicted", a class for all images, or one class an image.
        logits_of: Finds the `(N, L)` logits in what forward returns.
        tensor_of: Finds the `(N, K, h, w)` activation in what the layer returns.
        call: Which of the layer's calls, counted from 0.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        kept.append(tensor_of(output))
        return tuple(part.clone() for part in output) if isinstance(output, tuple) else output.clone()

    handle = twin.get_submodule(layer).register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():
        logits = logits_of(twin(_plain(inputs)))
        targets = _classes(logits, target)
        scores = logits.gather(1, targets[:, None])[:, 0]
        (activation,) = kept if call is None else kept[call : call + 1]
        (gradient,) = torch.autograd.grad(scores.sum(), activation)
    handle.remove()
    return Evidence(activation.detach(), gradient, scores.detach(), targets)


def _plain(inputs: Any) -> Any:
    """Inputs made in inference mode cannot be saved for backward; a copy can."""
    return inputs.clone() if isinstance(inputs, Tensor) else inputs


def _classes(logits: Tensor, target: str | int | Sequence[int]) -> Tensor:
    if target == "predicted":
        return logits.argmax(1)
    if isinstance(target, int):
        return torch.full((len(logits),), target, device=logits.device)
    return torch.as_tensor(target, device=logits.device)


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """Selvaraju et al., 2017, equations 1 and 2: each channel weighted by its mean gradient."""
    weights = g.mean(dim=(2, 3), keepdim=True)
    return (weights * a).sum(1)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Chattopadhay et al., 2018: alpha in closed form, with the score's own powers, not those of its exponential."""
    denominator = 2 * g**2 + a.sum(dim=(2, 3), keepdim=True) * g**3
    alpha = torch.where(denominator == 0, torch.zeros_like(g), g**2 / denominator)
    weights = (alpha * g.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    return (weights * a).sum(1)


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    """Draelos and Carin, 2020: the gradient itself, place by place."""
    return (g * a).sum(1)


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    """Fu et al., 2020: gradients weighted by the share of each place in its channel's activation."""
    total = a.sum(dim=(2, 3), keepdim=True)
    share = torch.where(total == 0, torch.zeros_like(a), a / total)
    weights = (share * g).sum(dim=(2, 3), keepdim=True)
    return (weights * a).sum(1)


def layercam(a: Tensor, g: Tensor) -> Tensor:
    """Jiang et al., 2021: the positive part of the gradient, place by place."""
    return (g.clamp(min=0) * a).sum(1)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "hirescam": hirescam,
    "xgradcam": xgradcam,
    "layercam": layercam,
}


def maps_of(evidence: Evidence, method: str) -> Tensor:
    """The map, its negative part cut off: float64 `(N, h, w)`."""
    return METHODS[method](evidence.activation.double(), evidence.gradient.double()).clamp(min=0)


def reference_cam(model: nn.Module, inputs: Any, layer: str, method: str = "gradcam", **options: Any) -> Tensor:
    """The map of one layer from scratch: float64 `(N, h, w)`; `options` are those of `differentiate`."""
    return maps_of(differentiate(model, inputs, layer, **options), method)


def relative_error(ours: Tensor, reference: Tensor) -> Tensor:
    """The largest difference in each map over the largest value of the reference: `(N,)`.

    Where the reference is zero everywhere, the result is 0 if ours is too, and infinity otherwise.
    """
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} is not {tuple(reference.shape)}"
    difference = (ours.double() - reference.double()).abs().amax(dim=(1, 2))
    peak = reference.double().abs().amax(dim=(1, 2))
    return torch.where(difference == 0, torch.zeros_like(difference), difference / peak)
