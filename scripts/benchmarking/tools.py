"""The tools that are compared: each makes Grad-CAM maps of the predicted class, as its own documentation shows it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.methods import METHODS

FORWARD, LEAST, OURS = "forward alone", "least work", "gradcam_callback"


@dataclass(frozen=True)
class Setting:
    """One network, one of its layers, and a batch; `size` is the images' height and width in pixels."""

    network: str
    layer: str
    images: int
    size: int
    device: str

    def __str__(self) -> str:
        return f"{self.network} {self.layer}, {self.images} images"

    def load(self) -> tuple[nn.Module, Tensor]:
        """The network with random weights, in eval mode, and its images `(N, 3, size, size)`, both on the device."""
        torch.manual_seed(0)
        model = torchvision.models.get_model(self.network).eval().to(self.device)
        return model, torch.randn(self.images, 3, self.size, self.size, device=self.device)


def forward_alone(model: nn.Module, images: Tensor, layer: str) -> Any:
    with torch.no_grad():
        return model(images)


def least_work(model: nn.Module, images: Tensor, layer: str) -> Any:
    """The graph begins at the layer and stores nothing for weights; nothing is checked."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # until the `no_grad` block ends
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:  # or the layers behind the cut would keep what the gradients of their weights need
        parameter.requires_grad_(False)
    handle = model.get_submodule(layer).register_forward_hook(cut)
    with torch.no_grad():
        scores = model(images).amax(dim=1)
        (gradient,) = torch.autograd.grad(scores.sum(), leaves[0])
    handle.remove()
    for parameter in trainable:
        parameter.requires_grad_(True)
    return torch.einsum("nk,nkhw->nhw", gradient.mean(dim=(2, 3)), leaves[0].detach()).relu()


def ours(model: nn.Module, images: Tensor, layer: str) -> Any:
    return compute_cam(model, images, layer, target="predicted")


def by_method(method: str, model: nn.Module, images: Tensor, layer: str) -> Any:
    return compute_cam(model, images, layer, target="predicted", method=method)


def by_grad_cam(model: nn.Module, images: Tensor, layer: str) -> Any:
    from pytorch_grad_cam import GradCAM

    with GradCAM(model, [model.get_submodule(layer)]) as extractor:
        return extractor(images, None)


def by_captum(model: nn.Module, images: Tensor, layer: str) -> Any:
    from captum.attr import LayerGradCam

    with torch.no_grad():
        classes = model(images).argmax(dim=1)  # it has to be told the class
    return LayerGradCam(model, model.get_submodule(layer)).attribute(images, classes, relu_attributions=True)


def by_torchcam(model: nn.Module, images: Tensor, layer: str) -> Any:
    from torchcam.methods import GradCAM

    with GradCAM(model, layer) as extractor:
        scores = model(images)
        return extractor(scores.argmax(dim=1).tolist(), scores)


TOOLS: dict[str, Callable[[nn.Module, Tensor, str], Any]] = {
    FORWARD: forward_alone,
    LEAST: least_work,
    OURS: ours,
    "grad-cam": by_grad_cam,
    "captum": by_captum,
    "torchcam": by_torchcam,
}
METHOD_TOOLS = {f"method {name}": partial(by_method, name) for name in METHODS}
TOOLS |= METHOD_TOOLS
_PACKAGES = {"grad-cam": "pytorch_grad_cam", "captum": "captum", "torchcam": "torchcam"}


def peers() -> list[str]:
    """The tools of others that are installed."""
    return [tool for tool, package in _PACKAGES.items() if importlib.util.find_spec(package) is not None]
