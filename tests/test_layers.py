"""Names of layers, as people write them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback.engine.layers import check_names, find_layers


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv2(self.conv1(images).relu())


class Net(nn.Module):
    """Its `layer4` is a list, its `named` a list with names, its `heads` a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 1)
        self.layer4 = nn.Sequential(Block(), Block())
        self.named = nn.Sequential(OrderedDict(first=nn.ReLU(), second=nn.Sigmoid()))
        self.heads = nn.ModuleDict({"cls": nn.Linear(2, 3), "-1": nn.Linear(2, 3), "box": nn.Linear(2, 4)})

    def forward(self, images: Tensor) -> Tensor:
        return self.heads["cls"](self.named(self.layer4(self.conv1(images))).mean((2, 3)))


class Task(nn.Module):
    """A network in an attribute, as a LightningModule keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


# Lists of names


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("layer4", ("layer4",)),
        ("auto", ("auto",)),
        (["b", "a", "b"], ("b", "a")),
        (("a", "b"), ("a", "b")),
        (["auto", "auto"], ("auto",)),
    ],
)
def test_names_keep_their_order_and_lose_repetitions(given: Any, names: tuple[str, ...]) -> None:
    assert check_names(given) == names


@pytest.mark.parametrize(
    "given",
    [b"layer4", 4, None, [4], ["layer4", None], [["layer4"]], {"layer4"}, {"layer4": 1}, nn.ReLU(), [nn.ReLU()]],
    ids=repr,
)
def test_anything_but_strings_is_refused_with_what_came(given: Any) -> None:
    with pytest.raises(TypeError, match="dotted names") as caught:
        check_names(given)
    assert repr(given) in str(caught.value)


def test_a_whole_network_is_not_printed_into_the_message() -> None:
    with pytest.raises(TypeError, match="dotted names") as caught:
        check_names([Task() for _ in range(20)])  # type: ignore[list-item]
    assert len(str(caught.value)) < 400


def test_no_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r'No target layer.*"auto"'):
        check_names([])


@pytest.mark.parametrize("given", [["auto", "layer4"], ["layer4", "auto"]])
def test_auto_stands_alone(given: list[str]) -> None:
    with pytest.raises(ValueError, match=r'"auto".*alone.*layer4'):
        check_names(given)


# Names to modules


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("model.layer4", "model.layer4"),
        ("model.layer4.1.conv2", "model.layer4.1.conv2"),
        ("model.layer4[1].conv2", "model.layer4.1.conv2"),
        ("model.layer4[-1].conv2", "model.layer4.1.conv2"),
        ("model.layer4[-2].conv2", "model.layer4.0.conv2"),
        ("model.layer4.-1.conv2", "model.layer4.1.conv2"),
        ("model.named[-1]", "model.named.second"),
        ("model.named[-2]", "model.named.first"),
        ("model.named[second]", "model.named.second"),
        ("model.heads[box]", "model.heads.box"),
    ],
)
def test_a_layer_is_found_however_its_place_is_written(written: str, meant: str) -> None:
    model = Task()
    found = find_layers(model, [written])
    assert list(found) == [meant]
    assert found[meant] is model.get_submodule(meant)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("model.layer4.*", ["model.layer4.0", "model.layer4.1"]),
        ("model.*4", ["model.layer4"]),
        ("*.conv?", ["model.conv1"]),
        ("model.named.*#-1", ["model.named.first#-1", "model.named.second#-1"]),
        ("model.heads.c*", ["model.heads.cls"]),
    ],
)
def test_a_pattern_stands_for_the_layers_that_it_matches_between_dots(written: str, meant: list[str]) -> None:
    assert list(find_layers(Task(), [written])) == meant


def test_a_pattern_that_matches_nothing_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"Task has no layer 'model\.layer9\*'"):
        find_layers(Task(), ["model.layer9*"])


def test_a_name_with_a_star_in_it_is_no_pattern() -> None:
    model = nn.ModuleDict({"a*": nn.ReLU(), "ab": nn.ReLU()})
    assert list(find_layers(model, ["a*"])) == ["a*"]


def test_several_layers_keep_their_order_and_two_names_of_one_layer_are_one() -> None:
    found = find_layers(Net(), ["layer4[-1]", "conv1", "layer4.1", "layer4[1]"])
    assert list(found) == ["layer4.1", "conv1"]


def test_an_item_of_a_list_with_names_is_counted_from_the_front_too() -> None:
    """As in Python, where `model.named[0]` is `model.named.first`."""
    assert list(find_layers(Net(), ["named[0]", "named[1]"])) == ["named.first", "named.second"]


@pytest.mark.parametrize("written", ["[-1]", "-1", "[1]", "1"])
def test_the_model_itself_may_be_the_list(written: str) -> None:
    assert list(find_layers(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), [written])) == ["1"]


def test_a_name_that_exists_is_not_counted() -> None:
    assert list(find_layers(Net(), ["heads.-1"])) == ["heads.-1"]


def test_a_module_with_two_names_is_found_under_each() -> None:
    model = Net()
    model.last = model.layer4[1]
    assert find_layers(model, ["last"])["last"] is model.layer4[1]
    assert find_layers(model, ["layer4.1"])["layer4.1"] is model.layer4[1]


@pytest.mark.parametrize(
    ("written", "closest"),
    [
        ("layer4", "'model.layer4'"),
        ("layer4.1", "'model.layer4.1'"),
        ("conv2", "'model.layer4.0.conv2', 'model.layer4.1.conv2'"),
        ("self.model.layer4", "'model.layer4'"),
        ("model.Layer4", "'model.layer4'"),
        ("model.layer5", "'model.layer4'"),
        ("model.layer4.2", "'model.layer4.1'"),
        ("model.layer4[2]", "'model.layer4.1'"),
        ("model.layer4[-3]", "'model.layer4.1'"),
        ("model.layer4[0", "'model.layer4.0'"),
        ("model..layer4", "'model.layer4'"),
        ("model.layer4.", "'model.layer4'"),
        (" model.layer4", "'model.layer4'"),
        ("model.conv1.weight", "'model.conv1'"),
        ("model.layer4[:1]", "'model.layer4.1'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_closest(written: str, closest: str) -> None:
    with pytest.raises(ValueError, match="The closest") as caught:
        find_layers(Task(), [written])
    message = str(caught.value)
    assert message.startswith(f"Task has no layer {written!r}.")
    assert closest in message


def test_the_names_without_their_prefix_come_first_and_are_four_at_most() -> None:
    model = nn.ModuleList([Block() for _ in range(6)])
    with pytest.raises(ValueError, match=r"'0\.conv2', '1\.conv2', '2\.conv2', '3\.conv2'\.$"):
        find_layers(model, ["conv2"])


@pytest.mark.parametrize("written", ["", "nothing like it", "[zzz]"])
def test_a_name_like_no_other_is_answered_with_the_top(written: str) -> None:
    with pytest.raises(ValueError, match=r"At the top there are 'model'.*named_modules") as caught:
        find_layers(Task(), [written])
    assert repr(written) in str(caught.value)


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(ValueError, match=r"ReLU has no layer 'layer4'.*no layers at all"):
        find_layers(nn.ReLU(), ["layer4"])


# Compiled models: the wrapper has a name that nobody wrote


@pytest.mark.parametrize("written", ["model.layer4.1", "model.layer4[-1]", "model.layer4.-1"])
def test_names_are_those_of_the_model_that_was_compiled(written: str) -> None:
    for place in ("model", "model.layer4", "model.layer4.1", "model.layer4.0", ""):
        model = Task()
        layer = model.model.layer4[1]
        if not place:
            model = compiled(model)
        else:
            parent, _, name = place.rpartition(".")
            setattr(model.get_submodule(parent), name, compiled(model.get_submodule(place)))
        [(name, found)] = find_layers(model, [written]).items()
        assert name == "model.layer4.1"
        assert getattr(found, "_orig_mod", found) is layer


@pytest.mark.parametrize("written", ["model._orig_mod.layer4.1", "_orig_mod.model._orig_mod.layer4.1"])
def test_names_copied_from_named_modules_are_understood(written: str) -> None:
    model = Task()
    model.model = compiled(model.model)
    if written.startswith("_"):
        model = compiled(model)
    assert list(find_layers(model, [written])) == ["model.layer4.1"]


def test_the_wrapper_is_never_offered() -> None:
    model = Task()
    model.model = compiled(model.model)
    with pytest.raises(ValueError, match="has no layer") as caught:
        find_layers(model, ["model.orig"])
    assert "_orig_mod" not in str(caught.value)
    with pytest.raises(ValueError, match="At the top there are 'model'"):
        find_layers(compiled(Task()), ["zzz"])
