"""One forward and one partial backward, with gradients worked out by hand."""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import without_collector
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradcam_callback import compute_cam
from gradcam_callback.engine.capture import Recording, recorded
from gradcam_callback.engine.forward import inference_as_no_grad
from gradcam_callback.engine.gradients import LayerGradient, differentiate
from gradcam_callback.engine.layouts import CHANNELS_FIRST
from gradcam_callback.engine.replica import isolated


class Apply(nn.Module):
    """A layer that applies a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def double() -> Apply:
    return Apply(lambda maps: maps * 2)


@contextmanager
def recording(**layers: nn.Module) -> Iterator[dict[str, Recording]]:
    """`recorded`, on a model of these layers that is isolated."""
    with (
        isolated(nn.ModuleDict(layers)),
        recorded(layers, dict.fromkeys(layers, CHANNELS_FIRST.find_activation)) as recordings,
    ):
        yield recordings


def total(maps: Tensor) -> Tensor:
    """A score a sample whose gradient is one everywhere."""
    return maps.flatten(1).sum(1)


def gradient_of(function: Callable[[Apply], Tensor], layer: nn.Module | None = None) -> LayerGradient:
    """What `differentiate` finds at one layer, which the function uses on its way to the scores."""
    layer = double() if layer is None else layer
    with recording(layer=layer) as recordings:
        return differentiate(function(layer), recordings)["layer"]  # type: ignore[arg-type]


@pytest.fixture
def maps() -> Tensor:
    return torch.tensor([[[[1.0, -1.0], [2.0, -2.0]]], [[[-3.0, 3.0], [0.5, -0.5]]]])


# Activation and gradient


def test_each_sample_has_the_gradient_of_its_own_score(maps: Tensor) -> None:
    weights = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    found = gradient_of(lambda layer: total(weights * layer(maps) ** 2))
    assert torch.equal(found.activation, 2 * maps)
    assert torch.equal(found.gradient, 2 * weights * 2 * maps)
    assert found.unusable_output is None
    assert not found.activation.requires_grad
    assert not found.gradient.requires_grad


IN_PLACE = {
    "relu_": (lambda y: y.relu_(), lambda a: (a > 0).float()),
    "functional": (lambda y: F.relu(y, inplace=True), lambda a: (a > 0).float()),
    "mul_": (lambda y: y.mul_(3), lambda a: torch.full_like(a, 3)),
    "add_ and square": (lambda y: y.add_(1) ** 2, lambda a: 2 * (a + 1)),
    "view": (lambda y: y.view(2, -1).mul_(3), lambda a: torch.full_like(a, 3)),
    "item": (lambda y: y.index_fill_(2, torch.tensor([0]), 0.0), lambda a: torch.tensor([[0.0], [1]]).expand_as(a)),
    "zero_": (lambda y: y.zero_(), torch.zeros_like),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("trainable", [False, True])
def test_the_activation_is_the_layers_and_not_that_after_an_operation_in_place(
    maps: Tensor, name: str, trainable: bool
) -> None:
    after, expected = IN_PLACE[name]
    layer = nn.Conv2d(1, 1, 1) if trainable else double()
    with recorded({"layer": layer}, {"layer": CHANNELS_FIRST.find_activation}) as recordings:
        found = differentiate(total(after(layer(maps))), recordings)["layer"]
    activation = layer(maps).detach()
    assert torch.equal(found.activation, activation)
    assert torch.equal(found.gradient, expected(activation))


def test_a_layer_that_works_in_place_is_differentiated_after_itself(maps: Tensor) -> None:
    before, relu = double(), nn.ReLU(inplace=True)
    with recording(before=before, relu=relu) as recordings:
        found = differentiate(total(relu(before(maps)) * 3), recordings)
    assert torch.equal(found["before"].activation, 2 * maps)
    assert torch.equal(found["before"].gradient, 3.0 * (maps > 0))
    assert torch.equal(found["relu"].activation, (2 * maps).relu())
    assert torch.equal(found["relu"].gradient, torch.full_like(maps, 3))


@pytest.mark.parametrize("order", [["inner", "outer", "next"], ["next", "outer", "inner"]])
def test_layers_within_and_behind_each_other_are_all_differentiated(maps: Tensor, order: list[str]) -> None:
    inner = double()
    layers = {"inner": inner, "outer": nn.Sequential(inner, nn.ReLU(inplace=True)), "next": Apply(lambda y: y + 1)}
    with recording(**{name: layers[name] for name in order}) as recordings:
        found = differentiate(total(layers["next"](layers["outer"](maps)) ** 2), recordings)
    assert list(found) == order
    outer = (2 * maps).relu()
    assert torch.equal(found["inner"].activation, 2 * maps)
    assert torch.equal(found["outer"].activation, outer)
    assert torch.equal(found["next"].activation, outer + 1)
    assert torch.equal(found["next"].gradient, 2 * (outer + 1))
    assert torch.equal(found["outer"].gradient, 2 * (outer + 1))
    assert torch.equal(found["inner"].gradient, 2 * (outer + 1) * (maps > 0))


def test_one_module_under_two_names_is_recorded_under_both(maps: Tensor) -> None:
    layer = double()
    with recording(one=layer, two=layer) as recordings:
        found = differentiate(total(layer(maps) * 3), recordings)
    for pair in found.values():
        assert torch.equal(pair.activation, 2 * maps)
        assert torch.equal(pair.gradient, torch.full_like(maps, 3))


def test_a_layer_beside_the_path_does_not_shift_the_others(maps: Tensor) -> None:
    layers = {name: double() for name in "abc"}
    with recording(**layers) as recordings:
        layers["b"](maps)
        found = differentiate(total(layers["a"](maps) * 3 + layers["c"](maps) * 5), recordings)
    assert torch.equal(found["a"].gradient, torch.full_like(maps, 3))
    assert found["b"].gradient is None
    assert torch.equal(found["b"].activation, 2 * maps)
    assert torch.equal(found["c"].gradient, torch.full_like(maps, 5))


@pytest.mark.parametrize(
    ("use", "activation", "gradient"),
    [
        (lambda layer, x: layer(layer(x)) * 3, 4, 3),  # one behind the other: the last
        (lambda layer, x: (layer(x) * 3, layer(5 * x))[0], 2, 3),  # the last is beside the path
        (lambda layer, x: layer(x) * 3 + layer(5 * x) * 7, 10, 7),
        (lambda layer, x: layer(x) * 3 + layer(5 * x).detach(), 2, 3),
    ],
)
def test_of_a_layer_that_runs_twice_the_last_call_that_matters_is_taken(
    maps: Tensor, use: Callable[..., Tensor], activation: float, gradient: float
) -> None:
    found = gradient_of(lambda layer: total(use(layer, maps)))
    assert torch.equal(found.activation, activation * maps)
    assert torch.equal(found.gradient, torch.full_like(maps, gradient))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e30])
def test_tiny_and_huge_gradients_arrive(maps: Tensor, scale: float) -> None:
    found = gradient_of(lambda layer: total(layer(maps) * scale))
    torch.testing.assert_close(found.gradient, torch.full_like(maps, scale), rtol=1e-5, atol=0)


def test_a_score_without_a_history_is_no_gradient(maps: Tensor) -> None:
    found = gradient_of(lambda layer: total(layer(maps).detach()))
    assert torch.equal(found.activation, 2 * maps)
    assert found.gradient is None


def test_no_layers_at_all_is_no_obstacle() -> None:
    with recording() as recordings:
        assert differentiate(torch.ones(2, requires_grad=True), recordings) == {}


# What the layer returns

Pair = namedtuple("Pair", "first second")


class Output(OrderedDict[str, Any]):
    """As in transformers: items and attributes are the same."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.__dict__[key] = value


BESIDE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda y: (BESIDE, y), lambda output: output[1]),
        (lambda y: [y, None, "text"], lambda output: output[0]),
        (lambda y: Pair(BESIDE, y), lambda output: output.second),
        (lambda y: {"a": BESIDE, "b": y}, lambda output: output["b"]),
        (lambda y: OrderedDict(a=y, b=BESIDE), lambda output: output["a"]),
        (lambda y: Output(a=BESIDE, b=y), lambda output: output["b"]),
        (lambda y: Output(a=BESIDE, b=y), lambda output: output.b),
        (lambda y: {"deep": (1, [Pair(y, BESIDE)])}, lambda output: output["deep"][1][0].first),
        (lambda y: torch.max(y, dim=1, keepdim=True), lambda output: output.values),
    ],
)
def test_the_structure_of_what_the_layer_returned_is_kept(
    maps: Tensor, wrap: Callable[[Tensor], Any], take: Callable[[Any], Tensor]
) -> None:
    layer = Apply(lambda x: wrap(x * 2))
    plain, seen = layer(maps), []

    def use(_: Apply) -> Tensor:
        seen.append(layer(maps))
        return total(take(seen[0]) * 3)

    found = gradient_of(use, layer)
    assert torch.equal(found.activation, 2 * maps)
    assert torch.equal(found.gradient, torch.full_like(maps, 3))
    assert type(seen[0]) is type(plain)
    assert repr(seen[0]).split("(")[0] == repr(plain).split("(")[0]
    assert len(seen[0]) == len(plain)


def test_what_else_the_layer_returned_is_handed_on_as_it_is(maps: Tensor) -> None:
    beside, nested = torch.ones(2, 3), {"key": [object()]}
    layer, output = Apply(lambda x: {"maps": x, "beside": beside, "more": (nested, 1)}), []
    gradient_of(lambda _: total((output.append(layer(maps)), output[0]["maps"])[1]), layer)
    assert output[0]["beside"] is beside
    assert output[0]["more"][0]["key"][0] is nested["key"][0]


def test_the_dict_that_the_layer_holds_on_to_is_not_changed(maps: Tensor) -> None:
    held: dict[str, Tensor] = {}

    def remember(x: Tensor) -> dict[str, Tensor]:
        held["maps"] = x * 2
        return held

    gradient_of(lambda layer: total(layer(maps)["maps"]), Apply(remember))
    assert not held["maps"].requires_grad


def test_a_tensor_that_is_returned_twice_counts_twice(maps: Tensor) -> None:
    layer = Apply(lambda x: (lambda y: (y, y))(x * 2))
    found = gradient_of(lambda _: total(sum(layer(maps)) * 3), layer)
    assert torch.equal(found.gradient, torch.full_like(maps, 6))


def test_an_output_without_space_is_refused_and_kept_for_the_message() -> None:
    layer, never = Apply(lambda x: x), double()
    with recording(layer=layer, never=never) as recordings:
        layer(torch.ones(2, 3))
        rows = layer(torch.ones(2, 4))
        found = differentiate(total(rows).requires_grad_(), recordings)
    assert found["layer"].unusable_output is rows
    assert found["layer"].activation is found["layer"].gradient is None
    assert found["never"] == LayerGradient(None, None, None)


def test_a_map_among_the_calls_is_enough(maps: Tensor) -> None:
    layer, kept = Apply(lambda x: x), []

    def use(_: Apply) -> Tensor:
        layer(torch.ones(2, 3))
        kept.append(layer(maps))
        layer(torch.ones(2, 3))
        return total(kept[0] * 3)

    found = gradient_of(use, layer)
    assert found.unusable_output is None
    assert torch.equal(found.gradient, torch.full_like(maps, 3))


# Blocks without gradients inside the model


def test_a_layer_in_a_no_grad_block_is_differentiated(maps: Tensor) -> None:
    def use(layer: Apply) -> Tensor:
        with torch.no_grad():
            before = layer(maps) * 3  # the layer, and something behind it
        return total(before * 5)

    found = gradient_of(use)
    assert torch.equal(found.activation, 2 * maps)
    assert torch.equal(found.gradient, torch.full_like(maps, 15))


def test_a_no_grad_block_behind_the_layer_ends_the_gradient(maps: Tensor) -> None:
    def use(layer: Apply) -> Tensor:
        found = layer(maps)
        with torch.no_grad():
            found = found * 3
        return total(found)

    assert gradient_of(use).gradient is None


@pytest.mark.parametrize(
    "behind",
    [
        lambda y: y,
        lambda y: y * 3,
        lambda y: y.relu_(),
        lambda y: y.mul_(3),
        lambda y: F.relu(y, inplace=True) * 3,
    ],
    ids=["nothing", "new tensor", "relu_", "mul_", "relu_ and new tensor"],
)
def test_a_softened_inference_mode_block_is_gone_through(maps: Tensor, behind: Callable[[Tensor], Tensor]) -> None:
    """In a real one autograd would not see what happens: not even that a tensor of its own was changed in place."""

    def use(layer: Apply) -> Tensor:
        with inference_as_no_grad(), torch.inference_mode():
            found = behind(layer(maps))
        return total(found * 5)

    found = gradient_of(use)
    point = (2 * maps).requires_grad_()
    [expected] = torch.autograd.grad(total(behind(point.clone()) * 5).sum(), point)
    assert torch.equal(found.gradient, expected)
    assert torch.equal(found.activation, 2 * maps)


def test_a_layer_that_ends_an_inference_mode_block_may_be_changed_in_place_behind_it(maps: Tensor) -> None:
    """There the change is seen; whatever guards the inside of the block must not turn it into an error."""

    def use(layer: Apply) -> Tensor:
        with inference_as_no_grad(), torch.inference_mode():
            found = layer(maps)
        return total(found.relu_() * 5)

    assert torch.equal(gradient_of(use).gradient, 5.0 * (maps > 0))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_layer_in_a_checkpointed_block_is_differentiated(maps: Tensor, reentrant: bool, closed: bool) -> None:
    """Backward runs forward again there, and with it the layer's hook; or isolation keeps it from happening."""
    layer, other = double(), double()
    with recording(layer=layer, other=other) as recordings:
        behind = checkpoint(lambda x: layer(x) ** 2 * 3, maps, use_reentrant=reentrant)
        scores = total(other(behind) * 5)  # type: ignore[operator]
        recordings["layer"].closed = closed
        found = differentiate(scores, recordings)
    assert torch.equal(found["layer"].activation, 2 * maps)
    assert torch.equal(found["layer"].gradient, 6 * 2 * maps * 10)
    assert torch.equal(found["other"].gradient, torch.full_like(maps, 5))


def test_whether_gradients_are_on_is_put_back(maps: Tensor) -> None:
    layer = double()
    for mode in (False, True):
        with torch.set_grad_enabled(mode):
            with recorded({"layer": layer}, {"layer": CHANNELS_FIRST.find_activation}):
                layer(maps)
                assert torch.is_grad_enabled()
            assert torch.is_grad_enabled() == mode


def test_layers_around_an_operation_in_place_in_a_softened_block_are_right(maps: Tensor) -> None:
    inner = double()
    outer = nn.Sequential(inner)

    def before_and_after(change: bool) -> tuple[LayerGradient, LayerGradient]:
        with recording(inner=inner, outer=outer) as recordings:
            with inference_as_no_grad(), torch.inference_mode():
                behind = outer(maps)
                if change:
                    behind.mul_(3)
            found = differentiate(total(behind * 5), recordings)
        return found["inner"], found["outer"]

    for pair in before_and_after(change=False):
        assert torch.equal(pair.gradient, torch.full_like(maps, 5))
    for pair in before_and_after(change=True):
        assert torch.equal(pair.gradient, torch.full_like(maps, 15))


def test_a_scripted_layer_is_told_and_the_others_are_differentiated(maps: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, layer = torch.jit.script(nn.Sequential(nn.ReLU())), double()
    with recording(scripted=scripted, layer=layer) as recordings:
        found = differentiate(total(layer(scripted(maps)) * 3), recordings)
    assert found["scripted"] == LayerGradient(None, None, bypassed=True)
    assert torch.equal(found["layer"].gradient, torch.full_like(maps, 3))
    assert not found["layer"].bypassed


class Failing(torch.autograd.Function):
    """Goes forward, and raises on the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, failure: Exception) -> Tensor:
        ctx.failure = failure
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        raise ctx.failure


def test_a_custom_function_that_fails_on_the_way_back_is_a_finding(maps: Tensor) -> None:
    found = gradient_of(lambda layer: total(Failing.apply(layer(maps), AttributeError("no slope"))))
    assert found.gradient is None
    assert found.failure == "no slope"
    assert gradient_of(lambda layer: total(Failing.apply(layer(maps), KeyError()))).failure == "KeyError"


def test_too_little_memory_is_no_finding_about_the_graph(maps: Tensor) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="far too much"):
        gradient_of(lambda layer: total(Failing.apply(layer(maps), torch.OutOfMemoryError("far too much"))))


def test_a_graph_that_cannot_be_gone_back_is_a_finding_and_no_error(maps: Tensor) -> None:
    """The square needs its input, which is changed behind its back."""

    def use(layer: Apply) -> Tensor:
        behind = layer(maps)
        squared = behind**2
        behind.add_(1)
        return total(squared)

    found = gradient_of(use)
    assert torch.equal(found.activation, 2 * maps)
    assert found.gradient is None
    assert "inplace operation" in found.failure


def test_a_layer_behind_another_in_a_block_without_gradients_is_told() -> None:
    first, second, maps = double(), double(), torch.ones(1, 1, 2, 2)
    with recording(first=first, second=second) as recordings:
        behind = first(maps)
        second(behind)
        assert not any(recording.grad_reenabled_calls for recording in recordings.values())
        with torch.no_grad():
            second(behind)
        assert {name: recording.grad_reenabled_calls for name, recording in recordings.items()} == {
            "first": [],
            "second": [1],
        }


# Samples that depend on each other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("keep_graph", [False, True])
def test_one_by_one_each_sample_has_the_gradient_of_its_own_score(dtype: torch.dtype, keep_graph: bool) -> None:
    """Each score takes the mean of all samples away from its own."""
    layer, beside, maps = double(), double(), torch.arange(12, dtype=dtype).view(3, 1, 2, 2)
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=dtype)
    with recording(layer=layer, beside=beside) as recordings:
        behind = layer(maps)
        beside(maps)
        scores = weights * total(behind - behind.mean(0))
        found = differentiate(scores, recordings, keep_graph=keep_graph, one_by_one=True)
    assert found["beside"].gradient is None
    own = (weights * 2 / 3).float().view(3, 1, 1, 1).expand(3, 1, 2, 2)
    torch.testing.assert_close(found["layer"].gradient, own, rtol=1e-3, atol=0)


# Several scores, half precision


def test_the_graph_is_kept_for_another_score_and_freed_with_the_last(maps: Tensor) -> None:
    layer = double()
    with recording(layer=layer) as recordings:
        maps_behind = layer(maps) ** 2
        freed = []
        handle = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        with handle:
            scores = [total(maps_behind * factor) for factor in (1.0, 3.0)]
        first = differentiate(scores[0], recordings, keep_graph=True)["layer"]
        second = differentiate(scores[1], recordings)["layer"]
        freed.append(maps_behind.grad_fn)
    assert torch.equal(first.gradient, 2 * 2 * maps)
    assert torch.equal(second.gradient, 3 * 2 * 2 * maps)
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        _ = freed[0]._saved_self


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("keep_graph", [False, True])
def test_results_are_single_or_double_precision(maps: Tensor, dtype: torch.dtype, keep_graph: bool) -> None:
    layer = double()
    with recording(layer=layer) as recordings:
        scores = total(layer(maps.to(dtype)) * 0.25)
        found = differentiate(scores, recordings, keep_graph=keep_graph)["layer"]
    expected = torch.float64 if dtype is torch.float64 else torch.float32
    assert found.activation.dtype == found.gradient.dtype == expected
    assert found.activation.tolist() == (2 * maps).tolist()
    assert found.gradient.unique().tolist() == [0.25]


def test_half_precision_does_not_lose_small_gradients(maps: Tensor) -> None:
    """The smallest number of half precision is 6e-8."""
    found = gradient_of(lambda layer: total(layer(maps.half()).float() * 1e-8))
    torch.testing.assert_close(found.gradient, torch.full_like(maps, 1e-8), rtol=1e-2, atol=0)


def test_half_precision_does_not_lose_large_gradients(maps: Tensor) -> None:
    found = gradient_of(lambda layer: total(layer(maps.half()).float() * 5000))
    assert found.gradient.unique().tolist() == [5000]


def test_in_half_precision_too_a_sample_does_not_depend_on_its_neighbour(maps: Tensor) -> None:
    """A large gradient beside it must not make a small one zero."""
    weights = torch.tensor([5000, 1e-8]).view(2, 1, 1, 1)
    found = gradient_of(lambda layer: total(layer(maps.half()).float() * weights))
    torch.testing.assert_close(found.gradient, weights.expand_as(maps), rtol=1e-2, atol=0)


# Hooks


def test_hooks_of_the_user_run_behind_ours_and_none_of_ours_is_left(maps: Tensor) -> None:
    layer, seen = double(), []

    def users(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.requires_grad)
        return output * 10

    handle = layer.register_forward_hook(users)
    found = gradient_of(lambda _: total(layer(maps)), layer)
    assert seen == [True]
    assert torch.equal(found.activation, 2 * maps)
    assert found.gradient.unique().tolist() == [10]
    assert list(layer._forward_hooks) == [handle.id]


def test_a_hook_of_the_user_that_detaches_is_on_the_way(maps: Tensor) -> None:
    layer = double()
    layer.register_forward_hook(lambda _module, _args, output: output.detach())
    assert gradient_of(lambda _: total(layer(maps)), layer).gradient is None


def test_hooks_are_gone_when_the_model_raises(maps: Tensor) -> None:
    layer, calls = double(), []

    def fail(_module: nn.Module, _args: Any) -> None:
        calls.append(len(recordings["layer"].calls))
        if len(calls) == 2:
            raise ZeroDivisionError

    layer.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError), recording(layer=layer) as recordings:
        layer(layer(maps))
    assert calls == [0, 1]
    assert not layer._forward_hooks
    assert recordings == {}


def test_no_grad_is_left_on_a_parameter() -> None:
    layer, head = nn.Conv2d(1, 2, 1), nn.Linear(2, 1)
    with recorded(
        {"layer": layer}, {"layer": CHANNELS_FIRST.find_activation}
    ) as recordings:  # not isolated: both are trainable
        scores = head(layer(torch.ones(2, 1, 2, 2)).mean((2, 3)))[:, 0]
        found = differentiate(scores, recordings)["layer"]
    torch.testing.assert_close(found.gradient, (head.weight / 4).view(1, 2, 1, 1).expand(2, 2, 2, 2).detach())
    assert all(parameter.grad is None for parameter in [*layer.parameters(), *head.parameters()])


# Memory


@pytest.mark.parametrize("fail", [False, True])
def test_no_tensor_outlives_the_pass(maps: Tensor, fail: bool) -> None:
    layer, held = double(), []

    def one_pass() -> None:
        with recording(layer=layer) as recordings:
            behind = layer(maps)
            held.extend(weakref.ref(tensor) for tensor in (behind, *recordings["layer"].calls))
            if fail:
                raise ZeroDivisionError
            found = differentiate(total(behind**2), recordings)["layer"]
            held.extend(weakref.ref(tensor) for tensor in (found.activation, found.gradient))

    with without_collector():
        try:
            one_pass()
        except ZeroDivisionError as error:
            del error
        assert len(held) == (2 if fail else 4)
        assert [reference() for reference in held] == [None] * len(held)


def test_what_was_found_holds_no_graph(maps: Tensor) -> None:
    layer, behind = double(), []

    def use(_: Apply) -> Tensor:
        maps_behind = layer(maps) * 3
        behind.append(weakref.ref(maps_behind))
        return total(maps_behind**2)

    with without_collector():
        found = gradient_of(use, layer)
        assert behind[0]() is None
    assert found.gradient is not None
    assert found.activation.grad_fn is None


def test_nothing_is_recorded_before_the_layer(maps: Tensor) -> None:
    layer = double()
    with (
        isolated(nn.Conv2d(1, 1, 1)) as stem,
        recorded({"layer": layer}, {"layer": CHANNELS_FIRST.find_activation}) as recordings,
    ):
        before = stem.model(maps)
        assert differentiate(total(layer(before)), recordings)["layer"].gradient is not None
    assert before.grad_fn is None


# A layer that returns its own input


class Reusing(nn.Module):
    """Uses a tensor again under its old name, after a layer that returned it."""

    def __init__(self, layer: nn.Module, afterwards: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, 5)
        self.afterwards = afterwards

    def forward(self, images: Tensor) -> Tensor:
        before = self.conv(images)
        return self.head(self.afterwards(before, self.layer(before)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "afterwards", "weight"),
    [
        (nn.ReLU(inplace=True), lambda before, after: before + after, 2.0),
        (nn.ReLU(inplace=True), lambda before, after: before, 1.0),
        (nn.Identity(), lambda before, after: before + after, 2.0),
        (nn.Dropout(), lambda before, after: before * 3, 3.0),
    ],
)
def test_a_tensor_under_two_names_gets_its_whole_gradient(
    layer: nn.Module, afterwards: Callable[[Tensor, Tensor], Tensor], weight: float
) -> None:
    model, images = Reusing(layer, afterwards).eval(), torch.randn(2, 3, 6, 6)
    result = compute_cam(model, images, "layer", target=1)
    with torch.no_grad():
        activation = layer(model.conv(images))
    gradient = weight * model.head.weight[1].detach() / 16  # through the mean over 4 x 4 places
    expected = torch.einsum("k,nkhw->nhw", gradient, activation).relu()
    torch.testing.assert_close(result.cams["layer"], expected)
    torch.testing.assert_close(result.scores, model(images)[:, 1].detach())


@dataclass
class Box:
    """What some networks pass from block to block."""

    maps: Tensor


class Unpacking(nn.Module):
    """An in-place ReLU that finds its input wherever it is."""

    def forward(self, given: Any = None, *, maps: Any = None) -> Tensor:
        found = maps if given is None else given
        while not isinstance(found, Tensor):
            found = vars(found) if isinstance(found, Box) else found
            found = next(iter(found.values() if isinstance(found, dict) else found))
        return found.relu_()


GIVEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "by position": lambda layer, before: layer(before),
    "by keyword": lambda layer, before: layer(maps=before),
    "in a list": lambda layer, before: layer([before]),
    "in a list by keyword": lambda layer, before: layer(maps=[before]),
    "in a dict": lambda layer, before: layer({"maps": before}),
    "in a tuple in a dict": lambda layer, before: layer(maps={"maps": (before, None)}),
    "in a dataclass": lambda layer, before: layer(Box(before)),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("view", [False, True])
def test_an_in_place_layer_gets_its_whole_gradient_however_it_is_called(given: Any, guard: Any, view: bool) -> None:
    torch.manual_seed(0)
    layer, maps = Unpacking(), torch.randn(2, 4, 3, 3)

    def use(_: nn.Module) -> Tensor:
        before = torch.cat([maps, maps], 1)[:, :4] if view else maps * 1
        with guard():
            after = given(layer, before)
        return total(before + 2 * after)

    found = gradient_of(use, layer)
    assert torch.equal(found.activation, maps.relu())
    assert found.gradient.unique().tolist() == [3]


def test_an_input_that_is_changed_after_an_identity_is_changed_for_both() -> None:
    model = Reusing(nn.Identity(), lambda before, after: (before.relu_(), after)[1]).eval()
    images = torch.randn(2, 3, 6, 6)
    result = compute_cam(model, images, "layer", target=1)
    torch.testing.assert_close(result.scores, model(images)[:, 1].detach())
