"""Run a model whose forward only works without gradients, although gradients are on.

Note [What gradients make impossible]

Some calls work under `no_grad`, where people's validation runs, and raise with gradients on: `numpy()`, `out=`,
`requires_grad = False` on what is no leaf, an operation that would save a tensor made in inference mode. A model must
not fail because it is explained. So such a call is done as it would be without gradients: on detached tensors, or on a
copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]


class NoGradFallback(TorchFunctionMode):
    """Calls that only gradients make impossible are done without them.

    See Note [What gradients make impossible].
    """

    def __init__(self) -> None:
        super().__init__()
        # Views that were told to require no gradient: they cannot be detached in place, so another goes on for them.
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}
        self._refusal = ""  # what torch said to the last call that it would not do

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, if need be without gradients."""
        return self._call(func, *self._as_replaced(args, dict(kwargs or {})))

    def continued(self, returned: Any) -> Any:
        """What the model returned, with another tensor for a view that was told to require no gradient."""
        return map_tensors(returned, self._replacement)

    def _as_replaced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._replaced:
            return args, kwargs
        return map_tensors(args, self._replacement), map_tensors(kwargs, self._replacement)

    def _replacement(self, tensor: Tensor) -> Tensor:
        return self._replaced.get(id(tensor), (tensor, tensor))[1]

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except (RuntimeError, BufferError) as error:
            self._refusal = str(error)
            tensors = list(tensors_in((args, kwargs)))
            if disables_grad(func, args, kwargs) or func is torch.Tensor.detach_:
                return self._switched_off(func, args[0])
            if any(tensor.is_inference() for tensor in tensors) and not torch.is_inference_mode_enabled():
                return func(*map_tensors(args, _plain), **map_tensors(kwargs, _plain))
            if not any(tensor.requires_grad for tensor in tensors):
                raise
            with torch.no_grad():
                return func(*map_tensors(args, _detached), **map_tensors(kwargs, _detached))

    def _switched_off(self, func: Callable[..., Any], tensor: Tensor) -> Tensor | None:
        # In place, because it is this tensor that the caller goes on with.
        if tensor._is_view():
            self._replaced[id(tensor)] = tensor, tensor.detach()
        else:
            tensor.detach_()
        return None if func == _SET_REQUIRES_GRAD else tensor


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def disables_grad(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call sets `requires_grad` to False."""
    if func == _SET_REQUIRES_GRAD:
        return not args[1]
    if func == torch.Tensor.requires_grad_:
        return not (args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
    return False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested containers with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map_tensors(item, change) for item in value)
    return value
