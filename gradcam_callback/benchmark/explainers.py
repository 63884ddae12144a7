"""What is compared: our methods, those of other packages, and two maps that know nothing of the network.

Each makes maps in 0..1 of the images' size, for given classes, at a given layer, as its own documentation shows it.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.engine.explain import compute_cam
from gradcam_callback.engine.methods import METHODS, PER_CHANNEL
from gradcam_callback.results import normalise

Explain = Callable[[nn.Module, str, Tensor, Tensor], Tensor]
"""From a network, the name of a layer, images `(N, C, H, W)` and classes `(N,)` to maps `(N, H, W)`."""

OURS, BASELINE = "gradcam_callback", "knows nothing of the network"
EDGES = "edge filter"
_FOR_TOKENS = ("gradient_rollout",)
_OF_GRAD_CAM = (
    *("GradCAM", "GradCAMPlusPlus", "HiResCAM", "XGradCAM", "LayerCAM", "GradCAMElementWise"),
    *("EigenCAM", "EigenGradCAM", "ScoreCAM", "AblationCAM"),
)
_OF_TORCHCAM = ("GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM", "ScoreCAM")


@dataclass(frozen=True)
class Explainer:
    """One way to make maps.

    Attributes:
        family: Whose it is.
        name: What its makers call it.
        explain: Makes the maps.
        is_slow: Whether it runs the network once for each channel of the layer.
    """

    family: str
    name: str
    explain: Explain
    is_slow: bool = False


def explainers(*, others: bool = True, slow: bool = True) -> Iterator[Explainer]:
    """All of them that are installed.

    Args:
        others: Whether those of other packages are wanted.
        slow: Whether those are wanted that run the network once for each channel.
    """
    for name, method in METHODS.items():
        is_slow = method.extra_forwards == PER_CHANNEL
        if name not in _FOR_TOKENS and (slow or not is_slow):
            yield Explainer(OURS, name, partial(_ours, name), is_slow)
    if others:
        yield from (one for one in _others() if slow or not one.is_slow)
    yield Explainer(BASELINE, EDGES, _edges)
    yield Explainer(BASELINE, "noise", _noise)


def missing_packages() -> list[str]:
    """The packages that would be compared, and are not installed."""
    packages = {"grad-cam": "pytorch_grad_cam", "captum": "captum", "torchcam": "torchcam"}
    return [name for name, module in packages.items() if importlib.util.find_spec(module) is None]


def _others() -> Iterator[Explainer]:
    absent = missing_packages()
    if "grad-cam" not in absent:
        for name in _OF_GRAD_CAM:
            yield Explainer("grad-cam", name, partial(_by_grad_cam, name), name in ("ScoreCAM", "AblationCAM"))
    if "captum" not in absent:
        yield Explainer("captum", "LayerGradCam", _by_captum)
    if "torchcam" not in absent:
        for name in _OF_TORCHCAM:
            yield Explainer("torchcam", name, partial(_by_torchcam, name), name == "ScoreCAM")


def _ours(method: str, model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    return compute_cam(model, images, layer, target=classes, method=method).heatmaps()[layer]


def _by_grad_cam(name: str, model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(one)) for one in classes]
    make, module = getattr(pytorch_grad_cam, name), model.get_submodule(layer)
    with redirect_stderr(io.StringIO()), make(model, [module]) as extractor:  # a bar is drawn for each image
        return torch.as_tensor(extractor(images, targets))


def _by_captum(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    from captum.attr import LayerGradCam

    maps = LayerGradCam(model, model.get_submodule(layer)).attribute(images, classes, relu_attributions=True)
    return _enlarged(maps[:, 0].detach(), images)


def _by_torchcam(name: str, model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    from torchcam import methods

    options: dict[str, Any] = {"input_shape": tuple(images.shape[1:])} if name != "GradCAM" else {}
    with getattr(methods, name)(model, layer, **options) as extractor:
        scores = model(images)
        [maps] = extractor(classes.tolist(), scores)
    return _enlarged(maps.detach(), images)


def _edges(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """The magnitude of the Sobel filter of the image's grey values, blurred over five pixels."""
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    both = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    magnitude = both.square().sum(dim=1, keepdim=True).sqrt()
    return normalise(F.avg_pool2d(magnitude, 5, stride=1, padding=2, count_include_pad=False)[:, 0])


def _noise(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(images), *images.shape[2:], generator=generator)


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None].float(), images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return normalise(large)
