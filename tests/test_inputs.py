"""Images, and the arguments of forward that they are part of."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import reference_cam, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam, diagnose
from gradcam_callback.engine.inputs import IMAGE_LIST, IMAGES, ModelInputs

PIXELS, TABLE = torch.rand(4, 3, 8, 10), torch.rand(4, 5)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stage, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(11, 3)

    def forward(self, image: Any, table: Tensor = TABLE, temperature: float = 1.0) -> Tensor:
        image = torch.stack(image) if isinstance(image, list) else image
        logits: Tensor = self.head(torch.cat([F.relu(self.stage(image)).mean((2, 3)), table[: len(image)]], dim=1))
        return logits / temperature


@pytest.mark.parametrize(
    "inputs",
    [
        PIXELS,
        (PIXELS, TABLE),
        {"image": PIXELS, "table": TABLE},
        {"temperature": 1.0, "table": TABLE, "image": PIXELS},
        list(PIXELS),
        ModelInputs(PIXELS, (IMAGES, TABLE)),
    ],
    ids=["tensor", "tuple", "mapping", "with a number", "list", "as they are"],
)
def test_the_map_is_the_same_however_the_images_are_given(inputs: Any) -> None:
    cam = compute_cam(Network(), inputs, "stage").cams["stage"]
    assert relative_error(cam, reference_cam(Network(), PIXELS, "stage")).max() <= 1e-5
    assert list(compute_cam(Network(), inputs).cams) == ["stage"]
    assert diagnose(Network(), inputs, "stage").cause is None


def test_samples_take_along_what_is_theirs() -> None:
    inputs = ModelInputs(PIXELS, (IMAGES,), {"table": TABLE, "names": list("abcd"), "scale": torch.ones(2), "n": 3})
    part = inputs[1:3]
    assert len(part) == 2
    assert torch.equal(part.kwargs["table"], TABLE[1:3])
    assert part.kwargs["names"] == ["b", "c"]
    assert part.kwargs["scale"].shape == (2,)
    assert part.kwargs["n"] == 3
    assert part.args == (IMAGES,)


def test_images_of_a_list_keep_their_sizes() -> None:
    images = [PIXELS[0], PIXELS[1, :, 2:], PIXELS[2, :, :, 3:]]
    inputs = ModelInputs.of({"images": images, "names": list("abc")})
    assert inputs.images.shape == (3, 3, 8, 10)
    assert inputs.sizes == ((8, 10), (6, 10), (8, 7))
    part = inputs[1:]
    assert part.images.shape == (2, 3, 8, 10)
    assert inputs[1:2].size == (6, 10)

    class Kept(nn.Module):
        def forward(self, images: list[Tensor], names: list[str]) -> Any:
            return images, names

    got, names = part.call(Kept())
    assert names == ["b", "c"]
    for image, wanted in zip(got, images[1:], strict=True):
        assert torch.equal(image, wanted)
        assert image.is_contiguous()


def test_forward_gets_copies() -> None:
    class Greedy(nn.Module):
        def forward(self, image: Tensor, beside: list[Tensor]) -> None:
            image.zero_()
            beside[0].zero_()
            beside.clear()

    images, beside = PIXELS.clone(), [TABLE.clone()]
    ModelInputs(images, (IMAGES, beside)).call(Greedy())
    assert torch.equal(images, PIXELS)
    assert torch.equal(beside[0], TABLE)


@pytest.mark.parametrize("slot", [IMAGES, IMAGE_LIST], ids=str)
def test_the_place_of_the_images_is_the_same_after_a_copy(slot: Any) -> None:
    assert pickle.loads(pickle.dumps(slot)) is slot
    assert copy.deepcopy([slot])[0] is slot


class Branches(nn.Module):
    """Both images pass the same layer, the shown one first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stage, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(12, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        maps = [F.relu(self.stage(images)).mean((2, 3)) for images in (left, right)]
        logits: Tensor = self.head(torch.cat(maps, dim=1))
        return logits


@pytest.mark.parametrize("layer", ["stage", "auto"])
def test_of_two_branches_the_one_with_the_shown_image_is_explained(layer: str) -> None:
    right = torch.rand(4, 3, 8, 10)

    class Filled(Branches):
        def forward(self, left: Tensor, _right: Any = None) -> Tensor:
            return super().forward(left, right)

    wanted = reference_cam(Filled(), PIXELS, "stage", call=0)
    result = compute_cam(Branches(), (PIXELS, right), layer)
    assert relative_error(result.cams["stage"], wanted).max() <= 1e-5
    other = compute_cam(Branches(), (PIXELS, right), "stage#1").cams["stage#1"]
    assert relative_error(other, reference_cam(Filled(), PIXELS, "stage", call=1)).max() <= 1e-5


def test_a_cut_in_the_branch_of_the_shown_image_is_diagnosed() -> None:
    class Cut(Branches):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            one, other = self.stage(left).detach(), self.stage(right)
            logits: Tensor = self.head(torch.cat([one.mean((2, 3)), other.mean((2, 3))], dim=1))
            return logits

    found = diagnose(Cut(), (PIXELS, torch.rand(4, 3, 8, 10)), "stage")
    assert found.cause == "detached"
    assert found.location is not None
    assert "self.stage(left).detach()" in found.location.code


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("images", TypeError, "a tuple of arguments or a mapping of them; given: str"),
        ((TABLE, 3), ValueError, r"no images among the inputs.*a tensor \(4, 5\), int"),
        ({"a": PIXELS, "b": PIXELS}, ValueError, r"Which of the inputs are the images.*'a': a tensor \(4, 3, 8, 10\)"),
        ({"table": TABLE}, ValueError, "Which of the inputs are the images"),
        ([PIXELS[0], PIXELS[0, 1:]], ValueError, r"same number of channels.*#0 is \(3, 8, 10\).*#1 is \(2, 8, 10\)"),
        ([PIXELS[0], TABLE[0]], ValueError, r"tensors \(C, h, w\).*#1 is \(5,\)"),
        (PIXELS[:0], ValueError, "with at least one of them"),
        (TABLE, ValueError, r"given: \(4, 5\)"),
    ],
    ids=["text", "no images", "two", "none", "channels", "axes", "empty", "table"],
)
def test_what_is_no_input_is_refused(given: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        compute_cam(Network(), given, "stage")
