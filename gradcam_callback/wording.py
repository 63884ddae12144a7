"""A diagnosis in words. Pure: it imports the leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

from gradcam_callback.causes import Cause, meaning, remedy
from gradcam_callback.records import Cut, GradientState, LayerHealth, SourceLocation

_STATES = {
    GradientState.NONE: "the gradient is None",
    GradientState.NON_FINITE: "the gradient is not finite",
    GradientState.ZERO: "the gradient is exactly zero",
}

# Why an operation has the gradient zero: by the end of its name, what is seen and what to do.
_ZEROS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("relu", "relu_", "relu6", "threshold"),
        "every unit of this ReLU is off for them (a dead ReLU)",
        "Lower the learning rate, look at the biases before it, or use a leaky ReLU.",
    ),
    (
        ("clamp", "clamp_", "clip", "clip_", "hardtanh", "clamp_min", "clamp_max"),
        "all values lie outside the bounds of this clamp",
        "Widen the bounds, or scale the values before it.",
    ),
    (
        ("sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid", "logsigmoid"),
        "it is saturated: its inputs are so large that its slope is zero in floating point",
        "Scale its inputs down, or take `output` from before it: the logits.",
    ),
    (
        ("softmax", "log_softmax"),
        "it is saturated, or it is taken over one class alone, and then it is constant",
        "Take `output` from before it: the logits.",
    ),
    (
        ("round", "round_", "floor", "floor_", "ceil", "ceil_", "trunc", "sign", "sgn", "floor_divide", "heaviside"),
        "rounding has the slope zero everywhere",
        "Leave it out, or let the gradient pass straight through it: x + (x.round() - x).detach().",
    ),
    (
        ("masked_fill", "masked_fill_", "where", "__setitem__", "index_fill", "masked_scatter"),
        "what the score depends on was replaced by a constant (masked)",
        "Explain a class or a sample that is not masked.",
    ),
    (
        ("linear", "conv2d", "matmul", "mm", "bmm", "addmm", "conv1d", "__matmul__", "einsum"),
        "the weights that it is multiplied by are zero for this class",
        "Look at how these weights are initialised; a head of zeros has no gradient until it is trained.",
    ),
    (
        ("mul", "mul_", "__mul__", "__rmul__", "__imul__"),
        "it is multiplied by zero",
        "Look at where the zero comes from.",
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
    sentences = [f"At {layer!r} {_STATES[worst]} for {_who(verdict)}: {explanation(cuts[0])}{_at(cuts[0].location)}."]
    if verdict.detail and verdict.detail not in note and cuts[0].cause is Cause.UNSUPPORTED_OUTPUT:
        sentences.append(verdict.detail)
    if note:
        sentences.append(note.rstrip(".") + ".")
    sentences += [f"And then: {explanation(cut)}{_at(cut.location)}." for cut in cuts[1:]]
    return " ".join(sentences)


def explanation(cut: Cut) -> str:
    """Why the gradient ends there, as half a sentence."""
    operation = f"`{cut.operation}`" if cut.operation else ""
    if cut.cause is Cause.ZERO_GRADIENT and (zero := _zero(cut)) is not None:
        return f"it becomes zero in {operation}: {zero[0]}"
    if operation and cut.cause is not Cause.HOOK_BYPASSED:
        return f"{meaning(cut.cause)}, by {operation}"
    return meaning(cut.cause)


def advice(cut: Cut) -> str:
    """What to do about it, in a sentence or two."""
    zero = _zero(cut) if cut.cause is Cause.ZERO_GRADIENT else None
    return remedy(cut.cause) if zero is None else zero[1]


def _zero(cut: Cut) -> tuple[str, str] | None:
    name = cut.operation.rpartition(".")[2]
    return next(((seen, advised) for names, seen, advised in _ZEROS if name in names), None)


def _healthy(layer: str, verdict: LayerHealth) -> str:
    text = f"At {layer!r} the gradient of all {len(verdict.state)} probes is there, finite and not zero."
    empty = [index for index, flag in enumerate(verdict.empty) if flag]
    if empty:
        text += f" The map of {_named(empty)} is empty all the same: every channel speaks against the class."
    return text


def _who(verdict: LayerHealth) -> str:
    nulls, total = verdict.null_probes, len(verdict.state)
    return f"all {total} probes" if len(nulls) == total else f"{_named(nulls)} of {total}"


def _named(probes: Sequence[int]) -> str:
    shown = ", ".join(map(str, probes[:8])) + (", ..." if len(probes) > 8 else "")
    return f"probe {shown}" if len(probes) == 1 else f"probes {shown}"


def _at(location: SourceLocation | None) -> str:
    if location is None:
        return ""
    return f", in `{location.function}` at {location.file}:{location.line}: `{location.code}`"
