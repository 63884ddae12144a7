"""Methods by principal components: the direction in channel space in which the most of a map lies.

Axes: `N` samples, `K` channels, `P` places, which are all cells of the space of an activation in one row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eigencam(activation: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Eigen-CAM: `relu(A v)`, with `v` the first right singular vector of `A` as a matrix of places and channels.

    It shows what stands out in the activation, for whatever class: all targets have the same map, and no gradient is
    needed. No forward pass more.

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020, equations 3 and 4.
    A singular vector has no sign of its own: it gets the one with which the sum of the map, before it is cut off, is
    above 0.
    """
    return _first_component(activation, activation.new_ones(len(activation), *activation.shape[2:]))


def eigengradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Eigen-Grad-CAM: `relu((G A) v)`, with `v` the first right singular vector of `G A`, place by place.

    As Eigen-CAM, but of the parts of the score, so that it is of a class. There is no paper; grad-cam 1.5 has it under
    this name. The sign is the one with which the map agrees with HiResCAM, the sum of `G A` over the channels.
    """
    # Scaled first: the product, and its square below, of tiny gradients would be zero.
    peak = gradient.abs().flatten(1).amax(dim=1).view(-1, *[1] * (gradient.ndim - 1))
    scale = torch.where((peak > 0) & peak.isfinite(), peak, 1.0)
    parts = gradient / scale * activation
    return _first_component(parts, parts.sum(dim=1)) * scale.squeeze(1)


def _first_component(maps: Tensor, like: Tensor) -> Tensor:
    """The projection on the first component, with its negative part cut off.

    Args:
        maps: `(N, K, h, w)`. A sample with a number in it that is not finite has a map of NaN.
        like: `(N, h, w)`, what the map is to agree with in sign.
    """
    matrix = maps.flatten(2).transpose(1, 2)  # N P K
    finite = matrix.isfinite().flatten(1).all(dim=1)
    precise = torch.where(finite[:, None, None], matrix, 0.0)
    precise = precise if maps.device.type == "mps" else precise.double()
    projected = _projection(precise)
    agreement = (projected * like.flatten(1).nan_to_num()).sum(dim=1, keepdim=True)
    component = torch.where(agreement < 0, -projected, projected).relu()
    component = torch.where(finite[:, None], component, torch.nan)
    return component.to(maps.dtype).reshape(len(maps), *maps.shape[2:])


def _projection(matrix: Tensor) -> Tensor:
    """Each place's coordinate along the first right singular vector, `(N, P)`, by the smaller of the two Gram matrices.

    The eigenvector of `M M^T` to the largest eigenvalue, times its root, is the projection itself.
    """
    places, channels = matrix.shape[1:]
    if channels <= places:
        _, vectors = torch.linalg.eigh(matrix.transpose(1, 2) @ matrix)
        along: Tensor = (matrix @ vectors[:, :, -1:]).squeeze(2)
        return along
    values, vectors = torch.linalg.eigh(matrix @ matrix.transpose(1, 2))
    projected: Tensor = vectors[:, :, -1] * values[:, -1:].clamp(min=0).sqrt()
    return projected
