"""Which step of a trace made a tensor.

Note [Who made a tensor]

A tensor is known by its identity and its version. Memory can also be written to, or seen, by other objects: a view,
a detached alias, the input that a custom function returns. So of an unknown tensor the memory is looked up, and then
the graph of autograd. Where memory that carries a gradient appears again without one, and no call was seen that took it
away, a step without a name and without a line stands for what happened.

Note [Written through an alias]

`y = x.detach(); y.relu_()` changes the memory of `x`, too, and neither tensor's place in autograd's graph: `y` goes on
without a gradient since the `detach`, and `x` with the one that it had. So the write is a step of what it was called on
alone. Where `x` is used afterwards, another step stands for it: it depends on `x` as it was, with the gradient, and on
the write, without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.trace import Step, Use


class TensorProvenance:
    """Knows the step that made each tensor. See Note [Who made a tensor].

    Args:
        steps: Of the trace; where no call was seen, a step is added.
        module: Gives the dotted name of the module that is running.
    """

    def __init__(self, steps: list[Step], module: Callable[[], str]) -> None:
        self._steps = steps
        self._module = module
        self._makers: dict[tuple[int, int, int], int] = {}  # of a tensor in one version
        self._made_dead: dict[int, int] = {}  # of a tensor in any version, where it had no gradient from the start
        self._last_at: dict[int, int] = {}  # the last step that made anything of a memory
        self._written: dict[int, int] = {}  # the last step that changed a memory in place
        self._alive_at: dict[int, Tensor] = {}  # the last tensor of a memory that carried a gradient
        self._origins: dict[Any, int | None] = {}  # of a node of autograd's graph; None: does not lead to the layer
        self._finite: dict[tuple[int, int, int], bool] = {}
        self._kept: list[Tensor] = []  # so that no identity and no address is given away a second time

    def add(self, tensor: Tensor, step: int, layer: bool = False) -> None:
        """This step made it, as it is now. Of what the layer itself returns, the graph begins there."""
        self._kept.append(tensor)
        self._makers[self._key(tensor)] = step
        where = address(tensor)
        if where:
            self._last_at[where] = step
        node = _node(tensor)
        if node is None or not (layer or self._origin(node) is not None):
            self._made_dead[id(tensor)] = step
            return
        self._made_dead.pop(id(tensor), None)
        self._origins[node] = step
        if where:
            self._alive_at[where] = tensor

    def add_write(self, tensor: Tensor, step: int) -> None:
        """This step changed its memory in place: what shares it has another value now, whatever its version says."""
        if where := address(tensor):
            self._written[where] = step

    def known(self, tensor: Tensor) -> int | None:
        """The step that made this very tensor in its present version."""
        return self._makers.get(self._key(tensor))

    def use_of(self, tensor: Tensor) -> Use | None:
        """How a tensor stands now; None if it does not depend on the layer."""
        node = _node(tensor)
        origin = None if node is None or not tensor.requires_grad else self._origin(node)
        producer = self.known(tensor)
        if producer is None:
            producer = self._inferred(tensor, origin)
        if producer is None:
            return None
        edge = None if origin is None else get_gradient_edge(tensor)
        shape, floating = tuple(tensor.shape), tensor.is_floating_point()
        return Use(producer, edge is not None, edge, shape, self.is_finite(tensor), floating)

    def is_finite(self, tensor: Tensor) -> bool:
        """Whether all its values are; True of what holds no floating numbers."""
        key = self._key(tensor)
        if key not in self._finite:
            self._kept.append(tensor)
            self._finite[key] = _is_finite(tensor)
        return self._finite[key]

    def _key(self, tensor: Tensor) -> tuple[int, int, int]:
        return id(tensor), version(tensor), self._written.get(address(tensor), 0)

    def _inferred(self, tensor: Tensor, origin: int | None) -> int | None:
        """The step that an unknown tensor is of; an added one, where no call was seen."""
        writer, before = self._last_at.get(address(tensor)), self._alive_at.get(address(tensor))
        if writer is None:
            return None if origin is None else self._add_by_graph(tensor)
        if origin is not None:
            custom = self._steps[writer].inherent_cause is Cause.CUSTOM_FUNCTION
            return writer if origin == writer or custom else self._add_seen_again(tensor, origin, writer, True)
        carried_on = before is not None and self.known(before) == writer  # by something with a gradient
        if id(tensor) in self._made_dead:
            earlier = self._made_dead[id(tensor)]
            return earlier if carried_on or earlier == writer else self._add_seen_again(tensor, earlier, writer, False)
        if before is None or not carried_on:
            return writer
        use = self.use_of(before)
        return self._add("", tensor, () if use is None else (use,), Cause.DETACHED)

    def _add_seen_again(self, tensor: Tensor, earlier: int, writer: int, alive: bool) -> int:
        """A tensor whose memory was changed through another one. See Note [Written through an alias]."""
        write, shape = self._steps[writer], tuple(tensor.shape)
        edge = get_gradient_edge(tensor) if alive else None
        before = Use(earlier, alive, edge, shape, self._steps[earlier].finite)
        return self._add(write.operation, tensor, (before, Use(writer, False, None, shape, write.finite)))

    def _add_by_graph(self, tensor: Tensor) -> int:
        """A tensor in memory of its own, of which autograd knows what it was made of."""
        node = tensor.grad_fn
        assert node is not None
        uses = [
            Use(producer, True, GradientEdge(parent, number), (), True)
            for parent, number in node.next_functions
            if parent is not None and (producer := self._origin(parent)) is not None
        ]
        custom = isinstance(node, torch.autograd.function.BackwardCFunction)
        return self._add(type(node).__name__, tensor, tuple(uses), Cause.CUSTOM_FUNCTION if custom else None)

    def _add(self, operation: str, result: Tensor, uses: tuple[Use, ...], cause: Cause | None = None) -> int:
        index, shape = len(self._steps), tuple(result.shape)
        step = Step(index, operation, self._module(), uses, cause, shape=shape, finite=self.is_finite(result))
        self._steps.append(step)
        self.add(result, index)
        return index

    def _origin(self, node: Any) -> int | None:
        """The last step before a node of autograd's graph; None if the node does not lead to the layer."""
        waiting = [node]
        while waiting:
            current = waiting[-1]
            parents = [parent for parent, _ in current.next_functions if parent is not None]
            unknown = [parent for parent in parents if parent not in self._origins]
            if current not in self._origins and unknown:
                waiting += unknown
                continue
            if current not in self._origins:
                found = [step for parent in parents if (step := self._origins[parent]) is not None]
                self._origins[current] = max(found, default=None)
            waiting.pop()
        return self._origins[node]


def version(tensor: Tensor) -> int:
    """How often it was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def address(tensor: Tensor) -> int:
    """Of its memory; 0 for a kind of tensor without one storage, such as a sparse one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _node(tensor: Tensor) -> Any:
    """Its node in autograd's graph, if it has one; a view that was changed in a forbidden way has none."""
    try:
        return tensor.grad_fn
    except RuntimeError:
        return None


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    try:
        return bool(tensor.detach().isfinite().all())
    except RuntimeError:  # under vmap, whose tensors have no values to ask for
        return True
