"""What a torch function does to a gradient, by its name: tables, and what is read off a call without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from gradcam_callback.causes import Cause
from gradcam_callback.engine.no_grad_fallback import disables_grad, tensors_in

DETACHING = (torch.Tensor.detach, torch.Tensor.detach_, torch.detach, torch.detach_, torch.Tensor.data.__get__)  # type: ignore[attr-defined]
SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]
# What gives a value to Python, NumPy or another library.
LEAVING = {
    *("numpy", "__array__", "item", "tolist", "__float__", "__int__", "__index__", "__complex__", "__bool__"),
    *("__dlpack__", "untyped_storage", "storage", "data_ptr", "__contains__", "__format__", "__repr__", "__deepcopy__"),
    *("__reduce_ex__", "equal", "allclose", "is_nonzero"),
}
# What puts tensors side by side: where a gradient gets this far and not to the layer, the score looks at other parts.
JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "nn.functional.pad"}
# What chooses between tensors, sample by sample or pixel by pixel.
CHOOSING = {
    *("where", "Tensor.where", "Tensor.__setitem__", "Tensor.copy_", "index_copy", "index_put", "masked_scatter"),
    *("Tensor.index_copy", "Tensor.index_copy_", "Tensor.index_put", "Tensor.index_put_", "Tensor.masked_scatter"),
    *("Tensor.masked_scatter_", "Tensor.scatter", "Tensor.scatter_", "scatter"),
}

_COPYING = {"tensor", "new_tensor", "asarray"}
# What makes a tensor of numbers; of a tensor that is given for a number, the number is taken.
_FILLING = {"full", "full_like", "new_full", "arange", "linspace", "logspace", "scalar_tensor"}
# Of the first argument, these look at the shape or the kind only: the result does not depend on its values.
_SHAPE_ONLY = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "new_tensor"}
# And these of the second.
_LIKE_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to"}


def inherent_cause(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cause | None:
    """Why the call itself ends a gradient, whatever is on or off."""
    if func in DETACHING:
        return Cause.DETACHED
    if disables_grad(func, args, kwargs):
        return Cause.REQUIRES_GRAD_OFF
    return Cause.LEFT_TORCH if name in _COPYING | _FILLING else None


def display_name(func: Callable[..., Any], name: str) -> str:
    """The function's name as people write it: "Tensor.detach", "nn.functional.linear"."""
    full = resolve_name(func) or name
    return full.removeprefix("torch.").removesuffix(".__get__").removesuffix(".__set__")


def inputs_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors on whose values the result of a call may depend."""
    if name in _LIKE_SECOND:
        args = args[:1]
    elif name in _SHAPE_ONLY or name.endswith("_like"):
        args = args[1:]
    return list(tensors_in((args, kwargs)))


ATTEMPTS = range(3)


def perturbed(tensor: Tensor, attempt: int = 0) -> Tensor:
    """Another value of the same kind, to see whether anything depends on it.

    Args:
        tensor: Of any kind.
        attempt: Which of `ATTEMPTS` values. What is computed from one may by chance be the same (the position of the
            maximum, say), or not be possible (an index out of range).
    """
    tensor = tensor.detach().clone()
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor + (1, -1, 2)[attempt]
    generator = torch.Generator().manual_seed(attempt)
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor) + 0.5
    sign = -1 if attempt == 1 else 1
    return sign * tensor * noise + noise * tensor.abs().mean().nan_to_num(1.0) + 1e-3 * noise
