"""Targets that are no scores of one class: several labels, values, similarity, reconstruction, functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import differentiate, gradcam, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.targets import Annotations, FunctionTarget, Target, as_target, bind


class Net(nn.Module):
    """Five numbers an image."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, outputs)

    def forward(self, images: Tensor) -> Tensor:
        numbers: Tensor = self.head(F.relu(self.stage(images)).mean((2, 3)))
        return numbers


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 12, 12)


def cams(net: nn.Module, images: Tensor, target: Any) -> Tensor:
    return compute_cam(net, images, "stage", target=target).cams["stage"]


def expected(net: nn.Module, images: Tensor, score: Any) -> Tensor:
    """The map of any score `(N,)` of what the network returns."""
    evidence = differentiate(net, images, "stage", target=0, logits_of=lambda returned: score(returned)[:, None])
    return gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)


# Several labels


def test_each_label_of_a_sample_has_a_column(images: Tensor) -> None:
    flags = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]])
    net, columns = Net(), bind(as_target("positive"), Annotations(values=flags, task="multilabel", outputs=5))
    assert [column.title for column in columns] == ["positive 1 of 3", "positive 2 of 3", "positive 3 of 3"]
    wanted = [[0, 4, None, 0], [2, None, None, 1], [None, None, None, 3]]
    for column, classes in zip(columns, wanted, strict=True):
        result = compute_cam(net, images, "stage", target=column)
        assert result.health["stage"].state == tuple("absent" if one is None else "ok" for one in classes)
        for row, one in enumerate(classes):
            if one is not None:
                assert relative_error(result.cams["stage"][[row]], cams(net, images[[row]], one)).max() <= 1e-5
        torch.testing.assert_close(result.probabilities, net(images).sigmoid().detach())
        part = compute_cam(net, images[2:], "stage", target=column.part(slice(2, 4)))
        assert part.health["stage"].state == result.health["stage"].state[2:]


def test_a_single_label_is_the_only_positive_one(images: Tensor) -> None:
    [column] = bind(as_target("positive"), Annotations(classes=torch.tensor([3, 0, 1, 4])))
    net = Net()
    assert torch.equal(cams(net, images, column), cams(net, images, [3, 0, 1, 4]))


def test_more_labels_than_columns_are_counted_in_the_titles() -> None:
    flags = Annotations(values=torch.ones(1, 9), task="multilabel")
    assert [target.title for target in bind(as_target("positive"), flags)][-1] == "positive 6 of 9"
    assert [target.title for target in bind(as_target({"positive": 2}), flags)] == [
        "positive 1 of 9",
        "positive 2 of 9",
    ]


def test_the_highest_classes_have_a_column_each(images: Tensor) -> None:
    net, columns = Net(), bind(as_target({"highest": 3}), Annotations())
    order = net(images).argsort(1, descending=True)
    assert [column.title for column in columns] == ["highest 1", "highest 2", "highest 3"]
    for rank, column in enumerate(columns):
        assert torch.equal(cams(net, images, column), cams(net, images, order[:, rank].tolist()))
    with pytest.raises(ValueError, match="6 highest classes were asked for, and the model has 5"):
        cams(net, images, bind(as_target({"highest": 6}), Annotations())[-1])


# Values


def test_a_value_and_what_makes_it_lower(images: Tensor) -> None:
    net = Net()
    assert relative_error(cams(net, images, {"value": 2}), expected(net, images, lambda y: y[:, 2])).max() <= 1e-5
    lower = as_target({"value": 2, "sign": "negative"})
    assert relative_error(cams(net, images, lower), expected(net, images, lambda y: -y[:, 2])).max() <= 1e-5
    assert lower.title == "value 2, lower"


# Similarity


def test_the_cosine_to_another_probe(images: Tensor) -> None:
    """In float64, because the vectors are nearly parallel."""
    net, images = Net().double(), images.double()
    result = compute_cam(net, images, "stage", target={"similarity": 1})
    reference = net(images)[1].detach()
    wanted = expected(net, images, lambda y: F.cosine_similarity(y, reference[None], dim=1))
    others = [0, 2, 3]
    assert relative_error(result.cams["stage"][others], wanted[others]).max() <= 1e-5
    assert result.health["stage"].state == ("ok", "absent", "ok", "ok")
    torch.testing.assert_close(result.scores, F.cosine_similarity(net(images), reference[None]).detach().float())
    assert result.absence == "the reference"


def test_the_cosine_to_a_vector(images: Tensor) -> None:
    net, vector = Net(), [1.0, -1.0, 0.0, 2.0, 0.5]
    wanted = expected(net, images, lambda y: F.cosine_similarity(y, torch.tensor([vector]), dim=1))
    assert relative_error(cams(net, images, {"similarity": vector}), wanted).max() <= 1e-5


def test_auto_looks_at_an_image_that_is_not_the_reference(images: Tensor) -> None:
    assert list(compute_cam(Net(), images, target={"similarity": 0}).cams) == ["stage"]


def test_an_embedding_is_found_by_its_name(images: Tensor) -> None:
    class Named(Net):
        def forward(self, images: Tensor) -> Any:
            numbers = super().forward(images)
            return {"logits": numbers[:, :2], "image_embeds": numbers}

    target = {"similarity": [1.0, 0, 0, 0, 0]}
    assert compute_cam(Named(), images, "stage", target=target).scores.shape == (4,)


# Reconstruction


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 8, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(F.relu(self.stage(images)))
        return reconstructed


def test_the_mean_squared_error_of_each_image(images: Tensor) -> None:
    net = Autoencoder()
    wanted = expected(net, images, lambda y: (y - images).square().mean((1, 2, 3)))
    result = compute_cam(net, images, "stage", target="reconstruction")
    assert relative_error(result.cams["stage"], wanted).max() <= 1e-5
    assert result.task == "value"
    torch.testing.assert_close(result.scores, (net(images) - images).square().mean((1, 2, 3)).detach())


def test_auto_does_not_take_the_reconstruction_itself(images: Tensor) -> None:
    assert list(compute_cam(Autoencoder(), images, target="reconstruction").cams) == ["stage"]


# Functions


def weighted(output: Tensor, batch: Any) -> Tensor:
    """The numbers, weighted by what the data say."""
    return (output * batch["weights"]).sum(1)


class Margin:
    """Objects can be targets, too."""

    title = "margin"

    def __init__(self, over: int = 0) -> None:
        self.over = over

    def __call__(self, output: Tensor, batch: Any) -> Tensor:
        return output[:, 1] - output[:, self.over]


def test_a_function_of_output_and_batch(images: Tensor) -> None:
    net, batch = Net(), {"weights": torch.rand(4, 5)}
    target = FunctionTarget(weighted, batch=batch)
    wanted = expected(net, images, lambda y: (y * batch["weights"]).sum(1))
    assert relative_error(cams(net, images, target), wanted).max() <= 1e-5
    assert relative_error(cams(net, images[2:], target.part(slice(2, 4))), wanted[2:]).max() <= 1e-5


@pytest.mark.parametrize(
    ("given", "title"),
    [
        (weighted, "weighted"),
        ("test_other_targets.weighted", "weighted"),
        ({"function": "test_other_targets.weighted", "title": "sum"}, "sum"),
        ("test_other_targets.Margin", "margin"),
        ({"class_path": "test_other_targets.Margin", "init_args": {"over": 3}}, "margin"),
    ],
    ids=["function", "name", "title", "class", "class with options"],
)
def test_a_function_is_given_by_name_or_as_it_is(given: Any, title: str) -> None:
    assert as_target(given).title == title


def test_a_class_gets_its_options(images: Tensor) -> None:
    net = Net()
    target = as_target({"class_path": "test_other_targets.Margin", "init_args": {"over": 3}})
    assert relative_error(cams(net, images, target), expected(net, images, lambda y: y[:, 1] - y[:, 3])).max() <= 1e-5


# What is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("positives", "no target 'positives'.*Possible: 'predicted'"),
        ("os.no_such_thing", "could not be imported"),
        ("math.pi", "is float, and no function"),
        ({}, "has one of positive, highest"),
        ({"highest": 2, "value": 1}, "has one of positive, highest"),
        ({"highest": 0}, "`highest` is how many columns"),
        ({"value": 0, "sign": "minus"}, "`sign` is 'positive' or 'negative'"),
        ({"value": -1}, "`value` is the position"),
        ({"similarity": -1}, "`similarity` is the position of a probe"),
        ({"similarity": []}, "is a list of numbers"),
        ({"similarity": "0"}, "`similarity` is the position of a probe"),
        ({"function": 3}, "is the dotted name of a function"),
        ({"highest": 2, "title": "a"}, "nothing else stands beside it"),
    ],
    ids=str,
)
def test_what_is_no_target_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        as_target(given)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"similarity": 4}, "no probe 4 to compare with: there are 4"),
        ({"similarity": [1.0, 2.0]}, "has 2 numbers, and the embeddings have 5"),
        ("reconstruction", r"has the shape of the inputs, \(4, 3, 12, 12\)"),
        (lambda output, batch: output, r"one score for each of 4 images.*given: \(4, 5\)"),
        ("positive", "Give the classes themselves"),
    ],
    ids=["probe", "length", "shape", "scores", "unbound"],
)
def test_what_does_not_fit_the_output_is_refused(images: Tensor, target: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        cams(Net(), images, target)


def test_without_labels_there_are_no_positive_ones() -> None:
    with pytest.raises(ValueError, match="`target: positive`, and the probes have no labels of the kind"):
        bind(as_target("positive"), Annotations(values=torch.rand(2, 3), task="regression"))


def test_a_target_of_ones_own_needs_no_binding() -> None:
    class Own:
        title, description = "own", ""

        def read(self, returned: Any, output: Any, inputs: Any) -> Any: ...
        def score(self, read: Any) -> Any: ...
        def part(self, samples: slice) -> Any: ...

    own = Own()
    assert isinstance(own, Target)
    assert bind(own, Annotations()) == (own,)
