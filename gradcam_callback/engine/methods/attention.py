"""A method for transformers: by what the attention of all blocks passes on from each token to the score.

Axes: `N` samples, `T` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradcam_callback.engine.methods.method import Forwards, Rerun


@dataclass(frozen=True)
class GradientRollout:
    """Attention rollout weighted by gradients: `R = R + mean_heads(relu(dy/dA A)) R`, block by block from `R = 1`.

    The row of `R` that belongs to the tokens which the score is read from, without what a token has of itself, is the
    map. Which tokens these are shows in the last block: of its attention only their rows have a gradient. The layer
    tells which tokens are cells of the image; attention over another number of tokens is left out.

    Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", ICCV 2021, equations 5 and 6. It costs one forward pass more, with a graph of all of it.
    """

    name: str = "gradient_rollout"

    @property
    def needs_gradient(self) -> bool:
        """At the layer, too: where that is missing, the score does not depend on the tokens."""
        return True

    @property
    def extra_forwards(self) -> Forwards:
        """One, in which the attention is seen."""
        return 1

    def map(self, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
        """The map `(N, h, w)`."""
        blocks = rerun.attention()
        first, last = blocks[0][0], blocks[-1][1]
        identity = torch.eye(first.shape[-1], device=first.device, dtype=first.dtype)
        relevance = identity.expand(len(first), -1, -1)
        for weights, gradients in blocks:
            relevance = relevance + (weights * gradients).relu().mean(dim=1) @ relevance
        passed_on = relevance - identity
        read = last.abs().amax(dim=(1, 3)) > 0  # N T: the tokens that the score is read from
        count = read.sum(dim=1, keepdim=True).clamp(min=1)
        return rerun.as_map((passed_on * read[:, :, None]).sum(dim=1) / count).relu()
