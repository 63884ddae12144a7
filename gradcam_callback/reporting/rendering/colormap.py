"""Colormaps as tables of colours."""

from __future__ import annotations

import difflib

import numpy as np
import torch
from torch import Tensor

from gradcam_callback.errors import BadInputError


def colormap_table(name: str) -> Tensor:
    """Look up a colormap in matplotlib's tables.

    Args:
        name: Any name that matplotlib knows, e.g. "turbo", "viridis" or "jet"; an "_r" at the end turns it round.

    Returns:
        `(256, 3)` uint8 on the CPU: red, green and blue, from the lowest value to the highest.

    Raises:
        ValueError: If matplotlib knows no such colormap.
    """
    from matplotlib import colormaps  # here, since it takes a third of a second that only those who draw should pay

    if name not in colormaps:
        near = difflib.get_close_matches(name, list(colormaps), n=3) or ["turbo", "viridis", "jet"]
        raise BadInputError(
            f"unknown colormap {name!r}; did you mean {', '.join(map(repr, near))}? "
            "`from matplotlib import colormaps; print(list(colormaps))` shows all of them"
        )
    colours = colormaps[name](np.linspace(0, 1, 256), bytes=True)
    return torch.from_numpy(np.array(colours, dtype=np.uint8)[:, :3].copy())
