"""The record of one traced forward pass: which calls used which tensors, and where they were made.

`tracer` writes it, `search` reads it.

Note [Alive when it is used]

Whether a tensor carries a gradient is looked up when the next operation uses it, and not when it was made. Much happens
in between: `requires_grad_(False)` on it, an in-place operation, or the end of a custom `autograd.Function`, whose
inside runs without gradients and whose result gets its history only when it returns. And it has to lead to the layer: a
weight that requires a gradient gives one to the score, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.autograd.graph import GradientEdge

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.source import Frame


@dataclass(frozen=True)
class Use:
    """A tensor at the moment when an operation uses it.

    Attributes:
        producer: The index of the step that made it; 0 is the layer.
        alive: Whether it carries a gradient to the layer; see Note [Alive when it is used].
        edge: Where its gradient can be asked for; None if it is not alive.
        shape: Its shape.
        finite: Whether all its values are finite.
        floating: Whether it holds numbers that a gradient could belong to, and not flags or indices.
    """

    producer: int
    alive: bool
    edge: GradientEdge | None
    shape: tuple[int, ...]
    finite: bool
    floating: bool = True


@dataclass(frozen=True)
class Step:
    """One call after the layer.

    Attributes:
        index: Its position in the trace.
        operation: The function's name, e.g. "Tensor.detach"; of a custom function, its class's name.
        module: The dotted name of the module in whose forward it happened; "" is the model itself.
        uses: The tensors it used that depend on the layer.
        inherent_cause: Why its result carries no gradient if its inputs did, where the call itself tells.
        cut_id: The number of the call that is to blame (the `detach`, the beginning of the `no_grad` block), by which
            it can be crossed; None where it cannot.
        frames: Innermost first, up to the call of the model; empty where no call was seen.
        shape: Of its first result.
        finite: Whether all values of its results are finite.
        written: The addresses of the memory that it changed in place.
    """

    index: int
    operation: str
    module: str
    uses: tuple[Use, ...] = ()
    inherent_cause: Cause | None = None
    cut_id: int | None = None
    frames: tuple[Frame, ...] = ()
    shape: tuple[int, ...] = ()
    finite: bool = True
    written: frozenset[int] = frozenset()


@dataclass
class Trace:
    """All steps of one forward pass from the layer on.

    Attributes:
        steps: Step 0 is the layer.
        torch_exits: Calls that gave a value which depends on the layer to Python or another library: their numbers,
            and each as a step that stands where the next one would.
        modules: The dotted names of the modules that ran before the layer had finished.
        blocks: Where gradients were switched off after the layer, each as a step without a line.
        layer_block: NO_GRAD or INFERENCE_MODE, if the layer itself ran in such a block of the model.
        steps_before_layer: How many steps there were when the layer returned; more than 0 only if the trace began
            before it.
        modified_after_save: What autograd saved for backward and found changed: the address of the memory, and the
            step that saved it. Filled while backward runs.
    """

    steps: list[Step] = field(default_factory=list)
    torch_exits: list[tuple[int, Step]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    blocks: list[Step] = field(default_factory=list)
    layer_block: Cause | None = None
    steps_before_layer: int = 0
    modified_after_save: list[tuple[int, int]] = field(default_factory=list)
