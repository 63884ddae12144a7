"""Reconstruction: how far what the model returns is from its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradcam_callback.engine.targets.logits import describe, is_floating, parts, select
from gradcam_callback.engine.targets.target import Images, OutputSpec, Scores, of_one_size
from gradcam_callback.errors import BadInputError


@dataclass(frozen=True)
class ReconstructionTarget:
    """The mean squared error between the output and the input, a number a sample.

    The map shows what the error comes from: of an autoencoder, the parts that it has not learnt to draw.
    """

    title = "reconstruction error"
    description = "The mean squared error between what the model returns and its input."

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> tuple[Tensor, Tensor]:
        """The reconstructions, and the inputs.

        Raises:
            ValueError: Nothing has the shape of the inputs.
        """
        inputs = of_one_size(inputs)
        chosen = [returned, *parts(returned)] if output is None else [select(returned, output)]
        same = [value for value in chosen if is_floating(value) and value.shape == inputs.shape]
        if not same:
            raise BadInputError(
                f"A reconstruction has the shape of the inputs, {tuple(inputs.shape)}; the model returned "
                f"{describe(returned)}. Say with `output` where it is."
            )
        return same[0], inputs

    def score(self, read: tuple[Tensor, Tensor]) -> Scores:
        """The error of each sample, at least 0."""
        reconstructed, inputs = read
        return Scores.of_values((reconstructed - inputs.to(reconstructed.dtype)).square().flatten(1).mean(dim=1))

    def part(self, samples: slice) -> ReconstructionTarget:
        """The same."""
        return self
