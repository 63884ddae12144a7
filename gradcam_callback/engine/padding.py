"""Where the image lies in what the network really sees, where the model pads it.

Detectors resize each image and pad it to a multiple of 32; others pad to a multiple of their stride. Their maps cover
the padded image, and would be drawn over the image a little too small. Padding does not change with the image: so the
part of the network's input that does is the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layers import named_modules
from gradcam_callback.engine.layouts import floating_tensors
from gradcam_callback.results import Extent


@contextmanager
def entries_kept(model: nn.Module, inputs: ModelInputs) -> Iterator[list[Tensor]]:
    """While the model runs, keep the first tensor of images that goes into one of its layers.

    Args:
        model: The replica's.
        inputs: `(N, C, H, W)` images; of anything else nothing is kept.
    """
    kept: list[Tensor] = []

    def look(_module: nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in floating_tensors((args, kwargs)) if not kept else ():
            is_images = tensor.ndim == inputs.images.ndim == 4 and tensor.shape[:2] == inputs.images.shape[:2]
            if is_images and tensor.shape != inputs.images.shape:
                kept.append(tensor.detach().clone())
                return

    with ExitStack() as stack:
        for _, module in named_modules(model):
            with suppress(RuntimeError):  # scripted modules take no hooks
                stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        yield kept


def image_extent(plain: list[Tensor], changed: list[Tensor], sample: int) -> Extent | None:
    """The part of the network's input that changes with the image; None where that is all of it, or not known.

    Args:
        plain: What `entries_kept` kept of a pass.
        changed: Of a pass in which one image was altered, all of it.
        sample: Which.
    """
    if not plain or not changed or plain[0].shape != changed[0].shape:
        return None
    differs = (plain[0][sample] != changed[0][sample]).any(dim=0)
    rows, columns = (differs.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return None
    height, width = differs.shape
    if rows[-1] - rows[0] + 1 == height and columns[-1] - columns[0] + 1 == width:
        return None
    return rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width
