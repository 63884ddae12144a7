"""What a target compares with, found in a forward pass of its own before the samples are explained."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from gradcam_callback.engine.forward import prepared, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.targets import SimilarityTarget, Target
from gradcam_callback.errors import BadInputError


def with_references(model: nn.Module, inputs: ModelInputs, request: CAMRequest, options: ReplicaOptions) -> CAMRequest:
    """The request with the embeddings that its targets compare with. Costs a forward pass of one image for each.

    Args:
        model: Any module that maps images to what the targets can read.
        inputs: All samples, among which the references are.
        request: Its targets and its output count.
        options: How the replica is made.

    Raises:
        ValueError: There is no such sample.
    """

    def found(target: Target) -> Target:
        place = target.reference_sample if isinstance(target, SimilarityTarget) else None
        if place is None:
            return target
        assert isinstance(target, SimilarityTarget)
        if not 0 <= place < len(inputs):
            raise BadInputError(f"There is no probe {place} to compare with: there are {len(inputs)}, counted from 0.")

        def job(replica: Replica) -> Tensor:
            reference = prepared(inputs[place : place + 1], replica.model)
            embedding: Tensor = target.read(
                run_without_graph(replica.model, reference), request.output, reference.images
            )
            return embedding

        return target.with_reference(run_in_replica(model, job, options))

    return replace(request, targets=tuple(map(found, request.targets)))
