"""The attention of a transformer, seen while it runs and made points of the graph that gradients are taken at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradcam_callback.engine.capture import begin_graph

_SOFTMAXES = (torch.softmax, F.softmax, Tensor.softmax)


class AttentionRecorder(TorchFunctionMode):
    """Records the weights of attention: those that torch computes in one piece, and those that a model computes itself.

    What torch computes in one piece is computed in steps here. Of a model's own steps, a softmax over the last axis is
    taken for attention if what comes out is square in its last two axes.

    Args:
        samples: How many samples the batch has.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples = samples
        self._recorded: list[Tensor] = []
        self._thread = threading.get_ident()

    @property
    def sizes(self) -> set[int]:
        """Over how many tokens there was attention."""
        return {weights.shape[-1] for weights in self._recorded}

    def weights_over(self, tokens: int) -> list[Tensor]:
        """The weights `(N, heads, T, T)` of attention over so many tokens, in order, as points of the graph."""
        return [weights for weights in self._recorded if weights.shape[-2:] == (tokens, tokens)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function."""
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **given)
        if func is F.multi_head_attention_forward:
            return self._multi_head(func, args, given)
        result = func(*args, **given)
        if func in _SOFTMAXES and _is_square(result):
            return self._point(result)
        return result

    def _multi_head(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Torch's own module, whose inner calls come by no mode: the function that it attends with is exchanged."""
        own, before = F.scaled_dot_product_attention, len(self._recorded)
        F.scaled_dot_product_attention = self._attend
        try:
            output, _ = func(*args, **{**kwargs, "need_weights": False})
        finally:
            F.scaled_dot_product_attention = own
        if not kwargs.get("need_weights", True) or len(self._recorded) == before:
            return output, None
        weights = self._recorded[-1]
        return output, weights.mean(dim=1) if kwargs.get("average_attn_weights", True) else weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Scaled dot-product attention in steps; in evaluation mode there is no dropout."""
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
        weights = scores.softmax(dim=-1)
        return (self._point(weights) if _is_square(weights) else weights) @ value

    def _point(self, weights: Tensor) -> Tensor:
        """The weights as a point of the graph; what the model goes on with depends on it."""
        if threading.get_ident() != self._thread or weights.shape[0] % self._samples:
            return weights
        by_sample = weights.view(self._samples, -1, *weights.shape[1:]) if weights.ndim == 3 else weights
        point, handed_on = begin_graph(by_sample, is_input=False)
        self._recorded.append(point)
        return handed_on.flatten(0, 1) if weights.ndim == 3 else handed_on


def _is_square(weights: Any) -> bool:
    return isinstance(weights, Tensor) and weights.ndim in (3, 4) and weights.shape[-1] == weights.shape[-2] > 1
