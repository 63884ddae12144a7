"""Whether a model takes the list of images that a batch holds, or one tensor made of it.

Note [Lists of one size]

A batch may hold a list of images of one size because its collate function leaves stacking to the step, or because the
model takes lists. Neither the batch nor the signature of forward tells. So the model runs on the list; only if that
raises, and a run on the stacked images does not, it gets these. Images that differ in size cannot be stacked.
"""

from __future__ import annotations

from torch import nn

from gradcam_callback.engine.forward import prepared, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica


def needs_stacking(model: nn.Module, inputs: ModelInputs, options: ReplicaOptions) -> bool:
    """Whether a model refuses a list of images, and takes one tensor of them. See Note [Lists of one size].

    Args:
        model: Any module.
        inputs: With a list of images of one size; the first two count.
        options: How the replica is made.

    Returns:
        False where the model takes neither: what it raises on the list is for the pass to say.
    """
    some = inputs[:2]
    return not _runs(model, some, options) and _runs(model, some.stacked(), options)


def _runs(model: nn.Module, inputs: ModelInputs, options: ReplicaOptions) -> bool:
    """Whether the model runs on these inputs, but for memory."""

    def job(replica: Replica) -> None:
        run_without_graph(replica.model, prepared(inputs, replica.model))

    try:
        run_in_replica(model, job, options)
    except Exception as error:
        return is_out_of_memory(error)  # which says nothing about the list
    return True
