"""Similarity: how near an embedding is to that of another image, or to a given vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.engine.targets.logits import entry, find_logits, is_floating
from gradcam_callback.engine.targets.target import Images, OutputSpec, Scores
from gradcam_callback.errors import BadInputError

_NAMES = ("embedding", "embeddings", "image_embeds", "features", "pooler_output")


@dataclass(frozen=True, eq=False)
class SimilarityTarget:
    """The cosine between a sample's embedding and a reference.

    Attributes:
        probe: The position of the image, among those that are explained, whose embedding is the reference. It has no
            map itself: nothing makes it more similar to itself.
        reference: `(D,)`, the vector to compare with. It has no history. Of a probe, it is found in a pass of its own.
    """

    probe: int | None = None
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        is_position = type(self.probe) is int
        if (self.probe is not None and not is_position) or (self.probe is None and self.reference is None):
            raise BadInputError(
                "`similarity` is the position of a probe, counted from 0, or a vector of numbers; given: "
                f"{self.probe!r}."
            )

    @property
    def may_be_absent(self) -> bool:
        """Whether one of the samples may have no map: the reference."""
        return self.probe is not None

    @property
    def title(self) -> str:
        """What it is similar to."""
        return "similarity" if self.probe is None else f"similarity to probe {self.probe}"

    @property
    def description(self) -> str:
        """Which number it is."""
        what = "a given vector" if self.probe is None else f"that of probe {self.probe}"
        return f"The cosine between the embedding and {what}."

    @property
    def reference_sample(self) -> int | None:
        """The sample whose embedding has still to be found."""
        return self.probe if self.reference is None else None

    def with_reference(self, read: Tensor) -> SimilarityTarget:
        """The same with the embedding that was read of the reference, `(1, D)`."""
        return replace(self, reference=read[0].detach())

    def read(self, returned: Any, output: OutputSpec, inputs: Images) -> Tensor:
        """The embeddings `(N, D)`.

        Raises:
            ValueError: There are none, or not one for each input.
        """
        named = [] if output is not None or isinstance(returned, Tensor) else [entry(returned, key) for key in _NAMES]
        found = next((value for value in named if is_floating(value) and value.ndim == 2), None)
        embeddings = find_logits(returned, output) if found is None else found
        if len(embeddings) != len(inputs):
            raise BadInputError(f"The model returned {len(embeddings)} embeddings for {len(inputs)} images.")
        return embeddings

    def score(self, read: Tensor) -> Scores:
        """The cosine of each sample, -1..1.

        Raises:
            ValueError: The vector has another length than the embeddings.
        """
        if self.reference is None:
            raise BadInputError(f"The embedding of probe {self.probe} was not found before it was compared with.")
        if len(self.reference) != read.shape[1]:
            raise BadInputError(
                f"The vector of `similarity` has {len(self.reference)} numbers, and the embeddings have "
                f"{read.shape[1]}."
            )
        reference = self.reference.to(read.device, read.dtype, non_blocking=True)
        values = F.cosine_similarity(read, reference[None], dim=1)
        if self.probe is None:
            return Scores.of_values(values)
        present = torch.arange(len(values), device=values.device) != self.probe
        return Scores.of_values(values, present=present, absence="the reference")

    def repeated(self, scores: Scores, times: int) -> SimilarityTarget:
        """The same vector; see `RepeatableTarget`."""
        return SimilarityTarget(reference=self.reference)

    def part(self, samples: slice) -> SimilarityTarget:
        """The same, with the probe counted from the first of the samples."""
        return self if self.probe is None else replace(self, probe=self.probe - (samples.start or 0))


def similarity(given: Any) -> SimilarityTarget:
    """From what was given: a position, or a vector.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(given, (Sequence, Tensor)) and not isinstance(given, str):
        try:
            vector = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError):
            vector = torch.empty(0)
        if vector.ndim != 1 or len(vector) == 0:
            raise BadInputError(f"A vector of `similarity` is a list of numbers; given: {given!r}.")
        return SimilarityTarget(reference=vector)
    if type(given) is not int or given < 0:
        raise BadInputError(
            f"`similarity` is the position of a probe, counted from 0, or a vector of numbers; given: {given!r}."
        )
    return SimilarityTarget(given)
