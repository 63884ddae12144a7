"""What is known without running the model: how the caller called, and which layers take no hooks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.jit._trace import TracedModule

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.source import named_modules
from gradcam_callback.diagnosis.trace import Trace
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.results import split_call


@dataclass(frozen=True)
class CallerContext:
    """What the caller had switched off, before the package switched it on.

    Attributes:
        modes: NO_GRAD or INFERENCE_MODE, if the caller is in it.
        frozen: The modules all of whose own parameters require no gradient.
        differentiable_input: Whether the images require a gradient.
    """

    modes: tuple[Cause, ...]
    frozen: frozenset[str]
    differentiable_input: bool

    @classmethod
    def of(cls, model: nn.Module, inputs: ModelInputs) -> CallerContext:
        """As it is now."""
        if torch.is_inference_mode_enabled():
            modes: tuple[Cause, ...] = (Cause.INFERENCE_MODE,)
        else:
            modes = () if torch.is_grad_enabled() else (Cause.NO_GRAD,)
        own = {name: list(module.parameters(recurse=False)) for name, module in named_modules(model).items()}
        frozen = (name for name, parameters in own.items() if not any(p.requires_grad for p in parameters))
        return cls(modes, frozenset(frozen), inputs.images.requires_grad)

    def rescued(self, trace: Trace | None) -> tuple[Cause, ...]:
        """What would have made the gradient None in the caller's hands; `trace` is None where the model was not run."""
        if trace is None:
            return self.modes
        frozen = bool(trace.modules) and self.frozen.issuperset(trace.modules) and not self.differentiable_input
        block = () if trace.layer_block is None else (trace.layer_block,)
        return tuple(dict.fromkeys((*((Cause.FROZEN,) if frozen else ()), *self.modes, *block)))


def is_closed(model: nn.Module, layer: str) -> bool:
    """Whether the layer is scripted or inside a scripted or traced module, which runs no hooks of its parts."""
    modules = named_modules(model)
    layer, _ = split_call(layer)
    parts = layer.split(".")
    parents = [modules.get(".".join(parts[:count])) for count in range(len(parts))]
    own = modules.get(layer)
    scripted = isinstance(own, torch.jit.ScriptModule) and not isinstance(own, TracedModule)
    return scripted or any(isinstance(parent, torch.jit.ScriptModule) for parent in parents)
