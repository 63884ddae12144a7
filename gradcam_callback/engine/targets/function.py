"""A target of the user's own: a function from what the model returned to a score a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradcam_callback.engine.batch_rows import rows_of
from gradcam_callback.engine.targets.logits import select
from gradcam_callback.engine.targets.target import Annotations, Images, OutputSpec, Scores
from gradcam_callback.errors import BadInputError


@dataclass(frozen=True, eq=False)
class FunctionTarget:
    """What a function makes of the output.

    Attributes:
        function: `function(output, batch) -> (N,)`. The output is what the model returned, or the part of it that the
            option `output` says. The batch has the structure of the validation's batches, and the samples that are
            explained; for `compute_cam` it is what was given here.
        name: The title; by default the function's attribute `title`, or its name.
        batch: What the function gets as its batch.
    """

    function: Callable[[Any, Any], Any]
    name: str = ""
    batch: Any = None

    asks_for_batch = True

    @property
    def title(self) -> str:
        """What the function is called."""
        own = getattr(self.function, "title", "") or getattr(self.function, "__name__", type(self.function).__name__)
        return self.name or str(own).replace("_", " ")

    @property
    def description(self) -> str:
        """What the function says of itself."""
        return str(getattr(self.function, "__doc__", None) or f"The score that {self.title!r} gives.")

    def bound(self, annotations: Annotations) -> list[FunctionTarget]:
        """With the batch; see `BoundTarget`."""
        return [self if self.batch is not None else replace(self, batch=annotations.batch)]

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Tensor:
        """The scores `(N,)`.

        Raises:
            ValueError: The function gives something else.
        """
        scores = self.function(returned if output is None else select(returned, output), self.batch)
        if not isinstance(scores, Tensor) or scores.shape not in ((len(inputs),), (len(inputs), 1)):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise BadInputError(
                f"The target {self.title!r} has to give one score for each of {len(inputs)} images, a tensor "
                f"({len(inputs)},); given: {shape}."
            )
        return scores

    def score(self, read: Tensor) -> Scores:
        """They are the scores."""
        return Scores.of_values(read.reshape(len(read)))

    def part(self, samples: slice) -> FunctionTarget:
        """With the batch of some of the samples."""
        return self if self.batch is None else replace(self, batch=rows_of(self.batch, samples))
