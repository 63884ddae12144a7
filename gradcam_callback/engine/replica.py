"""A probe pass runs a replica of the model: structure and state are copied, weights are shared. Then it is dropped.

The model that trains never runs for us, so nothing of it has to be put back: modes, flags, hooks, buffers, counters,
caches, generators and containers of the replica are its own.

Note [What a replica does not shield]

- State of the process: globals of modules, attributes of classes, what `lru_cache` or a default argument of a method
  holds. A forward pass of the replica writes to it like one of the model.
- Weights that forward writes in place. Their memory is shared, so the model's change, too; `Replica.modified_weights`
  names them. An embedding with `max_norm` has a weight of its own in the replica. What is written through `weight.data`
  or NumPy leaves no mark on the version of a tensor, and is not noticed.
- What is shared because it cannot be copied, or must not be: see Note [What is shared] in `copying.structure`.
- A model that asks which of its weights require a gradient, and goes on quietly if none does.
- Sharded models (FSDP2, tensor parallelism), which run in place, under the guard of `in_place`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradcam_callback.engine import in_place, process_state
from gradcam_callback.engine.copying.modules import registered_modules
from gradcam_callback.engine.copying.structure import StructureCopier, copy_structure

__all__ = ["Replica", "ReplicaOptions", "copy_structure", "isolated", "run_in_replica"]

T = TypeVar("T")

# What torch says where a model differentiates with respect to weights, or updates them, and none requires a gradient.
_ASKS_FOR_GRADIENTS = re.compile(r"does not require grad|grad requires non-empty inputs|empty parameter list")


@dataclass(frozen=True)
class ReplicaOptions:
    """How a replica is made.

    Attributes:
        substitutes: Pairs of an object and what stands in its place in the replica: a Trainer and a view of it, say.
        shared_types: Further types whose instances are shared, not copied.
        prepare: Called on the replica before it runs; not on a sharded model, which is no replica.
        own_weights: Whether the weights have memory of their own, and require a gradient where those of the model do.
            For models that differentiate with respect to weights in forward; `run_in_replica` finds that out.
    """

    substitutes: tuple[tuple[Any, Any], ...] = ()
    shared_types: tuple[type, ...] = ()
    prepare: Callable[[nn.Module], None] | None = None
    own_weights: bool = False


class Replica:
    """What runs in place of a model.

    Attributes:
        model: The replica; the model itself where it is sharded. To be used within `isolated` only.
    """

    def __init__(self, model: nn.Module, original: nn.Module, aliased: list[tuple[Tensor, int]]) -> None:
        self.model = model
        self._original = original
        self._aliased = aliased

    def modified_weights(self) -> tuple[str, ...]:
        """The dotted names of weights of the original that were written in place since the replica was made.

        A weight without a dotted name (one of a module in a plain list, say) is named by its class and shape. Not
        known of sharded models.
        """
        modified = {id(weight): weight for weight, version in self._aliased if weight._version != version}
        if not modified:
            return ()
        named = self._original.named_parameters()
        names = [name for name, weight in named if modified.pop(id(weight), None) is not None]
        return (*names, *(f"{type(weight).__name__}{tuple(weight.shape)}" for weight in modified.values()))


@contextmanager
def isolated(model: nn.Module, options: ReplicaOptions = ReplicaOptions()) -> Iterator[Replica]:
    """Let a replica of a model run with gradients on, and leave no trace of that in the model or in the process.

    Inside, whatever the caller switched off, gradients are on and inference mode is off; every module of the replica is
    in eval mode; no parameter requires a gradient, so that a forward pass stores nothing for backward until a graph is
    begun on purpose; what `torch.compile` compiled runs eagerly; reentrant activation checkpoints are passed by. On the
    way out the generators of Python, NumPy and torch are put back, and what the replica holds is dropped.

    See Note [What a replica does not shield].

    Args:
        model: Any module. It is only read, unless it is sharded.
        options: How the replica is made.

    Yields:
        The replica; what is left of it afterwards are empty modules and their names.

    Raises:
        RuntimeError: There is too little memory for the copies of buffers.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(process_state.compiled_code_eager())
        stack.enter_context(process_state.checkpoints_bypassed())
        stack.enter_context(process_state.generators_kept())
        modules = list(registered_modules(model))
        if in_place.is_sharded(modules):
            stack.enter_context(in_place.guarded(modules))
            yield Replica(model, model, [])
        else:
            yield stack.enter_context(_replica(model, options))


@contextmanager
def _replica(model: nn.Module, options: ReplicaOptions) -> Iterator[Replica]:
    substitutes = {id(original): substitute for original, substitute in options.substitutes}
    copier = StructureCopier(substitutes, options.shared_types, own_weights=options.own_weights)
    try:
        copied = copier.finished(model)
        _switch_to_eval(copied)
        if options.prepare is not None:
            options.prepare(copied)
        yield Replica(copied, model, copier.tensors.aliased)
    finally:
        _empty(copier.modules)


def _switch_to_eval(model: nn.Module) -> None:
    for module in registered_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            module.eval()
        else:  # past `train()` and `__setattr__`, which a user's module may override and do more in
            vars(module)["training"] = False


def _empty(modules: list[nn.Module]) -> None:
    """Drop what is in the modules: what holds itself would wait for the collector, with the activations in it.

    Their names stay: a traceback that goes through them can still tell which module raised.
    """
    for module in modules:
        held = vars(module)
        children = held.get("_modules", {})
        held.clear()
        held.update(_modules=children, _parameters={}, _buffers={})
        if hasattr(type(module), "__del__"):  # it would close what belongs to the original
            with suppress(TypeError):
                module.__class__ = nn.Module
    modules.clear()


def run_in_replica(model: nn.Module, job: Callable[[Replica], T], options: ReplicaOptions = ReplicaOptions()) -> T:
    """Do a job with a replica; once more, with another, where the model asks for gradients of its weights.

    A model may differentiate with respect to its weights in forward (an inner loop). In a replica they require no
    gradient, so that raises. Then they get memory of their own, so that they can be updated as well.

    Args:
        model: As for `isolated`.
        job: Told the replica, and run within `isolated`.
        options: How the replica is made.

    Returns:
        What the job returned.
    """
    try:
        with isolated(model, options) as replica:
            return job(replica)
    except (RuntimeError, ValueError) as error:
        if options.own_weights or not _ASKS_FOR_GRADIENTS.search(str(error)):
            raise
    with isolated(model, replace(options, own_weights=True)) as replica:
        return job(replica)
