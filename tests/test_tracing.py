"""The tracer by itself: tensors in hand, no layer, no score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.torch_calls import ATTEMPTS, perturbed
from gradcam_callback.diagnosis.trace import Step
from gradcam_callback.diagnosis.tracer import Tracer
from gradcam_callback.diagnosis.watchers import ForwardCallDetector
from gradcam_callback.engine.no_grad_fallback import NoGradFallback
from gradcam_callback.engine.process_state import inference_as_no_grad


def begun(tracer: Tracer, tensor: Tensor | None = None) -> Tensor:
    """What follows a layer: the clone of a leaf tensor."""
    leaf = (torch.randn(2, 3) if tensor is None else tensor).requires_grad_()
    activation = leaf.clone()
    tracer.begin(activation)
    return activation


def traced(function: Callable[[Tensor], Any], **settings: Any) -> tuple[Tracer, Any]:
    tracer = Tracer(**settings)
    with tracer.watching(nn.Identity()):
        result = function(begun(tracer))
    return tracer, result


def told(steps: list[Step]) -> list[tuple[str, Cause | None, list[tuple[int, bool]]]]:
    return [(s.operation, s.inherent_cause, [(use.producer, use.alive) for use in s.uses]) for s in steps[1:]]


def test_steps_know_who_made_what_they_use() -> None:
    tracer, _ = traced(lambda x: (x * 2).relu() + x)
    assert told(tracer.trace.steps) == [
        ("Tensor.mul", None, [(0, True)]),
        ("Tensor.relu", None, [(1, True)]),
        ("Tensor.add", None, [(2, True), (0, True)]),
    ]


def test_what_does_not_depend_on_the_layer_is_no_step() -> None:
    def forward(x: Tensor) -> Tensor:
        constant = torch.ones(3).exp() + torch.zeros_like(x)
        return x + constant.to(x)

    assert [step.operation for step in traced(forward)[0].trace.steps] == ["layer", "Tensor.add"]


def test_a_detached_tensor_is_dead_from_its_next_use_on() -> None:
    tracer, _ = traced(lambda x: x.detach() * 2)
    assert told(tracer.trace.steps) == [
        ("Tensor.detach", Cause.DETACHED, [(0, True)]),
        ("Tensor.mul", None, [(1, False)]),
    ]


def test_a_weight_that_requires_a_gradient_does_not_make_its_result_alive() -> None:
    weight = torch.ones(3, requires_grad=True)
    tracer, result = traced(lambda x: x.detach() * weight)
    use = tracer.use_of(result)
    assert result.requires_grad
    assert use is not None
    assert not use.alive


def test_a_write_through_a_view_is_a_step_of_the_whole() -> None:
    def forward(x: Tensor) -> Tensor:
        memory = torch.zeros(2, 6)
        memory[:, :3] = x
        memory[:, 3:].copy_(x)
        return memory.sum()

    operations = [(step.operation, [use.producer for use in step.uses]) for step in traced(forward)[0].trace.steps[1:]]
    assert operations == [
        ("Tensor.__setitem__", [0]),
        ("Tensor.__getitem__", [1]),
        ("Tensor.copy_", [1, 0]),
        ("Tensor.sum", [3]),
    ]


def test_memory_seen_again_without_its_gradient_is_a_step_without_a_line() -> None:
    tracer, _ = traced(lambda x: nn.Parameter(x) * 2)
    unseen, product = tracer.trace.steps[1:]
    assert (unseen.operation, unseen.inherent_cause, unseen.frames) == ("", Cause.DETACHED, ())
    assert [(use.producer, use.alive) for use in product.uses] == [(1, False)]


def test_blocks_and_their_numbers() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x * 2
        with torch.inference_mode():
            return x + 1

    tracer, result = traced(forward)
    product, total = tracer.trace.steps[1:]
    assert (product.inherent_cause, total.inherent_cause) == (Cause.NO_GRAD, Cause.INFERENCE_MODE)
    assert not result.is_inference()
    crossed, result = traced(forward, bridged=frozenset({product.cut_id}))
    assert crossed.trace.steps[1].inherent_cause is None
    assert crossed.trace.steps[2].cut_id == total.cut_id
    _, result = traced(forward, bridged=frozenset({product.cut_id, total.cut_id}))
    assert result.requires_grad


def test_crossing_keeps_the_numbers_of_the_steps() -> None:
    def forward(x: Tensor) -> Tensor:
        return (x * 2).detach() + 1

    plain, _ = traced(forward)
    crossed, result = traced(forward, bridged=frozenset({plain.trace.steps[2].cut_id}))
    assert [step.operation for step in crossed.trace.steps] == [step.operation for step in plain.trace.steps]
    assert result.requires_grad


@pytest.mark.parametrize(
    "leave", [Tensor.tolist, Tensor.numpy, lambda x: x.sum().item(), lambda x: bool((x > 0).all())]
)
def test_torch_exits_are_noted_and_can_be_perturbed(leave: Callable[[Tensor], Any]) -> None:
    tracer, _ = traced(lambda x: leave(x.detach()))
    [(number, step)] = tracer.trace.torch_exits
    assert step.inherent_cause is Cause.LEFT_TORCH
    torch.manual_seed(0)
    _, plain = traced(lambda x: torch.tensor(leave(x.detach().fill_(1))))
    _, changed = traced(lambda x: torch.tensor(leave(x.detach().fill_(1))), perturb={number: perturbed})
    assert not torch.equal(plain, changed)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach() * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_the_inside_of_a_custom_function_is_named_by_it_and_begins_at_its_call() -> None:
    tracer, _ = traced(lambda x: Squared.apply(x))
    assert {(step.operation, step.inherent_cause) for step in tracer.trace.steps[1:]} == {
        ("Squared", Cause.CUSTOM_FUNCTION)
    }
    outside = [[frame for frame in step.frames if frame.file == __file__] for step in tracer.trace.steps[1:]]
    assert all(frames[0].function == "<lambda>" for frames in outside)


def test_saved_tensors_that_were_changed_are_noted() -> None:
    def forward(x: Tensor) -> Tensor:
        harmless, changed = x.exp(), x.exp()
        changed.mul_(2)
        return (harmless + changed).sum()

    tracer, result = traced(forward, check_saved=True)
    result.backward()
    [(address, saved_by)] = tracer.trace.modified_after_save
    [writer] = [step for step in tracer.trace.steps if address in step.written]
    assert (saved_by, writer.index, writer.operation) == (2, 3, "Tensor.mul_")


def test_modules_are_named_by_their_dotted_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sigmoid())
    tracer = Tracer()
    x = begun(tracer)
    with tracer.watching(model):
        model(x)
    assert [step.module for step in tracer.trace.steps[1:]] == ["0.0", "1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# Calls that gradients make impossible


def switch_off(x: Tensor) -> Tensor:
    x.requires_grad = False
    return x


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.mean(x, dim=1, out=torch.empty(0)),
        lambda x: switch_off(x * 2) + 1,
        lambda x: switch_off(x.view(-1)) + 1,
        lambda x: torch.from_dlpack(x),
        lambda x: x[0].detach_() + 1,
    ],
)
def test_what_only_gradients_make_impossible_is_done_without(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(6.0).view(2, 3)
    expected = call(x.clone()) if call.__code__.co_names != ("detach_",) else x[0] + 1
    with NoGradFallback():
        result = call(x.clone().requires_grad_().clone())
    assert not result.requires_grad
    torch.testing.assert_close(result, expected)


def test_a_mistake_stays_a_mistake() -> None:
    with NoGradFallback(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.ones(2, 3, requires_grad=True) @ torch.ones(2, 3)


def test_inference_mode_as_no_grad_computes_tensors_that_can_carry_a_gradient() -> None:
    originals = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    x = torch.ones(2, requires_grad=True)
    with inference_as_no_grad():
        with torch.inference_mode():
            inside = x * 2
            with torch.inference_mode(False):
                assert torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    assert not inside.is_inference()
    assert not inside.requires_grad
    assert (torch.inference_mode.__enter__, torch.inference_mode.__exit__) == originals


def test_call_detector_sees_a_forward_that_is_called_directly() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with ForwardCallDetector(layer) as seen, ForwardCallDetector(other) as unseen:
        layer.forward(torch.ones(1, 2))
    assert seen.frames is not None
    assert unseen.frames is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_perturbed_values_are_others_of_the_same_kind(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [2, 3]]).to(dtype)
    for attempt in ATTEMPTS:
        other = perturbed(tensor, attempt)
        assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)
        assert not torch.equal(other, tensor)
        assert torch.equal(other, perturbed(tensor, attempt))
