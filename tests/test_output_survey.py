"""What is seen of a model's output in passes of two images: whether samples depend on each other, and an embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.engine import output_survey
from gradcam_callback.engine.output_survey import OutputSurvey, survey_output
from gradcam_callback.engine.request import CAMRequest


class Net(nn.Module):
    """A convolution and a head, and something done to the features or to what is returned."""

    def __init__(self, on_features: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.on_features, self.finish = on_features, finish
        self.calls = 0

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        features = self.on_features(F.relu(self.conv(images)).mean((2, 3)))
        return self.finish(self.fc(features))


def unchanged(value: Any) -> Any:
    return value


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(3, 3, 12, 12)


def surveyed(images: Tensor, on_features: Any = unchanged, finish: Any = unchanged, output: Any = None) -> OutputSurvey:
    torch.manual_seed(1)
    return survey_output(Net(on_features, finish).eval(), images, CAMRequest.of(output=output))


@pytest.mark.parametrize(
    "on_features",
    [
        lambda x: x - x.mean(0),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: torch.softmax(x @ x.T, dim=1) @ x,
    ],
    ids=["mean", "batch statistics", "attention over the batch"],
)
def test_samples_that_depend_on_each_other(images: Tensor, on_features: Any) -> None:
    assert surveyed(images, on_features).samples_depend


@pytest.mark.parametrize(
    "on_features",
    [unchanged, lambda x: x + torch.randn_like(x), lambda x: F.layer_norm(x, x.shape[1:])],
    ids=["plain", "noise", "layer normalisation"],
)
def test_samples_that_do_not(images: Tensor, on_features: Any) -> None:
    assert not surveyed(images, on_features).samples_depend


def test_a_state_that_changes_with_each_pass_is_not_taken_for_another_sample(images: Tensor) -> None:
    class Counting(Net):
        def forward(self, given: Tensor) -> Any:
            return super().forward(given) * self.calls

    assert not survey_output(Counting(unchanged, unchanged).eval(), images, CAMRequest.of()).samples_depend


@pytest.mark.parametrize(
    "finish",
    [
        lambda logits: {"features": [logits - logits.mean(0)], "logits": logits},
        lambda logits: [{"scores": row - logits.mean(0)} for row in logits],
    ],
    ids=["nested", "an entry a sample"],
)
def test_all_that_is_returned_counts(images: Tensor, finish: Any) -> None:
    def output(returned: Any) -> Tensor:
        return returned["logits"] if isinstance(returned, dict) else torch.stack([one["scores"] for one in returned])

    assert surveyed(images, finish=finish, output=output).samples_depend


def test_one_image_depends_on_no_other(images: Tensor) -> None:
    assert not surveyed(images[:1], lambda x: x - x.mean(0)).samples_depend


def test_a_model_that_refuses_changed_images_is_not_known_to_mix_them(images: Tensor) -> None:
    class Strict(Net):
        def forward(self, given: Tensor) -> Any:
            if given.min() < 0:
                raise ValueError("the images are not in 0..1")
            return super().forward(given)

    model = Strict(lambda x: x - x.mean(0), unchanged).eval()
    assert survey_output(model, images, CAMRequest.of()) == OutputSurvey()


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (lambda y: F.normalize(y), True),
        (lambda y: y, False),
        (lambda y: y.softmax(1), False),
        (lambda y: F.one_hot(y.argmax(1), 4).float(), False),
        (lambda y: F.normalize(y[:, :1]), False),
    ],
    ids=["normalised", "logits", "probabilities", "one-hot", "a single number"],
)
def test_vectors_of_length_1_are_an_embedding(images: Tensor, finish: Any, expected: bool) -> None:
    assert surveyed(images, finish=finish).is_embedding is expected


@pytest.mark.parametrize(
    ("finish", "output", "expected"),
    [
        (lambda y: (y, y + 1), None, 2),
        (lambda y: {"species": y, "colour": -y, "maps": y[:, :, None, None, None]}, None, 2),
        (lambda y: (y, y + 1), 1, 1),
        (lambda y: {"logits": y, "aux": y}, None, 1),
        (lambda y: y, None, 1),
    ],
    ids=["two heads", "two names", "chosen", "named", "one"],
)
def test_several_heads_of_one_shape_are_counted(images: Tensor, finish: Any, output: Any, expected: int) -> None:
    assert surveyed(images, finish=finish, output=output).alternatives == expected


def test_where_memory_is_short_for_two_images_nothing_is_known(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(output_survey, "run_without_graph", short)
    assert surveyed(images, lambda x: x - x.mean(0)) == OutputSurvey()
