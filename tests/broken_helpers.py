"""What the broken models import: the line to blame is often in another file than the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as found in many projects."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def detached_pool(maps: Tensor) -> Tensor:
    pooled = maps.mean((2, 3))
    return pooled.detach()  # ends here


@torch.no_grad()
def standardised(maps: Tensor) -> Tensor:
    centred = maps - maps.mean()  # ends here
    return centred / maps.std()


def through_pictures(maps: Tensor) -> Tensor:
    """To PIL and back, as a resize is often done."""
    resized = []
    for channels in maps[:, :3]:
        pixels = (channels.sigmoid() * 255).byte()  # ends here
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((4, 4))  # ends here
        resized.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    return torch.stack(resized)


def brightened(maps: Tensor) -> Tensor:
    maps.mul_(2)  # ends here
    return maps


def clipped(maps: Tensor) -> Tensor:
    return maps.clamp(min=100, max=101)  # ends here


def checked(maps: Tensor) -> Tensor:
    if maps.shape[1] != 3:
        raise ValueError(f"3 channels are needed, not {maps.shape[1]}")  # ends here
    return maps


def log_of(maps: Tensor) -> Tensor:
    return torch.log(maps)  # ends here
