"""A diagnosis in words."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_callback.causes import Cause, meaning, remedy
from gradcam_callback.results import Cut, GradientState, LayerHealth, SourceLocation, name_call, name_probes, name_share

_STATES = {
    GradientState.NONE: "the gradient is None",
    GradientState.NON_FINITE: "the gradient is not finite",
    GradientState.ZERO: "the gradient is exactly zero",
}

# What a named operation does there; of the other causes, the general meaning says enough.
_BY_OPERATION: dict[Cause, str] = {
    Cause.DETACHED: "{} detaches the value between the layer and the score",
    Cause.NO_GRAD: "a no_grad block lies between the layer and the score, and the first operation lost in it is {}",
    Cause.INFERENCE_MODE: (
        "an inference_mode block lies between the layer and the score, and the first operation lost in it is {}"
    ),
    Cause.LEFT_TORCH: "the value leaves torch between the layer and the score, by {}",
    Cause.NON_DIFFERENTIABLE: "{} between the layer and the score has no gradient",
    Cause.CUSTOM_FUNCTION: "the custom autograd.Function {} between the layer and the score gives no gradient",
    Cause.INPLACE_MODIFIED: "a tensor that backward needs is changed in place, by {}",
    Cause.HOOK_BYPASSED: "its {} is called past its hooks",
    Cause.ZERO_GRADIENT: "it becomes zero in {}",
    Cause.NON_FINITE: "NaN or infinity first appears in {}",
}

# Why an operation has the gradient zero: by the end of its name, what is seen and what to do.
_ZEROS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("relu", "relu_", "relu6", "threshold", "hardswish", "gelu", "silu", "mish", "elu", "celu", "selu", "softplus"),
        "all its inputs are where it is flat (a dead ReLU)",
        "Lower the learning rate, look at the biases before it, or use a leaky ReLU.",
    ),
    (
        ("clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_", "clamp_min", "clamp_max"),
        "all values lie outside the bounds of this clamp",
        "Widen the bounds, or scale the values before it.",
    ),
    (
        ("sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid", "logsigmoid"),
        "it is saturated: its inputs are so large that its slope is zero in floating point",
        "Scale its inputs down, or take `output` from before it: the logits.",
    ),
    (
        ("softmax", "log_softmax", "softmin"),
        "it is saturated, or it is taken over one class alone, and then it is constant",
        "Take `output` from before it: the logits.",
    ),
    (
        ("round", "round_", "floor", "floor_", "ceil", "ceil_", "trunc", "fix", "floor_divide", "__floordiv__"),
        "rounding has the slope zero everywhere",
        "Leave it out, or let the gradient pass straight through it: x + (x.round() - x).detach().",
    ),
    (
        ("sign", "sgn", "sign_", "heaviside", "bernoulli", "bernoulli_", "poisson"),
        "it goes by steps, and between them its slope is zero",
        "Leave it out, or let the gradient pass straight through it: x + (x.sign() - x).detach().",
    ),
    (
        ("masked_fill", "masked_fill_", "where", "__setitem__", "index_fill", "index_fill_", "masked_scatter"),
        "what the score depends on is replaced there by something else (masked)",
        "Explain a class or a sample that is not masked.",
    ),
    (
        ("fill_", "zero_", "copy_", "zeros_", "index_put_", "scatter_", "index_copy_"),
        "what the score depends on is written over there",
        "Write to a part that the score does not need, or to a copy.",
    ),
    (
        (
            "linear",
            "conv2d",
            "matmul",
            "mm",
            "bmm",
            "addmm",
            "conv1d",
            "__matmul__",
            "__rmatmul__",
            "einsum",
            "batch_norm",
        ),
        "the weights that it is multiplied by are zero for this class",
        "Look at how these weights are initialised; a head of zeros has no gradient until it is trained.",
    ),
    (
        ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"),
        "it is multiplied by zero",
        "Look at where the zero comes from.",
    ),
    (
        ("register_hook",),
        "the hook that is put on the tensor there changes its gradient",
        "Return nothing from the hook, or what it was given.",
    ),
)


def message(layer: str, verdict: LayerHealth, cuts: Sequence[Cut], note: str = "") -> str:
    """What was found, in a few sentences.

    Args:
        layer: Its dotted name.
        verdict: What the gradient is like.
        cuts: The places to blame, the first one first; none where all is well.
        note: What else was seen, e.g. what torch said.
    """
    if not cuts:
        return _healthy(layer, verdict)
    worst = next(state for state in _STATES if state in verdict.state)
    no_such_call = cuts[0].cause is Cause.LAYER_NOT_CALLED and verdict.calls > 0
    why = "there was no such call of the layer" if no_such_call else explanation(cuts[0])
    sentences = [f"At {layer!r} {_STATES[worst]} for {_who(verdict)}: {why}{_at(cuts[0].location)}."]
    told = no_such_call or cuts[0].cause is Cause.UNSUPPORTED_OUTPUT
    if told and verdict.detail and verdict.detail not in note:
        sentences.append(verdict.detail)
    if note:
        sentences.append(note.rstrip(".") + ".")
    sentences += [f"And then: {explanation(cut)}{_at(cut.location)}." for cut in cuts[1:]]
    return " ".join(sentences)


def failed_forward(error: Exception, location: SourceLocation | None) -> str:
    """That the model raised, and where."""
    where = "" if location is None else f" at {location}" + (f": `{location.code}`" if location.code else "")
    return f"The model raised {type(error).__name__}{where}: {str(error).rstrip('.')}."


def explanation(cut: Cut) -> str:
    """Why the gradient ends there, as half a sentence."""
    if not cut.operation or cut.cause not in _BY_OPERATION:
        return meaning(cut.cause)
    zero = _zero(cut)
    return _BY_OPERATION[cut.cause].format(f"`{cut.operation}`") + ("" if zero is None else f": {zero[0]}")


def advice(cut: Cut) -> str:
    """What to do about it, in a sentence or two."""
    if cut.cause is Cause.HOOK_BYPASSED and cut.operation:
        return "Call the module itself, `layer(x)`, and not `layer.forward(x)`: that alone runs its hooks."
    zero = _zero(cut)
    return remedy(cut.cause) if zero is None else zero[1]


def _zero(cut: Cut) -> tuple[str, str] | None:
    name = cut.operation.rpartition(".")[2] if cut.cause is Cause.ZERO_GRADIENT else ""
    return next(((seen, advised) for names, seen, advised in _ZEROS if name in names), None)


def _healthy(layer: str, verdict: LayerHealth) -> str:
    text = f"At {layer!r} the gradient of all {len(verdict.state)} probes is there, finite and not zero."
    empty = [index for index, flag in enumerate(verdict.empty) if flag]
    if empty:
        text += f" The map of {name_probes(empty)} is empty all the same: every channel speaks against the class."
    if verdict.calls > 1:
        text += f" The layer ran more than once; this is {name_call(layer, verdict.calls, verdict.call)}."
    return text


def _who(verdict: LayerHealth) -> str:
    return name_share(verdict.null_probes, len(verdict.state))


def _at(location: SourceLocation | None) -> str:
    if location is None:
        return ""
    code = f": `{location.code}`" if location.code else ""
    return f", in `{location.function}` at {location}{code}"
