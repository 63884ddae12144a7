"""`diagnose` is held to the whole shelf of broken models."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_models as shelf_module
import numpy as np
import pytest
import torch
import torchvision
from broken_models import Shelved, build, shelf
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.diagnoser import diagnose
from gradcam_callback.diagnosis.tracer import bridging
from gradcam_callback.engine.device_results import judge
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import Diagnosis

MODES: dict[str, Callable[[], Any]] = {
    "plain": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
RESCUED_BY = {"plain": (), "no_grad": (Cause.NO_GRAD,), "inference_mode": (Cause.INFERENCE_MODE,)}


def named(*names: str) -> pytest.MarkDecorator:
    kinds = [getattr(shelf_module, name) for name in names]
    return pytest.mark.parametrize("kind", kinds, ids=names)


def diagnosed(kind: type[Shelved], mode: str = "plain", train: bool = False) -> Diagnosis:
    model = build(kind).train(train)
    with MODES[mode]():
        return diagnose(model, kind.images(), kind.layer)


def rotated_mode(kind: type[Shelved]) -> str:
    """The call is made in one of the modes, which one depends on the model's name."""
    return [*MODES, "train"][zlib.crc32(kind.__name__.encode()) % 4]


@pytest.mark.parametrize("kind", shelf(), ids=lambda kind: kind.__name__)
def test_shelf(kind: type[Shelved]) -> None:
    mode = rotated_mode(kind)
    found = diagnosed(kind, mode if mode in MODES else "plain", train=mode == "train")
    assert found.cause == kind.cause
    marked = kind.marked_lines()
    causes = kind.causes or ((kind.cause,) * max(len(marked), 1) if kind.cause else ())
    assert [cut.cause for cut in found.cuts] == list(causes)
    assert [(cut.location.file, cut.location.line) for cut in found.cuts if cut.location] == marked
    assert found.probes == (kind.probes if kind.cause else ())
    if found.location is not None:
        assert found.location.function == kind.function
        assert found.location.module == kind.module
        assert found.location.code == Path(marked[0][0]).read_text().splitlines()[marked[0][1] - 1].strip()
    if found.path:
        assert set(kind.rescued) | set(RESCUED_BY.get(mode, ())) <= set(found.rescued)
        assert_sensible(found)
    assert bool(found.bridges) == kind.bridgeable
    if kind.bridgeable:
        assert_crossed(kind, found)


@named("DetachedOnlyInEval", "GradEnabledInTraining", "CalledInTrainingOnly", "InferenceUnlessTraining")
@pytest.mark.parametrize("train", [False, True])
def test_what_training_mode_hides_is_found(kind: type[Shelved], train: bool) -> None:
    assert diagnosed(kind, train=train).cause is kind.cause


def assert_sensible(found: Diagnosis) -> None:
    """The way begins at the layer, and where the gradient is lost, nothing is alive but what stands before."""
    assert found.path[0].operation == "layer"
    lost = found.cause in (Cause.DETACHED, Cause.NO_GRAD, Cause.INFERENCE_MODE, Cause.REQUIRES_GRAD_OFF)
    if lost and len(found.probes) == 2 and found.location is not None:
        [cut] = [step for step in found.path if step.operation == found.cuts[0].operation][:1]
        assert not cut.alive
        assert cut.gradient_norm is None
    if found.cause is None:
        assert all(step.alive and step.gradient_norm for step in found.path)


def test_shelf_is_complete() -> None:
    """Three forms of every cause with a line, and enough that only looks broken."""
    without = {Cause.LAYER_NOT_CALLED, Cause.HOOK_BYPASSED, Cause.NOT_ON_PATH, Cause.UNSUPPORTED_OUTPUT}
    for cause in set(Cause) - without:
        assert len([kind for kind in shelf() if kind.cause is cause and kind.marked_lines()]) >= 3, cause
    assert all(any(kind.cause is cause for kind in shelf()) for cause in without)
    assert len([kind for kind in shelf() if kind.cause is None]) >= 15


def assert_crossed(kind: type[Shelved], found: Diagnosis) -> None:
    """Crossing gives the map of the network without the cuts, and the scores that it computes with them."""
    images, model = kind.images(), build(kind)
    results = explain(model, images, CAMRequest.of(kind.layer), observer=bridging(found.bridges))
    [crossed] = judge(results, results.verdicts)
    [(_, expected)] = compute_cam(build(kind, mended=True), images, kind.layer).cams.items()
    [(layer, actual)] = crossed.cams.items()
    assert float(expected.max()) > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    assert crossed.health[layer].null_probes == ()
    with torch.no_grad():
        torch.testing.assert_close(crossed.scores, model(images).amax(1).float())


# Left as it was found


class Tattling(shelf_module.NoGradWithBookkeeping):
    """Draws from every generator, counts, and writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.norm.eval()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        logits = super().forward(images)
        if self.fail:
            raise ValueError("on purpose")
        return self.norm(logits[:, :4, None, None])[:, :, 0, 0] + noise

    fail = False


def everything(model: nn.Module) -> list[Any]:
    parts: list[Any] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    parts += [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    for module in model.modules():
        parts += [module.training, len(module._forward_hooks), len(module._forward_pre_hooks)]
    for tensor in (*model.parameters(), *model.buffers()):
        parts += [tensor.requires_grad, tensor.grad_fn, tensor.grad, tensor.tolist()]
    return [*parts, getattr(model, "calls", None), torch.inference_mode.__enter__, torch.inference_mode.__exit__]


@pytest.mark.parametrize(("mode", "fail"), [("no_grad", False), ("inference_mode", True)])
def test_leaves_the_model_as_it_was(mode: str, fail: bool) -> None:
    model = build(Tattling).train()
    model.norm.eval()
    model.fail = fail
    model.mid.weight.requires_grad_(False)
    with MODES[mode]():
        before = everything(model)
        found = diagnose(model, Tattling.images(), "conv")
        assert everything(model) == before
    assert found.cause is (Cause.FORWARD_FAILED if fail else Cause.NO_GRAD)


def test_auto_chooses_as_for_the_maps() -> None:
    model, images = build(shelf_module.DetachedInForward), shelf_module.DetachedInForward.images()
    found = diagnose(model, images, "auto")
    assert (found.layer, found.cause) == ("conv", Cause.DETACHED)  # the score depends on no layer
    assert [found.layer] == list(compute_cam(model, images, "auto").cams)
    healthy = build(shelf_module.InPlaceOperations)
    assert (diagnose(healthy, images, "auto").layer, diagnose(healthy, images, "auto").cause) == ("conv", None)
    broken = diagnose(build(shelf_module.RaisesInLibrary), images, "auto")
    assert (broken.layer, broken.cause) == ("auto", Cause.FORWARD_FAILED)
    with pytest.raises(BadInputError, match="found no layer"):
        diagnose(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images, "auto")


def test_an_operation_that_raises_is_told_by_the_line_that_calls_it() -> None:
    model = build(WrongProduct)
    found = diagnose(model, torch.rand(2, 3, 8, 8), "auto")
    assert found.cause is Cause.FORWARD_FAILED
    assert found.location is not None
    assert (found.location.file, found.location.code) == (__file__, "return features @ torch.ones(5, 2)")


class WrongProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images).flatten(1)
        return features @ torch.ones(5, 2)


def test_refuses_what_is_no_layer_and_no_image() -> None:
    model = build(shelf_module.DetachedInForward)
    with pytest.raises(BadInputError, match=r"has no layer 'convs'.*'conv'"):
        diagnose(model, model.images(), "convs")
    with pytest.raises(TypeError, match="one layer"):
        diagnose(model, model.images(), ["conv", "mid"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a tensor"):
        diagnose(model, [1, 2], "conv")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="Target class 7"):
        diagnose(model, model.images(), "conv", target=7)


# What is told


@named("DetachedInForward")
def test_message_of_a_cut(kind: type[Shelved]) -> None:
    found = diagnosed(kind)
    assert found.message == (
        "At 'conv' the gradient is None for all 2 probes: `Tensor.detach` detaches the value between the layer and the "
        f"score, in `forward` at {found.location}: `maps = maps.detach()  # ends here`."
    )
    assert found.remedy.startswith("Take detach(), detach_() or .data out of the way")


@named("TwoCutsInARow")
def test_message_tells_all_cuts_in_order(kind: type[Shelved]) -> None:
    first, second = diagnosed(kind).message.split(" And then: ")
    assert "`Tensor.detach` detaches" in first
    assert "the first operation lost in it is `Tensor.relu`" in second


@named("SomeDetachedByWhere")
def test_message_names_the_probes(kind: type[Shelved]) -> None:
    assert diagnosed(kind).message.startswith("At 'conv' the gradient is exactly zero for probe 0 of 2: ")


@named("BrokenWeights")
def test_message_names_broken_weights(kind: type[Shelved]) -> None:
    assert diagnosed(kind).message.endswith("NaN or infinity is in its own weight.")


@named("Underflowing")
def test_message_tells_underflow(kind: type[Shelved]) -> None:
    assert "half precision, in which a gradient this small becomes zero" in diagnosed(kind).message


@named("FunctionReturnsAWrongShape")
def test_message_quotes_torch(kind: type[Shelved]) -> None:
    assert "Torch says: Function WrongShapeBackward returned an invalid gradient" in diagnosed(kind).message


@named("RaisesInAnotherFile")
def test_message_of_a_model_that_raised(kind: type[Shelved]) -> None:
    found = diagnosed(kind)
    assert found.message.startswith(f"The model raised ValueError at {found.location}: `raise ValueError(")
    assert found.message.endswith(": 3 channels are needed, not 4.")


def test_message_of_an_empty_map() -> None:
    model = build(shelf_module.StraightThrough)
    with torch.no_grad():
        model.conv.bias.fill_(100.0)
        model.head.weight.abs_().neg_()
    found = diagnose(model, model.images(), "conv")
    assert found.cause is None
    assert found.message.endswith(
        "The map of probes 0, 1 is empty all the same: every channel speaks against the class."
    )


@named("ThroughPicturesOfTorchvision")
def test_frames_of_libraries_are_kept_as_detail(kind: type[Shelved]) -> None:
    location = diagnosed(kind).location
    assert location is not None
    assert "torchvision" in location.detail[0]


def test_model_of_a_library_alone() -> None:
    """Where no line is the user's, it is the library's own."""
    network = torchvision.models.squeezenet1_1(num_classes=3).eval()
    with torch.no_grad():
        network.classifier[1].weight.zero_()
    location = diagnose(network, torch.rand(2, 3, 64, 64), "features.12").location
    assert location is not None
    assert location.file.endswith("squeezenet.py")


# The way


@named("NoGradBlock")
def test_path_goes_from_the_layer_to_the_score_through_the_cut(kind: type[Shelved]) -> None:
    steps = [(step.operation, step.module, step.alive) for step in diagnosed(kind).path]
    assert steps == [
        ("layer", "conv", True),
        ("nn.functional.conv2d", "mid", False),
        ("Tensor.mul", "", False),
        ("Tensor.mean", "", False),
        ("nn.functional.linear", "head", False),
    ]


@named("DeadReLU")
def test_path_shows_where_the_gradient_becomes_zero(kind: type[Shelved]) -> None:
    norms = {step.operation: step.gradient_norm for step in diagnosed(kind).path}
    assert norms["nn.functional.conv2d"] == 0
    assert norms["nn.functional.relu"] > 0


@named("ThroughNumpy")
def test_path_ends_where_the_value_leaves_torch(kind: type[Shelved]) -> None:
    steps = [(step.operation, step.alive) for step in diagnosed(kind).path]
    assert steps == [("layer", True), ("Tensor.detach", False), ("Tensor.numpy", False)]


# What was rescued


@pytest.mark.parametrize("mode", MODES)
def test_rescued_tells_all_that_would_have_cut(mode: str) -> None:
    found = diagnosed(shelf_module.FrozenResNet, mode)
    assert found.cause is None
    assert set(found.rescued) == {Cause.FROZEN, Cause.NO_GRAD, *RESCUED_BY[mode]}


def test_nothing_is_rescued_without_need() -> None:
    assert diagnosed(shelf_module.StraightThrough).rescued == ()
