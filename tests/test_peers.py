"""Agreement with grad-cam, captum and torchcam where they are right; where they are not, the reference is on our side.

Each of the tests of the second kind shows three things: what the other package returns, that it is not what the
textbook says, and that ours is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from reference import reference_cam, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam

TOLERANCE = 1e-5
CLASSES = [0, 3, 1, 2]


class Net(nn.Module):
    """Maps as large as the images, so that nobody has to resize; `rectify` is how the ReLU after `norm` is applied."""

    def __init__(self, rectify: Callable[[Tensor], Tensor] = F.relu, gain: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.stage = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, 5)
        self.rectify, self.gain = rectify, gain

    def forward(self, images: Tensor) -> Tensor:
        maps = self.rectify(self.norm(self.stem(images)))
        return self.gain * self.fc(self.relu(self.stage(maps)).mean((2, 3)))


def net(rectify: Callable[[Tensor], Tensor] = F.relu, gain: float = 1.0) -> Net:
    torch.manual_seed(4)
    return Net(rectify, gain).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def by_grad_cam(kind: str, model: nn.Module, images: Tensor, layer: str, classes: list[int] | None = None) -> Tensor:
    """grad-cam's maps, `(N, H, W)`, each scaled from its minimum to its maximum."""
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(index) for index in classes or CLASSES]
    with getattr(package, kind)(model, [model.get_submodule(layer)]) as extractor:
        return torch.from_numpy(extractor(images, targets))


def by_captum(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """captum's raw maps, `(N, h, w)`."""
    attr = pytest.importorskip("captum.attr")
    extractor = attr.LayerGradCam(model, model.get_submodule(layer))
    maps: Tensor = extractor.attribute(images, torch.tensor(CLASSES), relu_attributions=True)
    return maps[:, 0].detach()


def by_torchcam(kind: str, model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """torchcam's raw maps, `(N, h, w)`."""
    methods = pytest.importorskip("torchcam.methods")
    with getattr(methods, kind)(model, layer) as extractor:
        (maps,) = extractor(CLASSES, model(images), normalized=False)
    return maps.detach()


def ours(model: nn.Module, images: Tensor, layer: str, method: str = "gradcam") -> Tensor:
    return compute_cam(model, images, layer, target=CLASSES, method=method).cams[layer]


def stretched(maps: Tensor) -> Tensor:
    """From each map's minimum to its maximum, as grad-cam returns them."""
    low = maps.amin((1, 2), keepdim=True)
    return (maps - low) / (maps.amax((1, 2), keepdim=True) - low)


def assert_agree(maps: Tensor, other: Tensor) -> None:
    assert (other.amax((1, 2)) > 0).any(), "nothing to compare"
    errors = relative_error(maps, other)
    assert (errors <= TOLERANCE).all(), errors.tolist()


def assert_ours_is_the_textbook_map(model: nn.Module, images: Tensor, layer: str, method: str = "gradcam") -> Tensor:
    maps = ours(model, images, layer, method)
    assert_agree(maps, reference_cam(model, images, layer, method, target=CLASSES))
    return maps


# Where they are right


@pytest.mark.parametrize("layer", ["stem", "norm", "stage", "relu"])
@pytest.mark.parametrize(
    ("kind", "method"), [("GradCAM", "gradcam"), ("HiResCAM", "hirescam"), ("LayerCAM", "layercam")]
)
def test_grad_cam_agrees(images: Tensor, layer: str, kind: str, method: str) -> None:
    model = net(gain=1e3)  # it adds 1e-7 to each maximum
    assert_agree(stretched(ours(model, images, layer, method)), by_grad_cam(kind, model, images, layer))


def test_grad_cam_agrees_on_xgradcam_where_channels_do_not_sum_to_zero(images: Tensor) -> None:
    model = net(gain=1e3)
    assert_agree(stretched(ours(model, images, "relu", "xgradcam")), by_grad_cam("XGradCAM", model, images, "relu"))


def test_grad_cam_agrees_on_gradcam_plus_plus_where_gradients_are_large(images: Tensor) -> None:
    model = net(gain=1e6)  # it adds 1e-6 to a denominator of squared gradients
    assert_agree(
        stretched(ours(model, images, "relu", "gradcam++")), by_grad_cam("GradCAMPlusPlus", model, images, "relu")
    )


@pytest.mark.parametrize("layer", ["stem", "norm", "stage", "relu"])
def test_captum_agrees(images: Tensor, layer: str) -> None:
    for model in (net(), net(rectify=F.relu_)):
        assert_agree(ours(model, images, layer), by_captum(model, images, layer))


@pytest.mark.parametrize("layer", ["stem", "norm", "stage", "relu"])
@pytest.mark.parametrize(("kind", "method"), [("GradCAM", "gradcam"), ("LayerCAM", "layercam")])
def test_torchcam_agrees(images: Tensor, layer: str, kind: str, method: str) -> None:
    model = net()
    assert_agree(ours(model, images, layer, method), by_torchcam(kind, model, images, layer))


def test_torchcam_agrees_on_xgradcam_where_channels_do_not_sum_to_zero(images: Tensor) -> None:
    model = net()
    assert_agree(ours(model, images, "relu", "xgradcam"), by_torchcam("XGradCAM", model, images, "relu"))


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_all_agree_on_a_resnet(layer: str) -> None:
    torch.manual_seed(0)
    model, images = zoo.resnet18(num_classes=5).eval(), torch.randn(4, 3, 64, 64)
    maps = ours(model, images, layer)
    assert_agree(maps, by_captum(model, images, layer))
    assert_agree(maps, by_torchcam("GradCAM", model, images, layer))


# Where they are not


@pytest.mark.parametrize("peer", [by_grad_cam, by_torchcam])
def test_an_in_place_relu_after_the_layer_spoils_theirs(images: Tensor, peer: Callable[..., Tensor]) -> None:
    """What they keep of the layer is changed under their hands."""
    plain, in_place = net(rectify=F.relu), net(rectify=F.relu_)
    maps = assert_ours_is_the_textbook_map(in_place, images, "norm")
    assert torch.equal(maps, ours(plain, images, "norm"))
    right, theirs = peer("GradCAM", plain, images, "norm"), peer("GradCAM", in_place, images, "norm")
    assert (stretched(theirs) - stretched(right)).abs().max() > 0.1


def test_torchcam_loses_the_denominator_of_gradcam_plus_plus(images: Tensor) -> None:
    """It divides a copy; what remains is the sum of the cubes of the positive gradients."""
    model = net()
    maps = assert_ours_is_the_textbook_map(model, images, "stem", "gradcam++")
    theirs = by_torchcam("GradCAMpp", model, images, "stem")
    assert (stretched(theirs) - stretched(maps)).abs().max() > 0.01
    assert (theirs.amax((1, 2)) < 0.01 * maps.amax((1, 2))).all()


def test_grad_cam_drowns_ordinary_gradients_of_gradcam_plus_plus(images: Tensor) -> None:
    """Squared, a gradient behind a mean over a map is far smaller than the 1e-6 that it adds to the denominator."""
    model = net()
    maps = assert_ours_is_the_textbook_map(model, images, "stem", "gradcam++")
    assert (stretched(maps) - by_grad_cam("GradCAMPlusPlus", model, images, "stem")).abs().max() > 0.01


@pytest.mark.parametrize("peer", [by_grad_cam, by_torchcam])
def test_in_a_validation_loop_they_raise(images: Tensor, peer: Callable[..., Tensor]) -> None:
    model = net()
    with torch.no_grad():
        assert_ours_is_the_textbook_map(model, images, "stage")
        with pytest.raises(RuntimeError):
            peer("GradCAM", model, images, "stage")


def test_one_target_for_four_images_is_three_blank_maps_in_grad_cam(images: Tensor) -> None:
    model = net(gain=1e3)
    theirs = by_grad_cam("GradCAM", model, images, "relu", [0])
    assert theirs[0].any()
    assert not theirs[1:].any()
    assert (compute_cam(model, images, "relu", target=0).cams["relu"].amax((1, 2)) > 0).sum() > 1
    with pytest.raises(ValueError, match="4 samples"):
        compute_cam(model, images, "relu", target=[0])


class Broken(Net):
    """The scores are finite, and the way back divides zero by zero."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.stage(F.relu(self.norm(self.stem(images)))))
        return self.fc((maps + (0 * maps).sqrt()).mean((2, 3)))


def test_gradients_of_nan_become_a_picture_in_grad_cam(images: Tensor) -> None:
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import show_cam_on_image

    model = Broken().eval()
    theirs = by_grad_cam("GradCAM", model, images, "relu").numpy()
    with np.errstate(invalid="ignore"):
        picture = show_cam_on_image(np.full((12, 12, 3), 0.5, np.float32), theirs[0])
    cold = show_cam_on_image(np.full((12, 12, 3), 0.5, np.float32), np.zeros((12, 12), np.float32))
    assert np.array_equal(picture, cold)
    assert_null(model, images)


def test_gradients_of_nan_become_zeros_in_torchcam(images: Tensor) -> None:
    model = Broken().eval()
    assert not by_torchcam("GradCAM", model, images, "relu").any()
    assert_null(model, images)


def assert_null(model: nn.Module, images: Tensor) -> None:
    result = compute_cam(model, images, "relu")
    assert result.cams["relu"].isnan().all()
    assert result.health["relu"].state == ("non_finite",) * 4


def test_grad_cam_overwrites_half_a_step_of_gradients(images: Tensor) -> None:
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_ours_is_the_textbook_map(model, images, "stage")
    for name, parameter in model.named_parameters():
        assert parameter.grad is before[name]
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    by_grad_cam("GradCAM", model, images, "stage")
    assert all(not torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


def test_grad_cam_leaves_the_model_in_another_mode(images: Tensor) -> None:
    model = net().train()
    compute_cam(model, images, "stage")
    assert model.training
    by_grad_cam("GradCAM", model, images, "stage")
    assert not model.training


def test_bfloat16_fails_in_grad_cam(images: Tensor) -> None:
    model = net().bfloat16()
    assert compute_cam(model, images.bfloat16(), "stage").health["stage"].state == ("ok",) * 4
    with pytest.raises(TypeError):
        by_grad_cam("GradCAM", model, images.bfloat16(), "stage")


@pytest.mark.parametrize("peer", [by_grad_cam, by_captum, by_torchcam])
def test_theirs_do_not_see_a_model_that_was_compiled_before(images: Tensor, peer: Callable[..., Tensor]) -> None:
    """Their hooks come after the first compiled call, and never fire."""
    torch.compiler.reset()
    compiled: Any = torch.compile(net(), backend="eager")
    compiled(images)
    assert_agree(ours(compiled, images, "stage"), reference_cam(net(), images, "stage", target=CLASSES))
    kind = () if peer is by_captum else ("GradCAM",)
    with pytest.raises((AssertionError, AttributeError)):
        peer(*kind, compiled, images, "_orig_mod.stage")
