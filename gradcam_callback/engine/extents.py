"""Where each image lies in what the layers see of it.

Note [Images within a padded batch]

A detector resizes the images that it gets, and pads them to one size and to a multiple of 32, within forward; others
pad to a multiple of their stride. Their maps cover the padded batch, and each image only a part of it, which has to be
known to draw the one over the other. So the tensor is looked at that the first module with weights gets. If it has the
size of the images, they are all of it. Else the images are altered, half of them at a time, and an image lies where its
own alteration changes that tensor. Where the others change, too, or nothing does, it cannot be told. Each of these
passes ends at that module. Of images that are one tensor, `output_survey` sees it in passes that it makes anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from gradcam_callback.engine.copying.modules import registered_modules
from gradcam_callback.engine.forward import run_without_graph
from gradcam_callback.engine.in_place import is_sharded
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import floating_tensors
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.process_state import generators_kept
from gradcam_callback.engine.survey import altered
from gradcam_callback.errors import BadInputError


def find_extents(model: nn.Module, inputs: ModelInputs) -> Tensor | None:
    """Which part of the padded batch each image is. See Note [Images within a padded batch].

    Args:
        model: The replica's.
        inputs: From `prepared`.

    Returns:
        `(N, 4)` float32: top, left, bottom, right, as shares of the height and the width, 0..1. None where the images
        are all of it, or where that cannot be told of images of one size.

    Raises:
        ValueError: It cannot be told, and the images differ in size.
    """
    plain = _first_tensor(model, inputs)
    if plain is not None and not inputs.differ and tuple(plain.shape[2:]) == inputs.size:
        return None
    extents = None if plain is None or len(plain) != len(inputs) else _changed_parts(model, inputs, plain)
    if extents is None and inputs.differ:
        sizes = ", ".join(f"{height} x {width}" for height, width in dict.fromkeys(inputs.sizes or ()))
        seen = "no module with weights gets a batch of images" if plain is None else f"it is {tuple(plain.shape)}"
        raise BadInputError(
            f"The images differ in size ({sizes}), and where each of them lies in the batch that the model makes of "
            f"them cannot be told ({seen}), so a map cannot be laid over its image. Resize them to one size, or take "
            "one image alone."
        )
    whole = extents is not None and bool((extents == extents.new_tensor([0, 0, 1, 1])).all())
    return None if whole else extents


def altered_part(plain: Tensor, other: Tensor | None, sample: int) -> tuple[float, ...] | None:
    """Which part of what the layers see an image is, from two passes in one of which it alone was altered.

    Args:
        plain: What `entry_kept` kept of the one pass.
        other: Of the pass with the altered image.
        sample: Which image was altered.

    Returns:
        As a row of `find_extents`; None where the image is all of it, or where that cannot be told.
    """
    changed = _changed(plain, other, torch.arange(len(plain), device=plain.device) == sample)
    extents = None if changed is None else _extents(changed[sample : sample + 1])
    return None if extents is None or extents.tolist() == [[0, 0, 1, 1]] else tuple(extents[0].tolist())


def _changed_parts(model: nn.Module, inputs: ModelInputs, plain: Tensor) -> Tensor | None:
    """Where each image changes what it is a part of; None where it cannot be told."""
    changed = torch.zeros(len(plain), *plain.shape[2:], dtype=torch.bool, device=plain.device)
    numbers = torch.arange(len(inputs), device=inputs.images.device)
    for chosen in (numbers % 2 == 0, numbers % 2 == 1)[: len(inputs)]:
        try:
            other = _first_tensor(model, inputs.with_images(_with_altered(inputs.images, chosen)))
        except Exception as error:  # a model may refuse an image that is none
            if is_out_of_memory(error):
                raise
            return None
        differing = _changed(plain, other, chosen)
        if differing is None:
            return None
        changed |= differing
    return _extents(changed)


def _changed(plain: Tensor, other: Tensor | None, chosen: Tensor) -> Tensor | None:
    """Which places `(N, h, w)` changed; None where those of other images than the chosen ones did, too."""
    if other is None or other.shape != plain.shape:
        return None
    differing = (other != plain).any(dim=1)
    return None if bool(differing[~chosen].any()) else differing


def _extents(changed: Tensor) -> Tensor | None:
    """The shares of the sides that hold the changed places `(N, h, w)`; None where an image has none."""
    if not bool(changed.flatten(1).any(dim=1).all()):
        return None
    height, width = changed.shape[1:]
    (top, bottom), (left, right) = _ends(changed.any(dim=2)), _ends(changed.any(dim=1))
    return torch.stack([top / height, left / width, bottom / height, right / width], dim=1).float()


def _ends(flags: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the set flags in each row, and the one behind the last."""
    return flags.int().argmax(dim=1), flags.shape[1] - flags.flip(1).int().argmax(dim=1)


def _with_altered(images: Tensor, chosen: Tensor) -> Tensor:
    """Some of the images with another number in every pixel."""
    others = altered(images) if images.is_floating_point() else images.bitwise_not()
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), others, images)


class _Seen(BaseException):
    """Ends a forward pass. No `Exception`, which a model may catch."""


def _first_tensor(model: nn.Module, inputs: ModelInputs) -> Tensor | None:
    """The tensor of four axes that the first module with weights gets, of a pass that ends there."""
    stops = not is_sharded(list(registered_modules(model)))  # the processes of a sharded model wait for each other
    with entry_kept(model, stops=stops) as seen, generators_kept(), suppress(_Seen):
        run_without_graph(model, inputs)
    return seen[0] if seen else None


@contextmanager
def entry_kept(model: nn.Module, *, stops: bool = False) -> Iterator[list[Tensor]]:
    """While the model runs, keep the tensor of four axes that the first module with weights gets.

    Args:
        model: The replica's.
        stops: Whether the pass ends there, by an exception of this module.

    Yields:
        A list that it comes into.
    """
    seen: list[Tensor] = []

    def see(_module: nn.Module, args: Any, kwargs: Any) -> None:
        found = [tensor for tensor in floating_tensors((args, dict(kwargs))) if tensor.ndim == 4] if not seen else []
        if found:
            seen.append(found[0].detach().clone())
            if stops:
                raise _Seen

    with _told_of_inputs(model, see):
        yield seen


@contextmanager
def _told_of_inputs(model: nn.Module, see: Any) -> Iterator[None]:
    handles = []
    try:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                with suppress(RuntimeError) if isinstance(module, torch.jit.ScriptModule) else nullcontext():
                    handles.append(module.register_forward_pre_hook(see, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
