"""Methods that are a formula of activation and gradient, and nothing else.

Each formula takes the activation `A` and the gradient `G = dy/dA` of the score `y`, both float32 `(N, K, h, w)`, and
returns float32 `(N, h, w)`, at least 0, not normalised. NaN goes in and comes out: nothing is repaired here. Of signals
the space is `w` alone, of volumes `d h w`; the sums over `ij` are over all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM: `relu(sum_k w_k A_k)` with `w_k = mean_ij G_kij`.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
    equations 1 and 2.
    """
    return _weighted(activation, gradient.mean(dim=_space(gradient)))


def gradcam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++: `relu(sum_k w_k A_k)` with `w_k = sum_ij a_kij relu(G_kij)`, `a = G^2 / (2 G^2 + G^3 sum_ij A)`.

    Chattopadhay et al., "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks",
    WACV 2018, equations 10 and 19. The paper's score is `exp(y)`; that factor is the same for all channels of an image
    and overflows, so it is left out. `a` is computed as `1 / (2 + G sum_ij A)`, which is the same number, and does not
    lose it where `G^2` underflows. Where the denominator is zero, `a` is zero.
    """
    precise = _precise(gradient)
    denominator = 2 + precise * _precise(activation).sum(dim=_space(activation), keepdim=True)
    alpha = torch.where(denominator == 0, 0, 1 / denominator)
    return _weighted(activation, (alpha * precise.relu()).sum(dim=_space(gradient)))


def hirescam(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM: `relu(sum_k G_k A_k)`, place by place.

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
    2020, equation 4; with a ReLU as in Grad-CAM, so that what is drawn speaks for the class.
    """
    return (gradient * activation).sum(dim=1).relu()


def xgradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """XGrad-CAM: `relu(sum_k w_k A_k)` with `w_k = sum_ij G_kij A_kij / sum_ij A_kij`.

    Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020, equation 7.
    A channel whose activation sums to zero has weight zero.
    """
    precise = _precise(activation)
    total = precise.sum(dim=_space(gradient))
    evidence = (precise * gradient).sum(dim=_space(gradient))
    # Divided by infinity, a number is zero and NaN is NaN: a gradient that is not finite must not become a map.
    return _weighted(activation, evidence / torch.where(total == 0, torch.inf, total))


def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM: `relu(sum_k relu(G_k) A_k)`, place by place.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", TIP 2021, equations 5 to 7.
    """
    return (gradient.relu() * activation).sum(dim=1).relu()


def gradcam_elementwise(activation: Tensor, gradient: Tensor) -> Tensor:
    """Elementwise Grad-CAM: `sum_k relu(G_k A_k)`, place by place.

    It differs from HiResCAM in that no channel is set off against another. There is no paper; grad-cam 1.5 has it
    under this name.
    """
    return (gradient * activation).relu().sum(dim=1)


def _space(maps: Tensor) -> tuple[int, ...]:
    """The axes of space of `(N, K, ...)`."""
    return tuple(range(2, maps.ndim))


def _precise(tensor: Tensor) -> Tensor:
    """In float64, for a denominator that nearly cancels: float32 would not leave five digits of it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _weighted(activation: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("nk,nk...->n...", weights.to(activation.dtype), activation).relu()
