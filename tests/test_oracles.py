"""`compute_cam` against the plain-autograd reference: each method, on known networks, under all that is promised."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from reference import METHODS, Evidence, differentiate, maps_of, reference_cam, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam

TOLERANCE = 1e-5

NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "resnet18": (zoo.resnet18, ("maxpool", "layer1", "layer2.1.conv1", "layer3.0.conv2", "layer4.1.bn2", "layer4")),
    "densenet121": (
        zoo.densenet121,
        ("features.conv0", "features.transition1.conv", "features.transition2.conv", "features.norm5", "features"),
    ),
    "mobilenet_v2": (zoo.mobilenet_v2, ("features.1", "features.6.conv.1.1", "features.18.1", "features")),
    "mobilenet_v3_small": (zoo.mobilenet_v3_small, ("features.0", "features.3.block.1.0", "features.12", "features")),
    "efficientnet_b0": (zoo.efficientnet_b0, ("features.1", "features.4", "features.8.1", "features")),
    "shufflenet_v2_x0_5": (zoo.shufflenet_v2_x0_5, ("conv1", "stage2", "conv5.1")),
    "squeezenet1_1": (zoo.squeezenet1_1, ("features.0", "features.6.expand1x1", "features.12", "classifier.1")),
    "vgg11": (lambda num_classes: _vgg11(num_classes), ("features.0", "features.8", "features.18", "features")),
    "convnext_tiny": (zoo.convnext_tiny, ("features.6", "features.7.0", "features.7")),
    "regnet_y_400mf": (zoo.regnet_y_400mf, ("stem.1", "trunk_output.block2", "trunk_output")),
}


def _vgg11(num_classes: int) -> nn.Module:
    """VGG11 without its hundred million weights behind the convolutions."""
    parts = {
        "features": zoo.vgg.make_layers(zoo.vgg.cfgs["A"]),
        "pool": nn.AdaptiveAvgPool2d(2),
        "flatten": nn.Flatten(),
        "head": nn.Linear(512 * 4, num_classes),
    }
    return nn.Sequential(OrderedDict(parts))


@functools.cache
def _network(name: str) -> tuple[nn.Module, Tensor]:
    """A network with seeded weights and used batch statistics, in eval mode, and two images. Not to be changed."""
    torch.manual_seed(len(name))
    model = NETWORKS[name][0](num_classes=10)
    images = torch.randn(2, 3, 96, 96)
    return settle(model), images


def settle(model: nn.Module) -> nn.Module:
    """Give batch normalisation weights and statistics that matter, as after some training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


@functools.cache
def _evidence(name: str, layer: str) -> Evidence:
    model, images = _network(name)
    return differentiate(model, images, layer)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: more threads only get in each other's way, and in the way of the reference."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_map_is_the_textbook_map_on_known_networks(name: str, method: str) -> None:
    model, images = _network(name)
    layers = NETWORKS[name][1]

    result = compute_cam(model, images, layers, method=method)

    for layer in layers:
        evidence = _evidence(name, layer)
        reference = maps_of(evidence, method)
        assert (reference.amax(dim=(1, 2)) > 0).any(), f"{layer}: nothing to compare"
        assert torch.equal(result.targets, evidence.targets)
        errors = relative_error(result.cams[layer], reference)
        assert (errors <= TOLERANCE).all(), f"{layer}: {errors.tolist()}"


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_double_models_agree_wherever_float32_is_ill_conditioned(name: str) -> None:
    """Before a batch normalisation a channel may sum to nearly nothing: two right float32 answers differ there.

    In a double model they do not, so nothing hides behind rounding.
    """
    model, images = copy.deepcopy(_network(name)[0]).double(), _network(name)[1].double()
    layers = {
        "resnet18": ["conv1", "bn1", "layer2.1.conv1", "layer4.1.bn2"],
        "densenet121": ["features.norm0", "features.denseblock1.denselayer1.norm1", "features.norm5"],
        "mobilenet_v2": ["features.0.1", "features.6.conv.0.1", "features.18.1"],
    }[name]
    for method in METHODS:
        result = compute_cam(model, images, layers, method=method)
        for layer in layers:
            errors = relative_error(result.cams[layer], reference_cam(model, images, layer, method))
            assert (errors <= TOLERANCE).all(), f"{method} at {layer}: {errors.tolist()}"


class Net(nn.Module):
    """Two stages, each normalised and followed by an in-place ReLU; small, and everything in it matters."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.stage = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.relu(self.stage(self.relu(self.norm(self.stem(images)))))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.features(images).mean((2, 3))))


LAYERS = ("stem", "norm", "stage")


def net(classes: int = 5, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = settle(Net(classes))
    assert isinstance(model, Net)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def assert_maps_agree(cams: Tensor, reference: Tensor, tolerance: float = TOLERANCE) -> None:
    assert (reference.amax(dim=(1, 2)) > 0).any(), "the reference is empty: nothing to compare"
    errors = relative_error(cams, reference)
    assert (errors <= tolerance).all(), errors.tolist()


@pytest.mark.parametrize("guard", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_asks_nothing_of_the_caller(method: str, guard: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Gradients on or off, parameters frozen, train mode, inputs made where the call is made."""
    model = net()
    frozen = copy.deepcopy(model).requires_grad_(False).train()
    with guard():
        inputs = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
        result = compute_cam(frozen, inputs, LAYERS, method=method)
    for layer in LAYERS:
        assert_maps_agree(result.cams[layer], reference_cam(model, inputs, layer, method))


def test_inputs_made_in_inference_mode_are_accepted_outside_it() -> None:
    model = net()
    with torch.inference_mode():
        inputs = torch.randn(4, 3, 12, 12)
    assert inputs.is_inference()
    assert_maps_agree(compute_cam(model, inputs, "stem").cams["stem"], reference_cam(model, inputs, "stem"))


def test_parameters_made_in_inference_mode_are_accepted(images: Tensor) -> None:
    model = net()
    with torch.inference_mode():
        inferred = copy.deepcopy(model)
        result = compute_cam(inferred, images, "stem")
    assert inferred.head.weight.is_inference()
    assert_maps_agree(result.cams["stem"], reference_cam(model, images, "stem"))


@pytest.mark.parametrize("method", METHODS)
def test_several_layers_in_one_pass_are_the_layers_one_by_one(images: Tensor, method: str) -> None:
    model = net()
    together = compute_cam(model, images, LAYERS, method=method)
    assert tuple(together.cams) == LAYERS
    for layer in LAYERS:
        alone = compute_cam(model, images, layer, method=method)
        assert_maps_agree(together.cams[layer], alone.cams[layer])
        torch.testing.assert_close(together.health[layer].gradient_norm, alone.health[layer].gradient_norm)


def test_the_order_of_the_layers_does_not_matter(images: Tensor) -> None:
    model = net()
    forwards, backwards = compute_cam(model, images, LAYERS), compute_cam(model, images, LAYERS[::-1])
    assert tuple(backwards.cams) == LAYERS[::-1]
    for layer in LAYERS:
        assert torch.equal(forwards.cams[layer], backwards.cams[layer])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one(images: Tensor, method: str) -> None:
    model = net()
    batch = compute_cam(model, images, "stage", target=[0, 1, 2, 3], method=method)
    for index in range(len(images)):
        alone = compute_cam(model, images[index : index + 1], "stage", target=index, method=method)
        assert_maps_agree(batch.cams["stage"][index : index + 1], alone.cams["stage"])


@pytest.mark.parametrize("target", ["predicted", 2, [4, 0, 2, 1], torch.tensor([4, 0, 2, 1])])
def test_targets_are_predicted_or_one_for_all_or_one_a_sample(images: Tensor, target: str | int | list[int]) -> None:
    model = net()
    result = compute_cam(model, images, "stage", target=target)
    evidence = differentiate(model, images, "stage", target)
    assert torch.equal(result.targets, evidence.targets)
    torch.testing.assert_close(result.scores, evidence.scores)
    torch.testing.assert_close(
        result.health["stage"].gradient_norm, evidence.gradient.flatten(1).norm(dim=1), rtol=1e-5, atol=0
    )
    assert_maps_agree(result.cams["stage"], maps_of(evidence, "gradcam"))


def test_of_a_single_logit_class_one_is_the_logit_and_class_zero_its_negative(images: Tensor) -> None:
    model = net(classes=1)
    twin = copy.deepcopy(model)
    twin.head = nn.Linear(16, 2)
    with torch.no_grad():
        twin.head.weight.copy_(torch.cat([-model.head.weight, model.head.weight]))
        twin.head.bias.copy_(torch.cat([-model.head.bias, model.head.bias]))
    for target in ("predicted", 0, 1, [0, 1, 1, 0]):
        result = compute_cam(model, images, "stem", target=target)
        evidence = differentiate(twin, images, "stem", target)
        assert torch.equal(result.targets, evidence.targets)
        torch.testing.assert_close(result.scores, evidence.scores)
        assert_maps_agree(result.cams["stem"], maps_of(evidence, "gradcam"))
    logit = model(images)[:, 0]
    torch.testing.assert_close(result.probabilities, torch.stack([(-logit).sigmoid(), logit.sigmoid()], dim=1))


@pytest.mark.parametrize("reopened", [False, True], ids=["no statistics", "back to train mode"])
def test_samples_that_depend_on_each_other_have_the_map_of_their_own_score(images: Tensor, reopened: bool) -> None:
    class Coupled(Net):
        def forward(self, images: Tensor) -> Tensor:
            self.norm.train(self.norm.training or reopened)
            return super().forward(images)

    torch.manual_seed(0)
    model = Coupled().eval()
    model.norm = nn.BatchNorm2d(8, track_running_stats=reopened)
    model.norm.eval()
    images = images * torch.tensor([1, 2, 0.3, 4.0])[:, None, None, None]
    result = compute_cam(model, images, "stem", target=1)
    for row in range(4):

        def own(logits: Tensor, row: int = row) -> Tensor:
            return logits * (torch.arange(4) == row)[:, None]

        assert_maps_agree(
            result.cams["stem"][row, None], reference_cam(model, images, "stem", target=1, logits_of=own)[row, None]
        )


class Mixing(nn.Module):
    """Samples are mixed by a function, behind the only layer, so that no module tells of it."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.mix = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), mix

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.mix(self.conv(images).relu()).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("mix", "layer"),
    [
        (lambda maps: nn.functional.batch_norm(maps, None, None, training=True), "conv"),
        (lambda m: m - m.mean(0), "auto"),
    ],
    ids=["batch normalisation", "mean, by auto"],
)
def test_samples_that_a_function_mixes_have_the_map_of_their_own_score(images: Tensor, mix: Any, layer: str) -> None:
    torch.manual_seed(0)
    model = Mixing(mix).eval()
    cams = compute_cam(model, images, layer, target=1).cams["conv"]
    for row, cam in enumerate(cams):
        activation = model.conv(images).detach().requires_grad_()
        score = model.fc(mix(activation.relu()).mean((2, 3)))[row, 1]
        gradient = torch.autograd.grad(score, activation)[0][row]
        expected = (gradient.mean((1, 2), keepdim=True) * activation[row]).sum(0).relu().detach()
        assert_maps_agree(cam[None], expected[None])


class Pair(nn.Module):
    """A layer that returns a tuple: the map and something beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(images), images.mean((1, 2, 3))


class TupleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.head = Pair(), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps, beside = self.pair(images)
        return self.head(maps.relu_().mean((2, 3))) + beside[:, None]


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_may_return_a_tuple(images: Tensor, method: str) -> None:
    torch.manual_seed(2)
    model = TupleNet().eval()
    reference = reference_cam(model, images, "pair", method, tensor_of=lambda output: output[0])
    assert_maps_agree(compute_cam(model, images, "pair", method=method).cams["pair"], reference)


class TransferLearner(nn.Module):
    """Lightning's recipe: the backbone frozen and under `no_grad`, the head outside."""

    def __init__(self, trained: Net) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(trained), copy.deepcopy(trained.head)

    def forward(self, images: Tensor) -> Tensor:
        self.backbone.eval()
        with torch.no_grad():
            pooled = self.backbone.features(images).mean((2, 3))
        return self.head(pooled)


@pytest.mark.parametrize("guard", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_backbone_under_no_grad_in_forward_is_explained_all_the_same(
    images: Tensor, layer: str, guard: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    trained = net()
    model = TransferLearner(trained)
    with guard():
        result = compute_cam(model, images, f"backbone.{layer}")
    assert_maps_agree(result.cams[f"backbone.{layer}"], reference_cam(trained, images, layer))


def test_two_layers_under_no_grad_are_both_explained(images: Tensor) -> None:
    trained = net()
    result = compute_cam(TransferLearner(trained), images, ["backbone.stem", "backbone.stage"])
    for layer in ("stem", "stage"):
        assert_maps_agree(result.cams[f"backbone.{layer}"], reference_cam(trained, images, layer))


def test_a_backbone_in_inference_mode_is_explained_rightly_or_not_at_all(images: Tensor) -> None:
    trained = net()
    model = TransferLearner(trained)
    model.backbone.features = torch.inference_mode()(model.backbone.features)  # type: ignore[method-assign]
    result = compute_cam(model, images, "backbone.stage")
    cams = result.cams["backbone.stage"]
    if cams.isnan().all():  # a tensor of inference mode has no history; then it has to be said
        assert all(state == "none" for state in result.health["backbone.stage"].state)
    else:
        assert_maps_agree(cams, reference_cam(trained, images, "stage"))


def test_a_compiled_model_is_explained_also_after_its_first_call(images: Tensor) -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(images)
    assert_maps_agree(compute_cam(compiled, images, "stage").cams["stage"], reference_cam(model, images, "stage"))


@pytest.mark.parametrize("method", METHODS)
def test_a_double_model_gives_float32_maps(images: Tensor, method: str) -> None:
    model = net().double()
    result = compute_cam(model, images.double(), "stem", method=method)
    assert result.cams["stem"].dtype == torch.float32
    assert_maps_agree(result.cams["stem"], reference_cam(model, images.double(), "stem", method))


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_model_is_explained_with_float32_maps(images: Tensor, method: str) -> None:
    """What the network computed in bfloat16 is what is explained; the map itself is made in float32."""
    model, inputs = net().bfloat16(), images.bfloat16()
    result = compute_cam(model, inputs, "stage", target=3, method=method)
    assert result.cams["stage"].dtype == torch.float32
    assert_maps_agree(result.cams["stage"], reference_cam(model, inputs, "stage", method, target=3))


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_only_the_network_runs_in_low_precision(images: Tensor, method: str) -> None:
    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = compute_cam(model, images, "stage", target=3, method=method)
        evidence = differentiate(model, images, "stage", 3)
    assert evidence.activation.dtype == torch.bfloat16
    assert_maps_agree(result.cams["stage"], maps_of(evidence, method))
