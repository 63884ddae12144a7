"""Why a gradient is not there: the causes, their wording and their remedies. A leaf: it imports nothing of ours."""

from __future__ import annotations

from enum import Enum


class Cause(str, Enum):
    """The reason why the gradient of a score does not reach a layer. The values are slugs that can be searched for."""

    DETACHED = "detached"
    REQUIRES_GRAD_OFF = "requires_grad_off"
    NO_GRAD = "no_grad"
    INFERENCE_MODE = "inference_mode"
    LEFT_TORCH = "left_torch"
    NON_DIFFERENTIABLE = "non_differentiable"
    CUSTOM_FUNCTION = "custom_function"
    INPLACE_MODIFIED = "inplace_modified"
    LAYER_NOT_CALLED = "layer_not_called"
    HOOK_BYPASSED = "hook_bypassed"
    NOT_ON_PATH = "not_on_path"
    ZERO_GRADIENT = "zero_gradient"
    NON_FINITE = "non_finite"
    UNSUPPORTED_OUTPUT = "unsupported_output"
    FORWARD_FAILED = "forward_failed"

    def __str__(self) -> str:
        return self.value
