"""Layers that run more than once in a forward pass: which call is explained, that its map is right, what is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from models import STEPS, Classifier
from reference import METHODS, reference_cam, relative_error
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradcam_callback import Cause, Diagnosis, GradCAMCallback, GradientState, compute_cam, diagnose
from gradcam_callback.diagnosis.tracer import bridging
from gradcam_callback.engine.auto import choose_layer
from gradcam_callback.engine.device_results import judge
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.layers import check_names, find_layers
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import CAMResult, name_call, split_call

MakeRun = Callable[..., Run]
Guard = Callable[[], Any]


def plain(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return block(*args)


def checkpointed(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return checkpoint(block, *args, use_reentrant=False)


def reentrant(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return checkpoint(block, *args, use_reentrant=True)


def without_gradients(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    with torch.no_grad():
        return block(*args)


def in_inference_mode(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    with torch.inference_mode():
        return block(*args)


Way = Callable[..., Tensor]


class Shared(nn.Module):
    """One head for three scales, as in a detector; `ways[i]` is how call `i` of the head is made."""

    passes = 0

    def __init__(self, ways: Sequence[Way] = (plain, plain, plain)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 3)
        self.ways = ways

    def forward(self, images: Tensor) -> Tensor:
        Shared.passes += 1
        maps, logits = self.stem(images), torch.zeros(len(images), 3, dtype=images.dtype)
        for number, way in enumerate(self.ways):
            found = way(self.head, F.avg_pool2d(maps, 2**number))
            logits = logits + (number + 1) * self.fc(F.relu(found, inplace=True).mean((2, 3)))
        return logits


class Recurrent(nn.Module):
    """A cell that sees its own output again; `ways[i]` is how call `i` is made."""

    def __init__(self, ways: Sequence[Way] = (plain, plain, plain)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.cell, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 3)
        self.ways = ways

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.stem(images))
        state, logits = torch.zeros_like(maps), torch.zeros(len(images), 3, dtype=images.dtype)
        for way in self.ways:
            state = torch.tanh(way(self.cell, torch.cat([maps, state], 1)))
            logits = logits + self.fc(F.relu(state).mean((2, 3)))
        return logits


class Mixed(nn.Module):
    """A head, and what becomes of each of its two calls before they are added up."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 3)
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> Tensor:
        one, two = self.head(images), self.head(images.flip(3) + 1)
        return self.fc((self.first(one) + self.second(two)).relu().mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def same(x: Tensor) -> Tensor:
    return x


def unused(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def detached(x: Tensor) -> Tensor:
    return x.detach()


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 1)


def explained(model: nn.Module, images: Tensor, name: str, reason: Diagnosis) -> CAMResult:
    """The map of class 1 across the cuts that a diagnosis found."""
    results = explain(model, images, CAMRequest.of(name, [1]), observer=bridging(reason.bridges))
    return judge(results, results.verdicts)[0]


def check(result: CAMResult, name: str, twin: nn.Module, images: Tensor, call: int, **options: Any) -> None:
    layer, _ = split_call(name)
    expected = reference_cam(twin, images, layer, call=call, target=result.targets.tolist(), **options)
    assert expected.amax() > 0
    assert relative_error(result.cams[name], expected).max() <= 1e-5


# Right maps

NETWORKS: dict[str, Callable[..., nn.Module]] = {"head": Shared, "cell": Recurrent}
TWINS = [pytest.param(build, layer, id=build.__name__) for layer, build in NETWORKS.items()]


@pytest.mark.parametrize(("build", "layer"), TWINS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", [0, 1, 2, -1, -2, -3])
def test_each_call_has_its_own_total_derivative(
    images: Tensor, build: Callable[..., nn.Module], layer: str, method: str, call: int
) -> None:
    name = f"{layer}#{call}"
    result = compute_cam(build(), images, name, method=method)
    check(result, name, build(), images, call % 3, method=method)
    assert list(result.cams) == list(result.health) == [name]
    assert (result.health[name].calls, result.health[name].call) == (3, call % 3)


@pytest.mark.parametrize(("build", "layer"), TWINS)
def test_calls_side_by_side_come_from_one_pass(images: Tensor, build: Callable[..., nn.Module], layer: str) -> None:
    names = [f"{layer}#1", f"{layer}#0", layer, f"{layer}#-1", "stem"]
    Shared.passes = 0
    result = compute_cam(build(), images, names, target=1)
    assert Shared.passes == (build is Shared)
    assert list(result.cams) == names
    for name, call in zip(names, (1, 0, 2, 2, 0), strict=True):
        check(result, name, build(), images, call)
        assert result.health[name].call == call


def test_calls_may_differ_in_size(images: Tensor) -> None:
    result = compute_cam(Shared(), images, ["head#0", "head#1", "head#2"])
    assert [tuple(cam.shape) for cam in result.cams.values()] == [(3, 16, 16), (3, 8, 8), (3, 4, 4)]
    assert {tuple(maps.shape) for maps in result.heatmaps().values()} == {(3, 16, 16)}


WAYS = {
    "checkpoint": (checkpointed,) * 3,
    "reentrant checkpoint": (reentrant,) * 3,
    "first in no_grad": (without_gradients, plain, plain),
    "last in no_grad": (plain, plain, without_gradients),
    "all in no_grad": (without_gradients,) * 3,
    "all in inference_mode": (in_inference_mode,) * 3,
    "mixed": (without_gradients, checkpointed, reentrant),
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("call", [0, 1, 2, -1, -2, -3])
def test_a_call_in_a_block_of_any_kind(images: Tensor, ways: Sequence[Way], call: int) -> None:
    """The scales do not depend on each other, so that a block around one call is no cut on the way of another."""
    result = compute_cam(Shared(ways), images, f"head#{call}")
    check(result, f"head#{call}", Shared(), images, call % 3)


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_all_calls_in_blocks_of_any_kind_in_one_go(images: Tensor, ways: Sequence[Way]) -> None:
    result = compute_cam(Shared(ways), images, ["head#0", "head#1", "head#2"])
    for call in range(3):
        check(result, f"head#{call}", Shared(), images, call)


@pytest.mark.parametrize("ways", [WAYS["checkpoint"], WAYS["reentrant checkpoint"]], ids=["usual", "reentrant"])
@pytest.mark.parametrize("call", [0, 1, 2, -2])
def test_a_checkpointed_recurrence(images: Tensor, ways: Sequence[Way], call: int) -> None:
    result = compute_cam(Recurrent(ways), images, f"cell#{call}")
    check(result, f"cell#{call}", Recurrent(), images, call % 3)


class OneBlock(Shared):
    """All calls in one checkpointed block, some of them without gradients."""

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(super().forward, images, use_reentrant=False)


@pytest.mark.parametrize("off", [(), (0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("call", [0, 1, 2])
def test_calls_that_are_run_again_during_backward(images: Tensor, off: tuple[int, ...], call: int) -> None:
    ways = [without_gradients if number in off else plain for number in range(3)]
    result = compute_cam(OneBlock(ways), images, f"head#{call}")
    check(result, f"head#{call}", Shared(), images, call)


@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_call_asks_nothing_of_the_caller(images: Tensor, guard: Guard) -> None:
    model = Shared().requires_grad_(False)
    with guard():
        result = compute_cam(model, images, ["head#0", "head#-1"])
    check(result, "head#0", Shared(), images, 0)
    check(result, "head#-1", Shared(), images, 2)


@pytest.mark.parametrize("name", ["cell#0", "cell#-3"])
@pytest.mark.parametrize("others", [[], ["cell#1"]], ids=["alone", "beside another"])
def test_what_a_no_grad_block_takes_away_is_not_given_back_by_a_later_call(
    images: Tensor, name: str, others: list[str]
) -> None:
    """The first call reaches the score by itself, and through the second, a cut: autograd gives the one part."""
    ways = (plain, without_gradients, without_gradients)
    result = compute_cam(Recurrent(ways), images, [name, *others], target=1)
    check(result, name, Recurrent(ways), images, 0)


def test_a_call_that_did_not_happen_is_said_among_such_blocks_too(images: Tensor) -> None:
    model = Recurrent((plain, without_gradients, without_gradients))
    for name in ("cell#-4", "cell#3"):
        verdict = compute_cam(model, images, name).health[name]
        assert (verdict.cause, verdict.calls) == (Cause.LAYER_NOT_CALLED, 3)


def test_without_a_number_too_a_gradient_is_whole_or_not_there(images: Tensor) -> None:
    """The last call is beside the way to the score, and would have switched gradients on on that of the first."""

    class Cut(Mixed):
        def forward(self, images: Tensor) -> Tensor:
            one = self.head(images)
            with torch.no_grad():
                self.head(images)
                part = one * 5
            return self.fc((one + part).relu().mean((2, 3)))

    model = Cut(same, same)
    result = compute_cam(model, images, "head", target=1)
    assert (result.health["head"].calls, result.health["head"].call) == (2, 0)
    check(result, "head", model, images, 0)


# Which call


@pytest.mark.parametrize(
    ("first", "second", "call"),
    [(same, same, 1), (same, unused, 0), (same, detached, 0), (unused, unused, 1), (detached, unused, 1)],
)
def test_without_a_number_it_is_the_last_call_that_the_score_depends_on(
    images: Tensor, first: Any, second: Any, call: int
) -> None:
    model = Mixed(first, second)
    verdict = compute_cam(model, images, "head").health["head"]
    assert (verdict.calls, verdict.call) == (2, call)
    chosen = compute_cam(model, images, f"head#{call}")
    assert chosen.health[f"head#{call}"].state == verdict.state


def test_a_layer_that_runs_once_says_so(images: Tensor) -> None:
    for name, number in (("stem", 0), ("stem#0", 0), ("stem#-1", 0)):
        result = compute_cam(Shared(), images, name)
        check(result, name, Shared(), images, number)
        assert (result.health[name].calls, result.health[name].call) == (1, 0)


@pytest.mark.parametrize("written", ["head#0", "head#00", "head#-0"])
def test_names_are_normalised(images: Tensor, written: str) -> None:
    assert list(compute_cam(Shared(), images, written).cams) == ["head#0"]


def test_list_indices_and_compiled_modules_may_stand_before_the_number() -> None:
    model = nn.ModuleDict({"heads": nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())})
    assert find_layers(model, ["heads[-1]#2", "_orig_mod.heads.0#-1"]) == {
        "heads.1#2": model["heads"][1],
        "heads.0#-1": model["heads"][0],
    }


def test_auto_is_not_confused_by_a_module_with_such_a_name(images: Tensor) -> None:
    model = nn.Sequential()
    for name, module in (("c#", nn.Conv2d(3, 4, 3)), ("c#1", nn.Conv2d(4, 4, 3)), ("flat", nn.Flatten())):
        model.add_module(name, module)
    model.add_module("fc", nn.Linear(4 * 12 * 12, 3))
    [name] = compute_cam(model, images).cams
    assert name == "c#1#-1"
    assert choose_layer(model, images).layers == (name,)
    assert list(compute_cam(model, images, name).cams) == [name]


def test_auto_runs_a_model_that_leaves_an_inference_mode_block_of_its_own(images: Tensor) -> None:
    """What comes out of a real one could not be changed in place behind it."""
    model = Shared((in_inference_mode,) * 3)
    assert choose_layer(model, images).layers == ("stem",)  # each call of the head is a part of the signal
    model.spare = nn.Conv2d(1, 1, 1)
    assert diagnose(model, images, "spare").cause is Cause.LAYER_NOT_CALLED


# What is refused, and what is said


@pytest.mark.parametrize("name", ["head#", "head#first", "head#1.5", "head#0.conv", "head#0#x", "head# 0", "head#+1"])
def test_what_is_no_number_is_refused_when_names_are_checked(images: Tensor, name: str) -> None:
    for refuse in (
        lambda: check_names(["stem", name]),
        lambda: compute_cam(Shared(), images, name),
        lambda: diagnose(Shared(), images, name),
        lambda: GradCAMCallback(target_layers=[name]),
    ):
        with pytest.raises(BadInputError, match=r"no number of a call.*counted from 0.*minus.*head\.conv#0"):
            refuse()


def test_auto_takes_no_number() -> None:
    with pytest.raises(BadInputError, match="chooses a layer by itself"):
        check_names("auto#0")


def test_an_unknown_layer_with_a_number_is_an_unknown_layer(images: Tensor) -> None:
    with pytest.raises(BadInputError, match=r"no layer 'haed'\. The closest: 'head'"):
        compute_cam(Shared(), images, "haed#1")


RAN_THREE_TIMES = (
    "The forward pass ran 'head' 3 times, so there is no call '{}'. Possible: #0 to #2, or from the end #-1 to #-3."
)
NOT_CALLED = {
    "head#3": RAN_THREE_TIMES.format("head#3"),
    "head#-4": RAN_THREE_TIMES.format("head#-4"),
    "stem#1": "The forward pass ran 'stem' once, so there is no call 'stem#1'. Possible: #0 or #-1.",
    "spare#0": "The forward pass never ran 'spare'.",
    "spare#-1": "The forward pass never ran 'spare'.",
}


@pytest.mark.parametrize("name", NOT_CALLED)
def test_a_call_that_did_not_happen_has_rows_of_nan_and_a_cause(images: Tensor, name: str) -> None:
    model = Shared()
    model.spare = nn.Conv2d(1, 1, 1)
    result = compute_cam(model, images, [name, "head#0"])
    verdict = result.health[name]
    assert result.cams[name].isnan().all()
    assert verdict.state == (GradientState.NONE,) * 3
    assert (verdict.cause, verdict.detail) == (Cause.LAYER_NOT_CALLED, NOT_CALLED[name])
    assert verdict.calls == {"head": 3, "stem": 1, "spare": 0}[split_call(name)[0]]
    check(result, "head#0", Shared(), images, 0)


def test_the_diagnosis_of_a_call_that_did_not_happen_names_those_that_did(images: Tensor) -> None:
    found = diagnose(Shared(), images, "head#3")
    assert (found.layer, found.cause, found.location) == ("head#3", Cause.LAYER_NOT_CALLED, None)
    assert found.message == (
        "At 'head#3' the gradient is None for all 3 probes: there was no such call of the layer. "
        + NOT_CALLED["head#3"]
    )


def test_a_call_without_space_is_told_from_the_others(images: Tensor) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.fc = nn.ReLU(), nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.relu(self.fc(self.relu(images).mean((2, 3))))

    assert not compute_cam(Both(), images, "relu#0").health["relu#0"].null_probes
    assert compute_cam(Both(), images, "relu").health["relu"].call == 0
    with pytest.raises(BadInputError, match=r"'relu#1' returned a tensor of shape \(3, 3\)"):
        compute_cam(Both(), images, "relu#1")


# Why


def test_a_diagnosis_follows_the_call_that_was_chosen(images: Tensor) -> None:
    model = Mixed(detached, same)
    found = {name: diagnose(model, images, name) for name in ("head#0", "head#-2", "head#1", "head")}
    assert {name: reason.cause for name, reason in found.items()} == {
        "head#0": Cause.DETACHED,
        "head#-2": Cause.DETACHED,
        "head#1": None,
        "head": None,
    }
    assert {reason.location.code for reason in found.values() if reason.location} == {"return x.detach()"}
    assert found["head#0"].path[1].operation == "Tensor.detach"
    assert found["head"].message.endswith("ran more than once; this is head#1 of calls #0 to #1.")


@pytest.mark.parametrize("name", ["head#0", "head#-2"])
@pytest.mark.parametrize("second", [same, detached])
def test_a_cut_behind_the_chosen_call_is_crossed(images: Tensor, name: str, second: Any) -> None:
    model = Mixed(detached, second)
    reason = diagnose(model, images, name)
    result = explained(model, images, name, reason)
    check(result, name, Mixed(same, second), images, 0)


def test_only_the_chosen_call_is_disturbed_to_see_what_depends_on_it(images: Tensor) -> None:
    model = Mixed(through_numpy, unused)
    assert diagnose(model, images, "head#0").cause is Cause.LEFT_TORCH
    assert diagnose(model, images, "head#1").cause is Cause.NOT_ON_PATH


def test_a_cut_between_two_calls_is_that_of_the_first(images: Tensor) -> None:
    class Chain(Mixed):
        def forward(self, images: Tensor) -> Tensor:
            again = self.head(self.first(self.head(images))[:, :3])
            return self.fc(again.relu().mean((2, 3)))

    model = Chain(detached, same)
    assert diagnose(model, images, "head#0").cause is Cause.DETACHED
    assert diagnose(model, images, "head#1").cause is None
    assert compute_cam(model, images, ["head#0", "head#1"]).health["head#0"].state == (GradientState.NONE,) * 3


def test_a_block_behind_the_chosen_call_is_named_and_crossed(images: Tensor) -> None:
    class Chain(Mixed):
        def forward(self, images: Tensor) -> Tensor:
            one = self.head(images)[:, :3]
            return self.fc(self.first(one).relu().mean((2, 3)))

    def again(model: Mixed, guard: Guard) -> Mixed:
        def run(maps: Tensor) -> Tensor:
            with guard():
                return model.head(maps)

        model.first = run
        return model

    model = again(Chain(same, same), torch.no_grad)
    reason = diagnose(model, images, "head#0")
    assert reason.cause is Cause.NO_GRAD
    result = explained(model, images, "head#0", reason)
    check(result, "head#0", again(Chain(same, same), torch.enable_grad), images, 0)


# In a training


class SharedClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__(Shared())


def test_two_calls_are_two_panels_side_by_side(run: MakeRun) -> None:
    layers = ["model.head#0", "model.head#-1"]
    fit = run(GradCAMCallback(layers, probes=4), SharedClassifier(), max_epochs=2).fit()

    assert fit.alerts == []
    for layer in layers:
        assert fit.events.steps(f"gradcam/{layer}") == [STEPS, 2 * STEPS]
        assert len(fit.events.values(f"gradcam/gradient_norm/{layer}")) == 2
    result = fit.callback.last_result
    assert result is not None
    assert fit.callback.probes is not None
    assert list(result.cams) == layers
    check(result, layers[0], fit.module, fit.callback.probes.images, 0)
    check(result, layers[1], fit.module, fit.callback.probes.images, 2)


def test_a_call_that_did_not_happen_is_an_alert(run: MakeRun) -> None:
    fit = run(GradCAMCallback(["model.head#0", "model.head#5"], probes=4), SharedClassifier(), max_epochs=2).fit()

    assert [alert[:3] for alert in fit.alerts] == [("raised", "model.head#5", "layer_not_called")]
    assert "ran 'model.head' 3 times" in fit.callback.alerts[0].finding.message
    assert fit.events.steps("gradcam/model.head#0") == [STEPS, 2 * STEPS]


def test_names_of_calls() -> None:
    assert split_call("a.b#12") == ("a.b", 12)
    assert split_call("a.b") == ("a.b", None)
    assert split_call("a#b#-1") == ("a#b", -1)
    assert name_call("a", 1, 0) == "a"
    assert name_call("a", 2, 1) == name_call("a#-1", 2, 1) == "a#1 of calls #0 to #1"
