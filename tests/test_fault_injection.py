"""Known faults, put into real networks: the cause and the line have to be right; what does no harm is left alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import faults
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from faults import Fault
from torch import Tensor, nn

from gradcam_callback import compute_cam, diagnose
from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.tracer import bridging
from gradcam_callback.engine.device_results import judge
from gradcam_callback.engine.explain import explain
from gradcam_callback.engine.request import CAMRequest

MODES: dict[str, Callable[[], Any]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "train": torch.enable_grad,
}


class Network(NamedTuple):
    """Where it comes from, the layer that is asked for, and three places after it."""

    make: Callable[..., nn.Module]
    layer: str
    places: tuple[str, str, str]


def of_torchvision(name: str, layer: str, *places: str, **options: Any) -> Network:
    make = functools.partial(torchvision.models.get_model, name, weights=None, num_classes=7, **options)
    return Network(make, layer, places)  # type: ignore[arg-type]


def of_timm(name: str, layer: str, *places: str, **options: Any) -> Network:
    make = functools.partial(timm.create_model, name, pretrained=False, num_classes=7, **options)
    return Network(make, layer, places)  # type: ignore[arg-type]


GOOGLENET = {"aux_logits": False, "init_weights": False}
NETWORKS = {
    "resnet18": of_torchvision("resnet18", "layer2", "layer3", "layer4", "fc"),
    "densenet121": of_torchvision(
        "densenet121", "features.denseblock2", "features.denseblock3", "features.norm5", "classifier"
    ),
    "mobilenet_v3": of_torchvision("mobilenet_v3_small", "features.4", "features.8", "features.12", "classifier.0"),
    "efficientnet": of_torchvision("efficientnet_b0", "features.3", "features.5", "features.8", "classifier"),
    "convnext": of_torchvision("convnext_tiny", "features.3", "features.5", "features.7", "avgpool"),
    "regnet": of_torchvision("regnet_y_400mf", "trunk_output.block2", "trunk_output.block3", "avgpool", "fc"),
    "shufflenet": of_torchvision("shufflenet_v2_x0_5", "stage2", "stage3", "conv5", "fc"),
    "vgg11_bn": of_torchvision("vgg11_bn", "features.11", "features.15", "avgpool", "classifier.0"),
    "squeezenet": of_torchvision("squeezenet1_1", "features.5", "features.9", "features.12", "classifier.1"),
    "googlenet": of_torchvision("googlenet", "inception3a", "inception4a", "inception5b", "fc", **GOOGLENET),
    "mnasnet": of_torchvision("mnasnet0_5", "layers.9", "layers.11", "layers.14", "classifier"),
    "timm_resnet": of_timm("resnet10t", "layer2", "layer3", "layer4", "fc"),
    "timm_mobilenet": of_timm("mobilenetv3_small_050", "blocks.2", "blocks.4", "conv_head", "classifier"),
    "timm_convnext": of_timm("convnextv2_atto", "stages.1", "stages.2", "stages.3", "head"),
    "timm_ghostnet": of_timm("ghostnet_050", "blocks.3", "blocks.6", "conv_head", "classifier"),
    "timm_vit": of_timm("vit_tiny_patch16_224", "patch_embed.proj", "blocks.5", "norm", "head", img_size=32),
}


@functools.cache
def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETWORKS[name].make().eval()


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, fault: Fault) -> None:
        super().__init__()
        self.inner, self.fault = inner, fault

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.fault(self.inner(*args, **kwargs))


@contextmanager
def hooked(model: nn.Module, place: str, fault: Fault) -> Iterator[None]:
    handle = model.get_submodule(place).register_forward_hook(lambda _module, _args, output: fault(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrapped(model: nn.Module, place: str, fault: Fault) -> Iterator[None]:
    inner = model.get_submodule(place)
    model.set_submodule(place, Wrapped(inner, fault).train(model.training))
    try:
        yield
    finally:
        model.set_submodule(place, inner)


WAYS = {"hook": hooked, "wrapper": wrapped}


class Case(NamedTuple):
    name: str
    place: str
    fault: Fault
    way: str
    mode: str

    @property
    def expected(self) -> Cause | None:
        return {**faults.CUTS, **faults.OTHERS}.get(self.fault)


def _cases() -> list[Case]:
    """Every fault at every place, the ways to put it there and the modes by turns."""
    functions = [*faults.CUTS, *faults.OTHERS, *faults.HARMLESS]
    places = [(name, place) for name, network in NETWORKS.items() for place in network.places]
    ways = itertools.cycle(itertools.product(WAYS, MODES))
    return [
        Case(*where, fault, *way)
        for (where, fault), way in zip(itertools.product(places, functions), ways, strict=False)
    ]


# The quick part: every network and every fault, each a few times. The other cases are slow.
STRIDE = 31
CASES = [
    pytest.param(
        case,
        marks=() if number % STRIDE == 0 else pytest.mark.slow,
        id="-".join((case.name, case.place, case.fault.__name__, case.way, case.mode)),
    )
    for number, case in enumerate(_cases())
]


@pytest.mark.parametrize("case", CASES)
def test_fault_is_found_and_nothing_else(case: Case) -> None:
    model, layer = network(case.name).train(case.mode == "train"), NETWORKS[case.name].layer
    with WAYS[case.way](model, case.place, case.fault), MODES[case.mode]():
        found = diagnose(model, images(), layer)
    told = [(cut.cause, cut.location and (cut.location.file, cut.location.line)) for cut in found.cuts]
    expected = case.expected
    assert told == ([] if expected is None else [(expected, (faults.__file__, faults.line_of(case.fault)))])
    if found.location is not None:
        assert (found.location.module, found.location.function) == (case.place, case.fault.__name__)


def test_quick_part_has_every_network_and_every_fault() -> None:
    quick = [param.values[0] for param in CASES if not param.marks]
    assert {case.name for case in quick} == set(NETWORKS)
    assert {case.fault for case in quick} == {*faults.CUTS, *faults.OTHERS, *faults.HARMLESS}
    assert {(case.way, case.mode) for case in quick} == set(itertools.product(WAYS, MODES))


# A cut whose next operation is in place.


class Small(nn.Module):
    def __init__(self, cut: Fault, then: Fault) -> None:
        super().__init__()
        self.conv, self.norm, self.mid = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)
        self.cut, self.then = cut, then

    def forward(self, images: Tensor) -> Tensor:
        maps = self.then(self.cut(self.norm(self.conv(images))))
        return self.head(self.mid(maps).mean((2, 3)))


def small_network(cut: Fault, then: Fault) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(cut, then).eval()


IN_PLACE_CASES = list(itertools.product(faults.CUTS, faults.IN_PLACE))


@pytest.mark.parametrize(
    ("number", "cut", "then"),
    [(number, cut, then) for number, (cut, then) in enumerate(IN_PLACE_CASES)],
    ids=[f"{cut.__name__}-{then}" for cut, then in IN_PLACE_CASES],
)
def test_in_place_operation_after_a_cut_is_not_blamed(number: int, cut: Fault, then: str) -> None:
    mode = [*MODES][number % len(MODES)]
    model = small_network(cut, faults.IN_PLACE[then]).train(mode == "train")
    with MODES[mode]():
        found = diagnose(model, torch.rand(2, 3, 12, 12), "conv")
    told = [(cut.cause, cut.location and cut.location.line) for cut in found.cuts]
    assert told == [(faults.CUTS[cut], faults.line_of(cut))]


@pytest.mark.parametrize("cut", [cut for cut, cause in faults.CUTS.items() if cause is not Cause.LEFT_TORCH])
def test_map_across_a_cut_before_an_in_place_operation_is_that_of_the_network(cut: Fault) -> None:
    model = small_network(cut, F.relu_)
    inputs = torch.rand(2, 3, 12, 12)
    bridges = diagnose(model, inputs, "conv").bridges
    results = explain(model, inputs, CAMRequest.of("conv"), observer=bridging(bridges))
    [across] = judge(results, results.verdicts)
    scale = 1.5 if "block" in cut.__name__ and "view" not in cut.__name__ else 1.0
    whole = compute_cam(small_network(lambda x: x * scale, F.relu_), inputs, "conv")
    torch.testing.assert_close(across.cams["conv"], whole.cams["conv"])


def written_through_an_alias(maps: Tensor) -> Tensor:
    maps = maps * 1.5
    maps.detach().mul_(2)
    return maps


@pytest.mark.parametrize("fault", [faults.rounded, faults.custom_function])
def test_write_through_an_alias_hides_no_fault_before_it(fault: Fault) -> None:
    found = diagnose(small_network(fault, written_through_an_alias), torch.rand(2, 3, 12, 12), "conv")
    assert (found.cause, found.location and found.location.line) == (faults.OTHERS[fault], faults.line_of(fault))


def test_non_finite_values_written_through_an_alias_are_blamed_on_the_write() -> None:
    """The values of what goes on were changed by way of `.data`: the line that did it is told."""

    def spoil(maps: Tensor) -> Tensor:
        maps = maps * 1.5
        maps.data.div_(0)
        return maps

    found = diagnose(small_network(lambda x: x, spoil), torch.rand(2, 3, 12, 12), "conv")
    assert (found.cause, found.location and found.location.code) == (Cause.NON_FINITE, "maps.data.div_(0)")
