"""Seg-Grad-CAM: a class of pixels over a region, against autograd with the region written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import differentiate, gradcam, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam, diagnose
from gradcam_callback.engine.targets import Annotations, SegmentationTarget, as_target, bind

H, W = 16, 24


class Net(nn.Module):
    """Logits of four classes at half the image's size, and a map that is not the logits beside them."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.stage = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Conv2d(8, classes, 1)
        nn.init.zeros_(self.head.bias)  # or it would decide the class of all pixels

    def forward(self, images: Tensor) -> Any:
        maps = F.relu(self.stage(F.relu(self.stem(images))))
        return {"aux": maps.mean((2, 3)), "out": self.head(maps)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return 2 * torch.randn(3, 3, H, W)


def expected(net: nn.Module, images: Tensor, classes: Tensor, region: Tensor, layer: str = "stage") -> Tensor:
    """The textbook map of the sum of a class's logits over a region `(N, h, w)`."""

    def score(returned: Any) -> Tensor:
        chosen = returned["out"][torch.arange(len(images)), classes]
        return (chosen * region).sum((1, 2))[:, None]

    evidence = differentiate(net, images, layer, target=0, logits_of=score)
    return gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)


def predicted(net: Net, images: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = net.eval()(images)["out"].argmax(1)
    assert len(classes.unique()) > 2
    return classes


def most(masks: Tensor) -> Tensor:
    """The class of most pixels but class 0, by counting."""
    counts = torch.stack([torch.bincount(mask.flatten(), minlength=4)[1:4] for mask in masks])
    return counts.argmax(1) + 1


REGIONS: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "prediction": ("prediction", lambda seen, classes: seen == classes[:, None, None]),
    "image": ("image", lambda seen, classes: torch.ones_like(seen, dtype=torch.bool)),
    # Pixels of the output are two of the image's: columns 2 to 5 and rows 0 to 2 have their middle in the box.
    "box": ([4, 0, 12, 6], lambda seen, classes: _box(seen)),
}


def _box(seen: Tensor) -> Tensor:
    region = torch.zeros_like(seen, dtype=torch.bool)
    region[:, 0:3, 2:6] = True
    return region


@pytest.mark.parametrize("name", REGIONS)
def test_the_map_is_that_of_the_logits_summed_over_the_region(images: Tensor, name: str) -> None:
    net, (over, region) = Net(), REGIONS[name]
    seen = predicted(net, images)
    result = compute_cam(net, images, "stage", target={"segmentation": "predicted", "over": over})

    wanted = region(seen, most(seen))
    assert relative_error(result.cams["stage"], expected(net, images, most(seen), wanted)).max() <= 1e-5
    assert result.regions is not None
    assert torch.equal(result.regions, wanted)
    assert torch.equal(result.targets, most(seen))
    assert result.task == "segmentation"


def test_probabilities_are_shares_of_the_pixels(images: Tensor) -> None:
    net = Net()
    result = compute_cam(net, images, "stage", target={"segmentation": 1, "over": "image"})
    seen = predicted(net, images)
    shares = torch.stack([(seen == index).float().mean((1, 2)) for index in range(4)], dim=1)
    torch.testing.assert_close(result.probabilities, shares)


def test_the_label_says_class_and_region_and_is_brought_to_the_size_of_the_output(images: Tensor) -> None:
    net, small = Net(), torch.randint(0, 4, (3, H // 2, W // 2))
    small[0] = 255  # pixels that are of no class
    small[0, :2] = 2
    labels = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    [target] = bind(as_target({"segmentation": "label"}), Annotations(masks=labels))
    result = compute_cam(net, images, "stage", target=target)

    classes = most(small.where(small < 4, 0))
    assert torch.equal(result.targets, classes)
    region = small == classes[:, None, None]
    assert relative_error(result.cams["stage"], expected(net, images, classes, region)).max() <= 1e-5


def test_an_image_without_such_a_pixel_has_nothing_to_explain(images: Tensor) -> None:
    net = Net()
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))  # all pixels are of class 1
    result = compute_cam(net, images, "stage", target={"segmentation": 3})
    assert result.health["stage"].state == ("absent",) * 3
    assert result.health["stage"].null_probes == ()
    assert result.cams["stage"].isnan().all()
    assert result.absence == "no such pixel"


def test_the_background_is_taken_only_where_there_is_nothing_else(images: Tensor) -> None:
    net = Net()
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    result = compute_cam(net, images, "stage", target={"segmentation": "predicted"})
    assert result.targets.tolist() == [0, 0, 0]
    assert result.health["stage"].state == ("ok",) * 3


def test_one_logit_a_pixel_tells_two_classes_apart(images: Tensor) -> None:
    net = Net(classes=1)
    result = compute_cam(net, images, "stage", target={"segmentation": 0, "over": "image"})
    evidence = differentiate(net, images, "stage", target=0, logits_of=lambda r: -r["out"].sum((1, 2, 3))[:, None])
    wanted = gradcam(evidence.activation.double(), evidence.gradient.double()).clamp(min=0)
    assert relative_error(result.cams["stage"], wanted).max() <= 1e-5


def test_samples_can_be_taken_apart(images: Tensor) -> None:
    labels = torch.randint(1, 4, (3, H, W))
    [target] = bind(as_target({"segmentation": "label"}), Annotations(masks=labels))
    net = Net()
    whole = compute_cam(net, images, "stage", target=target).cams["stage"]
    part = compute_cam(net, images[1:], "stage", target=target.part(slice(1, 3))).cams["stage"]
    torch.testing.assert_close(part, whole[1:])


def test_auto_takes_a_layer_before_the_logits(images: Tensor) -> None:
    assert list(compute_cam(Net(), images, target={"segmentation": "predicted"}).cams) == ["stage"]


def test_a_detached_map_is_diagnosed(images: Tensor) -> None:
    class Cut(Net):
        def forward(self, images: Tensor) -> Any:
            return {"out": self.head(self.stage(self.stem(images)).detach())}

    found = diagnose(Cut(), images, "stage", target={"segmentation": 1, "over": "image"})
    assert found.cause == "detached"
    assert found.location is not None
    assert "detach()" in found.location.code


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"segmentation": "best"}, "'predicted', 'label' or a class index"),
        ({"segmentation": -1}, "'predicted', 'label' or a class index"),
        ({"segmentation": True}, "'predicted', 'label' or a class index"),
        ({"segmentation": 1, "over": "all"}, "'prediction', 'label', 'image' or a box"),
        ({"segmentation": 1, "over": [4, 0, 4, 9]}, "'prediction', 'label', 'image' or a box"),
        ({"segmentation": 1, "of": "label"}, "has no 'of': beside it there may be over"),
    ],
)
def test_what_is_no_such_target_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        as_target(given)


def test_what_cannot_be_explained_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="class 7 does not exist: the model has 4 classes"):
        compute_cam(Net(), images, "stage", target={"segmentation": 7})
    with pytest.raises(ValueError, match="needs the label of each pixel"):
        bind(SegmentationTarget(1, "label"), Annotations())
    with pytest.raises(ValueError, match="Give the classes themselves"):
        compute_cam(Net(), images, "stage", target={"segmentation": "label"})
    with pytest.raises(ValueError, match=r"needs the logits of pixels.*shape \(3, 8\)"):
        compute_cam(Net(), images, "stage", target={"segmentation": 1}, output="aux")
    with pytest.raises(ValueError, match=r"target: \{segmentation: predicted\}"):
        compute_cam(Net(), images, "stage", output="out")


def test_titles_name_the_class_and_the_region() -> None:
    names = Annotations(class_names=["ground", "cat"], masks=torch.zeros(1, 4, 4))
    titles = {
        "predicted": {"segmentation": "predicted"},
        "cat": {"segmentation": 1},
        "cat, over the label": {"segmentation": 1, "over": "label"},
        "cat, over a box": {"segmentation": 1, "over": [0, 0, 2, 2]},
    }
    assert {target.title for given in titles.values() for target in bind(as_target(given), names)} == set(titles)
