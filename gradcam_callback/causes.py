"""Why a gradient is not there: the causes, their wording and their remedies."""

from __future__ import annotations

from enum import Enum


class Cause(str, Enum):
    """The reason why the gradient of a score does not reach a layer. The values are slugs that can be searched for."""

    DETACHED = "detached"
    REQUIRES_GRAD_OFF = "requires_grad_off"
    FROZEN = REQUIRES_GRAD_OFF  # the same on parameters: another name, no other value
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


class CallbackIssue(str, Enum):
    """What else can go wrong around a probe pass. It concerns the callback and not the gradient; it never raises."""

    PROBES_MISSING = "probes_missing"
    PROBES_CHANGED = "probes_changed"
    SHORT_OF_MEMORY = "short_of_memory"
    UNSUPPORTED_STRATEGY = "unsupported_strategy"
    NO_MAPS = "no_maps"
    WEIGHTS_MODIFIED = "weights_modified"
    CHANNELS_HIDDEN = "channels_hidden"
    CLASSES_DIFFER = "classes_differ"
    LOOKS_ELSEWHERE = "looks_elsewhere"
    CALLBACK_FAILED = "callback_failed"
    WRITING_FAILED = "writing_failed"

    def __str__(self) -> str:
        return self.value


UNKNOWN_MEANING = "the score does not depend on it through anything that autograd can follow"
UNKNOWN_REMEDY = (
    "Between this layer and the score, look for detach() or .data, requires_grad = False, a no_grad block, a way "
    "through NumPy or Python numbers, argmax, a comparison or a cast to integers."
)

# What is written of each cause: why the gradient is not there, and what to do.
_WORDING: dict[Cause, tuple[str, str]] = {
    Cause.DETACHED: (
        "the value was detached between the layer and the score",
        "Take detach(), detach_() or .data out of the way to the score; for bookkeeping, detach a copy.",
    ),
    Cause.REQUIRES_GRAD_OFF: (
        "requires_grad was set to False on a tensor between the layer and the score",
        "Set requires_grad = False on parameters only, never on an activation.",
    ),
    Cause.NO_GRAD: (
        "a no_grad block lies between the layer and the score",
        "End the no_grad block before the layer's output is used, or move the layer into the block's inside.",
    ),
    Cause.INFERENCE_MODE: (
        "an inference_mode block lies between the layer and the score",
        "End the inference_mode block before the layer's output is used.",
    ),
    Cause.LEFT_TORCH: (
        "the value left torch between the layer and the score (NumPy, Python numbers, PIL, torch.tensor)",
        "Compute that step with torch operations.",
    ),
    Cause.NON_DIFFERENTIABLE: (
        "an operation between the layer and the score has no gradient (argmax, a comparison, a cast to integers)",
        "Use a soft version of the operation, or take `output` from before it.",
    ),
    Cause.CUSTOM_FUNCTION: (
        "a custom autograd.Function on the way gives no gradient for its input",
        "Have the function's backward return a gradient for each input, and its forward not mark the output.",
    ),
    Cause.INPLACE_MODIFIED: (
        "a tensor that backward needs was changed in place",
        "Use the operation that returns a new tensor in place of the in-place one.",
    ),
    Cause.LAYER_NOT_CALLED: (
        "the forward pass never ran the layer",
        "Choose a layer that forward runs in evaluation mode, or call the module itself and not its parts.",
    ),
    Cause.HOOK_BYPASSED: (
        "the layer ran past its hooks: its forward is called directly, or it is inside a scripted graph",
        "Call the module itself and not its forward, or choose a layer outside the scripted part.",
    ),
    Cause.NOT_ON_PATH: (
        "the layer ran, and the score does not depend on it",
        "Choose a layer on the way to the score; an auxiliary branch is not on it.",
    ),
    Cause.ZERO_GRADIENT: (
        "a gradient exists and is exactly zero",
        "Look for rounding, a clamp, a saturated sigmoid or softmax, dead ReLUs, or a head whose weights are zero.",
    ),
    Cause.NON_FINITE: (
        "the gradient or the activation holds NaN or infinity",
        "Look for a division by zero, a logarithm or root of zero, an overflow in half precision, or diverged weights.",
    ),
    Cause.UNSUPPORTED_OUTPUT: (
        "the layer's output has no rows and columns, or it cannot be told how they lie",
        "Choose a layer that returns maps or tokens, such as the last block, or say with `layout` how its output lies.",
    ),
    Cause.FORWARD_FAILED: (
        "the model raised",
        "Make `model(images)` run on a batch of images, or say with `inputs` what of a batch it gets ('.' is all).",
    ),
}


def meaning(cause: Cause | None) -> str:
    """Why the gradient is not there, as half a sentence that goes on after the layer's name. None: it is not known."""
    return UNKNOWN_MEANING if cause is None else _WORDING[cause][0]


def remedy(cause: Cause | None) -> str:
    """What to do about it, in a sentence. None: the cause is not known, and the sentence says where to look."""
    return UNKNOWN_REMEDY if cause is None else _WORDING[cause][1]
