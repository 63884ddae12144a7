"""The score of one box, as torchvision's detectors and as DETR return them, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import differentiate, gradcam, relative_error
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gradcam_callback import compute_cam
from gradcam_callback.engine.targets import Annotations, as_target, bind

BOXES = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 8.0, 16.0, 16.0]])
LABELS = torch.tensor([1, 2, 1])


class Net(nn.Module):
    """Three boxes that stay where they are, and scores that depend on the image."""

    def __init__(self, shape: str = "list") -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 3 if shape == "list" else 9)
        self.shape = shape

    def forward(self, images: Tensor) -> Any:
        numbers = self.head(F.relu(self.stage(images)).mean((2, 3)))
        if self.shape == "list":
            return [{"boxes": BOXES, "labels": LABELS, "scores": scores} for scores in numbers.sigmoid()]
        centres = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], dim=1) / 16
        return {"logits": numbers.reshape(-1, 3, 3), "pred_boxes": centres.expand(len(images), -1, -1)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16)


def scores_of(returned: Any) -> Tensor:
    return torch.stack([one["scores"] for one in returned])


def expected(net: nn.Module, images: Tensor, boxes: Any, scores: Any = scores_of) -> Tensor:
    evidence = differentiate(net, images, "stage", target=boxes, logits_of=scores)
    return gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)


def test_the_best_box(images: Tensor) -> None:
    net = Net()
    result = compute_cam(net, images, "stage", target={"detection": "best"})
    best = scores_of(net(images)).argmax(1)
    assert relative_error(result.cams["stage"], expected(net, images, best)).max() <= 1e-5
    assert torch.equal(result.targets, LABELS[best])
    assert result.boxes is not None
    assert torch.equal(result.boxes, BOXES[best])


@pytest.mark.parametrize(("wanted", "box"), [(2, 1), (1, None)])
def test_the_best_box_of_a_class(images: Tensor, wanted: int, box: int | None) -> None:
    net = Net()
    result = compute_cam(net, images, "stage", target={"detection": wanted})
    scores = scores_of(net(images))
    chosen = [box] * 3 if box is not None else [0 if row[0] > row[2] else 2 for row in scores.tolist()]
    assert relative_error(result.cams["stage"], expected(net, images, chosen)).max() <= 1e-5
    assert result.targets.tolist() == [wanted] * 3
    torch.testing.assert_close(result.scores, scores[range(3), chosen].detach())


def test_the_box_nearest_to_the_largest_of_the_label(images: Tensor) -> None:
    """Of the label's class where there is one; and no box where the label has none."""
    labels = [
        (torch.tensor([[0.0, 0.0, 2.0, 2.0], [7.0, 0.0, 16.0, 9.0]]), torch.tensor([1, 2])),  # box 1
        (torch.tensor([[9.0, 0.0, 16.0, 8.0]]), torch.tensor([1])),  # nearest is box 1, of its class box 2 or 0
        (torch.empty(0, 4), torch.empty(0, dtype=torch.int64)),
    ]
    [target] = bind(as_target({"detection": "label"}), Annotations(boxes=labels))
    net = Net()
    result = compute_cam(net, images, "stage", target=target)
    assert result.boxes is not None
    assert torch.equal(result.boxes[0], BOXES[1])
    assert result.targets[1] == 1
    assert result.health["stage"].state == ("ok", "ok", "absent")
    assert relative_error(result.cams["stage"][:1], expected(net, images, [1, 1, 1])[:1]).max() <= 1e-5
    part = compute_cam(net, images[1:], "stage", target=target.part(slice(1, 3)))
    assert part.health["stage"].state == ("ok", "absent")


def test_a_class_that_is_nowhere_has_nothing_to_explain(images: Tensor) -> None:
    result = compute_cam(Net(), images, "stage", target={"detection": 9})
    assert result.health["stage"].state == ("absent",) * 3
    assert result.health["stage"].null_probes == ()
    assert result.absence == "no box"


@pytest.mark.parametrize("names", [None, ["a", "b"]], ids=["unknown", "two"])
def test_queries_with_a_class_that_is_no_object(images: Tensor, names: list[str] | None) -> None:
    net = Net("queries")

    def scores(returned: Any) -> Tensor:
        best: Tensor = returned["logits"].softmax(2)[..., :2].amax(2)
        return best

    [target] = bind(as_target({"detection": "best"}), Annotations(class_names=names))
    result = compute_cam(net, images, "stage", target=target)
    best = scores(net(images)).argmax(1)
    assert relative_error(result.cams["stage"], expected(net, images, best, scores)).max() <= 1e-5
    assert result.boxes is not None
    torch.testing.assert_close(result.boxes, BOXES[best])


def test_queries_whose_classes_are_each_for_itself(images: Tensor) -> None:
    net = Net("queries")

    def scores(returned: Any) -> Tensor:
        best: Tensor = returned["logits"].sigmoid().amax(2)
        return best

    [target] = bind(as_target({"detection": "best"}), Annotations(class_names=["a", "b", "c"]))
    result = compute_cam(net, images, "stage", target=target)
    best = scores(net(images)).argmax(1)
    assert relative_error(result.cams["stage"], expected(net, images, best, scores)).max() <= 1e-5


class Backbone(nn.Sequential):
    out_channels = 32


def test_a_detector_of_torchvision(images: Tensor) -> None:
    backbone = Backbone(nn.Conv2d(3, 32, 3, stride=4, padding=1), nn.ReLU())
    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    net = FCOS(backbone, 3, anchor_generator=anchors, score_thresh=0.0, min_size=16, max_size=16).eval()
    result = compute_cam(net, images, "backbone.0", target={"detection": "best"})
    evidence = differentiate(
        net,
        images,
        "backbone.0",
        target=0,
        logits_of=lambda returned: torch.stack([one["scores"].max() for one in returned])[:, None],
    )
    wanted = gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)
    assert relative_error(result.cams["backbone.0"], wanted).max() <= 1e-5
    assert list(compute_cam(net, images, target={"detection": "best"}).cams) == ["backbone"]


def test_what_cannot_be_explained_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="'best', 'label' or a class index"):
        as_target({"detection": "first"})
    with pytest.raises(ValueError, match="no labelled boxes"):
        bind(as_target({"detection": "label"}), Annotations())
    with pytest.raises(ValueError, match="Give the classes themselves"):
        compute_cam(Net(), images, "stage", target={"detection": "label"})
    with pytest.raises(ValueError, match=r"needs `boxes`, `labels` and `scores`.*Tensor of shape \(3, 3, 16, 16\)"):
        compute_cam(nn.Sequential(nn.Conv2d(3, 3, 1)), images, "0", target={"detection": "best"})
    with pytest.raises(ValueError, match=r"target: \{detection: best\}"):
        compute_cam(Net(), images, "stage")
