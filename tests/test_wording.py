"""Diagnoses in words: rendered text, compared."""

from __future__ import annotations

import pytest
import torch

from gradcam_callback.causes import Cause, meaning, remedy
from gradcam_callback.diagnosis.messages import advice, explanation, message
from gradcam_callback.results import Cut, GradientState, LayerHealth, SourceLocation

WHERE = SourceLocation("net.py", 12, "forward", "x = x.detach()", "body")
OK, NONE, ZERO = GradientState.OK, GradientState.NONE, GradientState.ZERO


def verdict(*states: GradientState, empty: tuple[bool, ...] | None = None, detail: str = "") -> LayerHealth:
    flags = (False,) * len(states) if empty is None else empty
    return LayerHealth(torch.zeros(len(states)), states, flags, detail=detail)


def test_all_is_well() -> None:
    assert message("conv", verdict(OK, OK), []) == (
        "At 'conv' the gradient of all 2 probes is there, finite and not zero."
    )


def test_an_empty_map_is_no_null() -> None:
    assert message("conv", verdict(OK, OK, empty=(False, True)), []).endswith(
        " The map of probe 1 is empty all the same: every channel speaks against the class."
    )


def test_cuts_in_order_with_their_lines_and_a_note() -> None:
    cuts = [Cut(Cause.DETACHED, WHERE, "Tensor.detach"), Cut(Cause.LEFT_TORCH, None, "Tensor.numpy")]
    assert message("conv", verdict(NONE, NONE), cuts, "Torch says: no.") == (
        "At 'conv' the gradient is None for all 2 probes: `Tensor.detach` detaches the value between the layer and the "
        "score, in `forward` at net.py:12: `x = x.detach()`. Torch says: no. And then: the value leaves torch between "
        "the layer and the score, by `Tensor.numpy`."
    )


def test_some_probes_are_named_and_the_worst_state_is_told() -> None:
    cut = Cut(Cause.ZERO_GRADIENT, None, "")
    assert message("conv", verdict(OK, ZERO, ZERO), [cut]) == (
        "At 'conv' the gradient is exactly zero for probes 1, 2 of 3: a gradient exists and is exactly zero."
    )


@pytest.mark.parametrize(
    ("operation", "seen", "advised"),
    [
        ("nn.functional.relu", "dead ReLU", "leaky"),
        ("Tensor.clamp", "bounds of this clamp", "Widen"),
        ("sigmoid", "saturated", "logits"),
        ("Tensor.softmax", "over one class alone", "logits"),
        ("Tensor.round", "rounding", "straight through"),
        ("Tensor.sign", "steps", "straight through"),
        ("Tensor.masked_fill", "masked", "not masked"),
        ("Tensor.fill_", "written over", "copy"),
        ("nn.functional.linear", "weights", "initialised"),
        ("Tensor.mul", "multiplied by zero", "zero comes from"),
        ("Tensor.register_hook", "hook", "Return nothing"),
    ],
)
def test_each_way_to_zero_reads_differently(operation: str, seen: str, advised: str) -> None:
    cut = Cut(Cause.ZERO_GRADIENT, WHERE, operation)
    assert explanation(cut).startswith(f"it becomes zero in `{operation}`: ")
    assert seen in explanation(cut)
    assert advised in advice(cut)


def test_an_unknown_way_to_zero_is_named_and_not_explained() -> None:
    cut = Cut(Cause.ZERO_GRADIENT, WHERE, "my_op")
    assert explanation(cut) == "it becomes zero in `my_op`"
    assert advice(cut) == remedy(Cause.ZERO_GRADIENT)


def test_the_names_of_zeros_mean_nothing_for_other_causes() -> None:
    cut = Cut(Cause.NO_GRAD, WHERE, "Tensor.relu")
    assert "dead" not in explanation(cut)
    assert advice(cut) == remedy(Cause.NO_GRAD)


def test_a_forward_that_is_called_directly_has_its_own_remedy() -> None:
    assert "layer(x)" in advice(Cut(Cause.HOOK_BYPASSED, WHERE, "forward"))
    assert advice(Cut(Cause.HOOK_BYPASSED, None, "")) == remedy(Cause.HOOK_BYPASSED)


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_can_be_told_with_and_without_an_operation(cause: Cause) -> None:
    assert explanation(Cut(cause, None, "")) == meaning(cause)
    assert explanation(Cut(cause, None, "op"))
    assert advice(Cut(cause, None, "op")) == (
        advice(Cut(cause, None, ""))
        if cause is not Cause.HOOK_BYPASSED
        else "Call the module itself, `layer(x)`, and not `layer.forward(x)`: that alone runs its hooks."
    )
