"""What is asked of the engine, and the three seams in it: a layout, a target and a method of one's own are asked."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from reference import reference_cam, relative_error
from torch import Tensor, nn

from gradcam_callback import CAMResult, compute_cam
from gradcam_callback.engine.device_results import judge
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.layouts import ChannelsFirst
from gradcam_callback.engine.methods import Rerun
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.targets import ClassTarget, OutputSpec, Scores


class Net(nn.Module):
    """A convolution, the same with the channels last, and a mask of one channel beside the classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last, self.fc = nn.Conv2d(3, 6, 3), nn.Identity(), nn.Linear(6, 4)
        self.mask = nn.Conv2d(6, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.last(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu()
        return {"logits": self.fc(maps.mean((2, 3))), "mask": self.mask(maps)}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def answer(images: Tensor, request: CAMRequest) -> CAMResult:
    results = explain(Net(), images, request)
    return judge(results, results.verdicts)[0]


# Seams


class ChannelsLast(ChannelsFirst):
    def to_maps(self, activation: Tensor) -> Tensor:
        return activation.permute(0, 3, 1, 2)


def test_a_layout_says_how_an_activation_lies_in_space(images: Tensor) -> None:
    result = answer(images, CAMRequest.of("last", layout=ChannelsLast()))
    expected = reference_cam(Net(), images, "stem", logits_of=lambda returned: returned["logits"])
    assert relative_error(result.cams["last"], expected).max() <= 1e-5


class MaskArea:
    """The sum of a mask: a task without classes."""

    title, description = "area", "The mean of the mask."

    def __init__(self, offset: Tensor) -> None:
        self.offset = offset

    def read(self, returned: Any, output: OutputSpec, inputs: Tensor) -> Tensor:
        assert len(returned["mask"]) == len(inputs)
        return returned["mask"]

    def score(self, read: Tensor) -> Scores:
        none = torch.zeros(len(read), dtype=torch.int64)
        return Scores(read.mean((1, 2, 3)) + self.offset, none, none, torch.ones(len(read), 1))

    def part(self, samples: slice) -> MaskArea:
        return MaskArea(self.offset[samples])


def test_a_target_says_what_the_score_is(images: Tensor) -> None:
    offset = torch.tensor([0.0, 10.0, 20.0])
    result = compute_cam(Net(), images, "stem", target=MaskArea(offset))
    expected = reference_cam(Net(), images, "stem", target=0, logits_of=lambda r: r["mask"].mean((1, 2, 3))[:, None])
    assert relative_error(result.cams["stem"], expected).max() <= 1e-5
    torch.testing.assert_close(result.scores - offset, Net()(images)["mask"].mean((1, 2, 3)).detach())


class Mean:
    """The mean of the channels; it needs no gradient."""

    name, needs_gradient, extra_forwards = "mean", False, 0

    def map(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        assert gradient is None
        return activation.mean(1).relu()


def test_a_method_says_what_it_needs_and_makes_the_map(images: Tensor) -> None:
    images[1, 0, 0, 0] = torch.nan
    result = answer(images, CAMRequest.of("stem", method=Mean()))
    assert result.health["stem"].state == ("ok", "non_finite", "ok")
    assert result.health["stem"].gradient_norm.isnan().all()
    torch.testing.assert_close(result.cams["stem"][::2], Net().stem(images[::2]).mean(1).relu().detach())


class Halved:
    """The mean of the channels, times the score of the images at half their brightness; it declares one pass."""

    name, needs_gradient, extra_forwards = "halved", False, 1

    def __init__(self, passes: int = 1) -> None:
        self.passes = passes

    def map(self, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
        scores = rerun.scores_of_images(self.passes, lambda _number: rerun.images / 2)
        return (activation.mean(1) * scores[0, :, None, None]).relu()


def test_a_method_runs_the_model_again_as_often_as_it_has_declared(images: Tensor) -> None:
    result = answer(images, CAMRequest.of("stem", [2], method=Halved()))
    model = Net()
    scores = model(images / 2)["logits"][:, 2, None, None]
    expected = (model.stem(images).mean(1) * scores).relu().detach()
    torch.testing.assert_close(result.cams["stem"], expected)


def test_a_method_that_runs_the_model_more_often_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="'halved' asks for 2 more forward passes a sample, and has declared 1"):
        answer(images, CAMRequest.of("stem", method=Halved(passes=2)))


def test_a_map_of_another_shape_is_refused(images: Tensor) -> None:
    def flat(activation: Tensor, gradient: Tensor) -> Tensor:
        return activation.mean((1, 2, 3))

    with pytest.raises(ValueError, match=r"'flat' has to make a map of shape \(3, 7, 5\) .* it made \(3,\)"):
        answer(images, CAMRequest.of("stem", method=flat))


# The request


def test_a_request_is_checked_before_any_model_runs() -> None:
    for wrong in ({"layers": []}, {"targets": ["labels"]}, {"targets": [-1]}, {"method": "none"}):
        with pytest.raises(ValueError, match=r"Possible|at least 0"):
            CAMRequest.of(**wrong)


def test_a_request_is_frozen_and_cut_up_with_its_samples() -> None:
    request = CAMRequest.of("a", [[3, 4, 5], 2, "predicted", torch.tensor([6, 7, 8])], output="logits")
    with pytest.raises(FrozenInstanceError):
        request.layers = ("b",)  # type: ignore[misc]
    part = request.part(slice(1, 3))
    assert [torch.as_tensor(t.classes).tolist() if t.classes != "predicted" else t.classes for t in part.targets] == [
        [4, 5],
        2,
        "predicted",
        [7, 8],
    ]
    assert (part.layers, part.output, part.at("b").layers, part.uses_auto) == (("a",), "logits", ("b",), False)
    assert CAMRequest.of().uses_auto


@pytest.mark.parametrize(
    ("target", "title", "description"),
    [
        (ClassTarget(), "predicted", "The logit of the class that the model predicts."),
        (ClassTarget(3), "3", "The logit of class 3."),
        (ClassTarget(3, "cat"), "cat", "The logit of class cat."),
        (ClassTarget([1, 2], "label"), "label", "The logit of the class given for each sample."),
        (ClassTarget(torch.tensor([1, 2])).part(slice(1)), "given", "The logit of the class given for each sample."),
    ],
)
def test_a_target_has_a_title_and_a_description(target: ClassTarget, title: str, description: str) -> None:
    assert (target.title, target.description) == (title, description)
