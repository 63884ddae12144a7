"""Spearman's rank correlation of maps, with average ranks of equal values."""

from __future__ import annotations

import torch
from torch import Tensor

# Values of a map that differ by less than this share of the largest are one value that was rounded.
_ROUNDING = 1e-6


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps.

    Equal values share the mean of their ranks. A map that is the same everywhere has no order; two such maps tell the
    same, 1, and one of them beside one that is not such tells nothing in common, 0.

    Args:
        one: `(N, *S)`, floating-point, with at least one cell.
        other: The same shape.

    Returns:
        float32 `(N,)` in -1..1; NaN where either map has a NaN.
    """
    first, second = one.flatten(1).float().contiguous(), other.flatten(1).float().contiguous()
    known = ~(first.isnan().any(dim=1) | second.isnan().any(dim=1))
    pairs = _centred_ranks(first), _centred_ranks(second)
    lengths = torch.linalg.vector_norm(pairs[0], dim=1) * torch.linalg.vector_norm(pairs[1], dim=1)
    correlation = ((pairs[0] * pairs[1]).sum(dim=1) / lengths).clamp(-1, 1)
    flat, also_flat = _is_constant(first), _is_constant(second)
    correlation = torch.where(flat | also_flat, (flat & also_flat).float(), correlation)
    return torch.where(known, correlation, torch.nan)


def _centred_ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row, less the mean rank: float32 `(N, P)`."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).float() / 2 - values.shape[1] / 2


def _is_constant(values: Tensor) -> Tensor:
    return values.amax(dim=1) - values.amin(dim=1) <= _ROUNDING * values.abs().amax(dim=1)
